"""From prompts to importance: traces and attribute; annotating.py stands between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixprec.api.arguments import checked, given
from mixprec.api.checking import AnyModel, model_of
from mixprec.api.folders import folder_for
from mixprec.core import artifacts, processes
from mixprec.core.arguments import typed
from mixprec.core.errors import UserError
from mixprec.core.progress import OnStep, telling
from mixprec.evaluate.engines.openai import Server
from mixprec.evaluate.spec import ProtocolSpec
from mixprec.importance import attribute as stage
from mixprec.importance import streaming
from mixprec.pipeline import tracing
from mixprec.recipe import ImportanceSpec
from mixprec.results.importance import Importance
from mixprec.results.spans import Spans, Traces


@typed()
def traces(
    model: AnyModel | Server,
    prompts: str | Path,
    out: str | Path,
    *,
    max_new_tokens: int = 32_768,
    temperature: float = 0.6,
    top_p: float = 0.95,
    seed: int = 0,
    chat_template: bool = False,
    template: Mapping[str, Any] | None = None,
    engine: str = "transformers",
    batch: int = 1,
    tokenizer: AnyModel | None = None,
    keys: Mapping[str, str] | None = None,
    files: str | Path | None = None,
    data: str | Path | None = None,
    first: int | None = None,
    progress: OnStep | None = None,
) -> Traces:
    """Let ``model``, or one behind a ``Server``, reason about prompts; writes ``out``.

    ``prompts``: JSON lines or a JSON list of rows with ``prompt``, chat ``messages`` or ShareGPT's ``conversations``,
    an id and, if you like, a dataset; or ``benchmark:NAME``, one of the paper's, from ``files``, the ``data`` folder or
    the hub. ``keys``: role (prompt, messages, id, dataset) -> the file's key for it. ``first``: only so many.

    Every trace is kept as soon as it is there; the same call goes on where a killed one was. ``temperature`` 0 is
    greedy. ``chat_template``: in the model's own template, with the arguments ``template``, as ``enable_thinking``.
    ``engine``: transformers, ``batch`` prompts at once, or vllm. ``tokenizer``: with a server, the model whose chat
    template is filled in here, so that the traces' prompts are what the model saw.

    Raises UserError where ``out`` holds traces of another model, prompt or setting.
    """
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    spec = checked(ProtocolSpec, "traces", **sampling, engine={"kind": engine, "batch": batch}, limit=first)
    arguments = dict(template or {})
    with telling(progress):
        if isinstance(model, Server):
            filling = None if tokenizer is None else model_of(tokenizer)
            asked = tracing.served(model, filling, chat_template, arguments)
        else:
            if tokenizer is not None:
                raise UserError("mixprec traces: tokenizer: is for a server; a model brings its own")
            asked = tracing.local(model_of(model), spec.engine, chat_template, arguments)
        found = tracing.prompts_of(
            str(prompts),
            keys=keys or {},
            chat=chat_template,
            files=None if files is None else Path(files),
            data=None if data is None else Path(data),
            first=first,
        )
        return tracing.trace(
            asked, found, Path(out), sampling=spec.sampling, seed=seed, chat=chat_template, template=arguments
        )


@typed()
def attribute(
    model: AnyModel,
    spans: Spans | str | Path,
    *,
    out: str | Path | None = None,
    preset: str = "paper",
    compare: Sequence[str] = (),
    max_tokens: int | None = None,
    resamples: int | None = None,
    beyond_linear: bool = False,
    stream: bool = False,
    sweep_gb: float | None = None,
    progress: OnStep | None = None,
) -> Importance:
    """The importance of every linear module for the four behaviours.

    ``spans``: from ``annotate``, or spans.jsonl. ``out``: a folder for importance.json, steering vectors and what a
    killed call goes on from; by default nothing stays. ``preset``: formulas, paper or released; ``compare``: others in
    the same pass. ``max_tokens``: cut longer traces here. ``resamples``: for intervals, default 1,000; 0: none.
    ``beyond_linear``: embeddings, norms and logits too, in files of ``out``. ``stream``: read weights block by block;
    ``sweep_gb``: its memory for the traces of one sweep, default 4.

    Raises UserError for unknown presets and broken spans.
    """
    options = given(max_tokens=max_tokens, resamples=resamples, sweep_gb=sweep_gb)
    flags = {"beyond_linear": beyond_linear, "stream": stream}
    spec = checked(ImportanceSpec, "attribute", preset=preset, compare=tuple(compare), **flags, **options)
    model = model_of(model)
    found = spans if isinstance(spans, Spans) else Spans.load(spans)
    mine = model.computed(device=processes.join(model.device))
    with telling(progress), folder_for(out) as folder:
        result = stage.attribute(
            streaming.open_model(mine, sweep_gb=spec.sweep_gb) if spec.stream else mine.load(),
            list(found),
            folder,
            presets=spec.presets,
            identity=artifacts.fingerprint(model.identity, model.dtype, model.device),
            max_tokens=spec.max_tokens,
            resamples=spec.resamples,
            beyond_linear=spec.beyond_linear,
        )
        return Importance(result)
