"""Before the first stage: a model's own traces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mixprec.core import locks
from mixprec.core.errors import UserError
from mixprec.core.progress import generating
from mixprec.evaluate.engines import templates
from mixprec.evaluate.engines.base import Engine, Sampling
from mixprec.evaluate.engines.make import make
from mixprec.evaluate.engines.openai import OpenAIEngine, Server
from mixprec.evaluate.spec import EngineSpec
from mixprec.models.model import Model
from mixprec.results.spans import Traces
from mixprec.traces.generate import generate
from mixprec.traces.prompts import Prompt, by_id, load_prompts
from mixprec.traces.recorder import Making, Recorder

#: Sources of prompts that are the paper's benchmarks: ``benchmark:folio``.
_BENCHMARK = "benchmark:"
_WITHOUT = "leave the option out, and prompts go in as they are"


class Asked(NamedTuple):
    """Who reasons. ``identity``: of its weights, as far as they are known; ``engine`` is called when there is work."""

    name: str
    identity: str
    dtype: str
    engine: Callable[[], Engine]


def local(model: Model, spec: EngineSpec, chat: bool, template: Mapping[str, Any]) -> Asked:
    """A model in this process. Raises UserError for one without the chat template that is asked for."""
    if chat:
        templates.require(model, "--chat-template", _WITHOUT, template)
    return Asked(model.id, model.identity, model.dtype, lambda: make(spec, model))


def served(server: Server, tokenizer: Model | None, chat: bool, template: Mapping[str, Any]) -> Asked:
    """A model behind a server. ``tokenizer`` fills in the chat template here, so that prompts are what it saw."""
    identity = f"server:{server.model}"
    if tokenizer is None:
        return Asked(server.model, identity, "", lambda: OpenAIEngine(server, place="--url"))
    if chat:
        templates.require(tokenizer, "--chat-template", _WITHOUT, template)
        identity += f", template of {tokenizer.id}"
    return Asked(
        server.model,
        identity,
        "",
        lambda: templates.FilledIn(OpenAIEngine(server, place="--url"), tokenizer.encoder),
    )


def prompts_of(
    source: str, *, keys: Mapping[str, str], chat: bool, files: Path | None, data: Path | None, first: int | None
) -> list[Prompt]:
    """Prompts of a file, or of a benchmark (``benchmark:folio``): with ``chat`` its questions, else the paper's
    prompts, which open the thinking.

    Raises UserError as ``load_prompts`` and the benchmarks do, and for conversations without ``chat``.
    """
    if source.startswith(_BENCHMARK):
        return _questions(source.removeprefix(_BENCHMARK), chat, files, data, first)
    found = load_prompts(Path(source).expanduser(), keys)[:first]
    talk = next((row["id"] for row in found if "messages" in row), None)
    if talk is not None and not chat:
        raise UserError(
            f"{source}: prompt {talk!r} is a conversation, which needs a chat template; add --chat-template"
        )
    return found


def _questions(name: str, chat: bool, files: Path | None, data: Path | None, first: int | None) -> list[Prompt]:
    from mixprec.evaluate import benchmarks  # with what finds passages

    source = None if files is None else files / benchmarks.find(name).file
    questions = benchmarks.load(name, source, limit=first, data=data)
    return [Prompt(id=each.id, dataset=name, prompt=each.message if chat else each.prompt) for each in questions]


def trace(
    asked: Asked,
    prompts: Sequence[Prompt],
    to: Path,
    *,
    sampling: Sampling,
    seed: int,
    chat: bool,
    template: Mapping[str, Any],
) -> Traces:
    """Let a model reason about prompts. Every trace is kept in ``to`` as soon as it is there.

    Raises UserError as by_id and Recorder do, and where a template has arguments but is not used.
    """
    if template and not chat:
        raise UserError("template arguments are for a chat template; add --chat-template")
    rows = by_id(prompts)
    drawn = vars(sampling)
    making = Making(asked.name, asked.identity, asked.dtype, chat, seed, **drawn, template=dict(template))
    skipped: Counter[str] = Counter()
    with locks.target(to):
        recorder = Recorder(to, making, {name: row.get("messages") or row["prompt"] for name, row in rows.items()})
        left = [row for name, row in rows.items() if name not in recorder.done]
        if left:
            engine = asked.engine()
            with generating("trace", len(rows), sampling.max_new_tokens, [None] * (len(rows) - len(left))) as seen:
                for made in generate(
                    engine,
                    left,
                    sampling=sampling,
                    seed=seed,
                    chat_template=chat,
                    template=template,
                    skipped=skipped,
                    seen=seen,
                ):
                    recorder.write(made)
    return Traces(to, len(recorder.done), len(recorder.others), skipped["empty"])
