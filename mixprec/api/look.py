"""From prompts to importance: traces and attribute; annotating.py stands between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mixprec.api.arguments import checked, given
from mixprec.api.checking import AnyModel, model_of
from mixprec.api.folders import folder_for
from mixprec.core import artifacts, processes
from mixprec.core.arguments import typed
from mixprec.core.progress import OnStep, telling
from mixprec.evaluate.spec import ProtocolSpec
from mixprec.importance import attribute as stage
from mixprec.importance import streaming
from mixprec.pipeline.tracing import trace
from mixprec.recipe import ImportanceSpec
from mixprec.results.importance import Importance
from mixprec.results.spans import Spans, Traces


@typed()
def traces(
    model: AnyModel,
    prompts: str | Path,
    out: str | Path,
    *,
    max_new_tokens: int = 32_768,
    temperature: float = 0.6,
    top_p: float = 0.95,
    seed: int = 0,
    chat_template: bool = False,
    batch: int = 1,
    progress: OnStep | None = None,
) -> Traces:
    """Let ``model`` reason about prompts (JSON lines with id, prompt and, if you like, dataset); writes ``out``.

    Every trace is kept as soon as it is there; the same call goes on where a killed one was. ``temperature`` 0 is
    greedy. ``chat_template``: in the model's own template. ``batch``: prompts at once.

    Raises UserError where ``out`` holds traces of another model, prompt or setting.
    """
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    spec = checked(ProtocolSpec, "traces", **sampling, engine={"batch": batch})
    with telling(progress):
        return trace(
            model_of(model),
            Path(prompts),
            Path(out),
            sampling=spec.sampling,
            seed=seed,
            chat_template=chat_template,
            batch=spec.engine.batch,
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
