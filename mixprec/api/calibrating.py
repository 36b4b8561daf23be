"""calibrate: the samples that methods see."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mixprec.api.arguments import checked
from mixprec.api.checking import AnyModel, model_of
from mixprec.calibration.spec import CalibrationSpec, apportion
from mixprec.core.arguments import typed
from mixprec.core.progress import OnStep, telling
from mixprec.pipeline.calibrating import calibrate as load_calibration
from mixprec.results.calibration import Calibration
from mixprec.results.spans import Spans


@typed()
def calibrate(
    model: AnyModel,
    *,
    traces: str | Path | Spans | None = None,
    text: str | Path | None = None,
    samples: int = 128,
    tokens: int = 512,
    seed: int = 0,
    solves: bool = True,
    skip: int = 0,
    progress: OnStep | None = None,
) -> Calibration:
    """Samples that methods see which look at a linear's inputs: ``samples`` of ``tokens`` tokens each, in all.

    ``traces``: spans, a file of traces, or bundled:attribution; ``text``: a text file; half of each where both are
    given. ``seed`` draws the samples. ``solves``: whether a method solves with the inputs' second moments, as gptq
    does; its result then says where the tokens are too few. ``skip``: so many samples go first, those of a set of that
    size: what follows is in none of them.

    Raises UserError where the sources have fewer samples.
    """
    with telling(progress), tempfile.TemporaryDirectory(prefix="mixprec-") as folder:
        if isinstance(traces, Spans):
            traces.save(Path(folder) / "spans.jsonl")
            traces = Path(folder) / "spans.jsonl"
        sources = [{"text": str(text)}] * bool(text) + [{"traces": str(traces)}] * bool(traces)
        spec = checked(CalibrationSpec, "calibrate", sources=sources, samples=samples, tokens=tokens, seed=seed)
        first = apportion(skip, [source.share for source in spec.sources]) if skip else ()
        return load_calibration(spec, model_of(model), str, solves, skip=first)
