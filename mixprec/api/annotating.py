"""annotate: from traces to spans, without torch; and the judge that it may ask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from mixprec.api.arguments import checked
from mixprec.core.arguments import typed
from mixprec.core.errors import UserError, from_pydantic
from mixprec.core.progress import OnStep, telling
from mixprec.pipeline.annotating import annotate_traces, answers_beside
from mixprec.recipe import TracesSpec
from mixprec.results.spans import Spans, Traces
from mixprec.traces import store
from mixprec.traces.judge.spec import JudgeSpec


class Judge(JudgeSpec):
    """A language model that annotates traces, behind any server with OpenAI's protocol (docs/spans.md).

    ``url``: http://host:port/v1; ``model``: its name there; ``key``: the server's, by default what the environment has
    in ``key_variable``, OPENAI_API_KEY. ``settings``: prompt, temperature, top_p, max_new_tokens, piece, attempts,
    concurrency, timeout, retries, price_in, price_out, as in ``traces.judge`` of a recipe (docs/recipes.md).

    Raises UserError naming all settings that are wrong.
    """

    key: str | None = Field(None, repr=False, exclude=True, description="the server's key")

    def __init__(self, url: str, model: str, *, key: str | None = None, **settings: Any) -> None:
        if isinstance(settings.get("prompt"), Path):
            settings["prompt"] = str(settings["prompt"])
        given = {"url": url, "model": model, "key": key, **settings}
        try:
            super().__init__(**given)
        except ValidationError as problem:
            raise from_pydantic(problem, "mixprec Judge", Judge) from None

    @property
    def secret(self) -> str | None:
        return self.key or super().secret


@typed()
def annotate(
    traces: str | Path | Traces,
    *,
    preset: str = "paper",
    annotator: str = "given",
    judge: Judge | None = None,
    answers: str | Path | None = None,
    train: Sequence[str | Path] = (),
    first: int | None = None,
    progress: OnStep | None = None,
) -> Spans:
    """Find each behaviour's spans in annotated traces (JSON lines, or bundled:attribution), or let a judge find them.

    ``preset``: the span rule, paper, released or aligned. ``annotator``: the file's annotations (given), cue phrases
    (cues), or a sentence classifier (classifier), which learns from the annotated traces of ``train`` too. ``judge``: a
    language model annotates; ``answers``: the file that keeps all it says, so that a killed call goes on and nothing is
    asked twice; by default beside the traces, for bundled ones in the working folder. ``first``: only so many traces.

    Raises UserError where no trace has a span of a scored behaviour, or the judge's server stays away.
    """
    source = str(traces.path if isinstance(traces, Traces) else traces)
    if answers is not None and judge is None:
        raise UserError("mixprec annotate: answers: are a judge's; give a judge, or leave them out")
    learned = tuple(map(str, train))
    given = {"source": source, "preset": preset, "annotator": annotator, "train": learned, "judge": judge}
    spec = checked(TracesSpec, "annotate", **given, first=first)
    with telling(progress):
        return Spans(tuple(annotate_traces(spec, source, _kept(source, answers) if judge else None)))


def _kept(source: str, answers: str | Path | None) -> Path:
    if answers is not None:
        return Path(answers).expanduser()
    beside = answers_beside(store.locate(source))
    return Path(beside.name) if source.startswith("bundled:") else beside
