"""updates: what fine-tuning changed in a model's input channels."""

from __future__ import annotations

from pathlib import Path

from mixprec.api.checking import AnyModel, model_of
from mixprec.compress import updates as comparing
from mixprec.compress.options import UpdatesFile
from mixprec.core.arguments import typed
from mixprec.core.progress import OnStep, bar, telling


@typed()
def updates(base: AnyModel, model: AnyModel, out: str | Path, *, progress: OnStep | None = None) -> UpdatesFile:
    """Importance of ``model``'s input channels by what changed since its ``base``; writes the file ``out``.

    ``SolveOptions(updates=…)`` takes what it gives: AWQ then scales by it (QuantLRM, arXiv 2602.02581), and
    ``sensitivity`` has the scorer updates.

    Raises UserError for a base of other shapes, another vocabulary, equal weights, or weights that have nothing in
    common with the model's.
    """
    model, base = model_of(model), model_of(base)
    with telling(progress), bar("updates", 3 * len(model.decoder.linears), "modules") as advance:
        return comparing.make(base, model, Path(out), advance)
