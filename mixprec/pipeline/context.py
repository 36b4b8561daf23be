"""What all stages of a run share: its recipe and folder, the model, calibration data, the record of what is done."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from mixprec import recipe
from mixprec.calibration.data import Calibration
from mixprec.compress import spectra, updates
from mixprec.compress.options import SolveOptions, UpdatesFile
from mixprec.core import artifacts, hub
from mixprec.core.progress import bar, console
from mixprec.core.stages import Stages
from mixprec.models.model import Model
from mixprec.pipeline.annotating import annotate_traces, answers_beside, judged_by
from mixprec.pipeline.calibrating import calibrate, lessons
from mixprec.plan.methods import solving
from mixprec.recipe import OWN, Recipe, TracesSpec
from mixprec.traces import RULES, annotators, spans, store
from mixprec.tune.options import TuneSpec
from mixprec.tune.tuning import Lessons


def computing(model: Model) -> list[str]:
    """What numbers that a model computes depend on."""
    return [model.identity, model.dtype, model.device]


class Context:
    """One recipe and one folder. Models are loaded when a stage needs them; the original is ``model``, held once."""

    def __init__(self, chosen: Recipe, text: str, name: str, out: Path, data: Path | None) -> None:
        hub.forget()
        self.recipe = chosen
        #: As the recipe names it; where it learns first, ``model`` is then what it became.
        self.base = chosen.model.as_model()
        self.model = self.base
        self.text = text
        self.name = name
        self.out = out
        self.data = recipe.data_folder(chosen, data)
        self.stages = Stages(out)
        self._lessons: dict[str, Lessons] = {}

    def tell_moved(self) -> None:
        """Say why a run is made again where its branch on the hub moved since the last run in this folder."""
        path, now = self.out / ".stages" / "origin.json", self.model.origin
        if "commit" not in now:
            return
        before = artifacts.read_object(path) if path.is_file() else now
        if all(before.get(key) == now[key] for key in ("model", "revision")) and before.get("commit") != now["commit"]:
            console.print(
                f"{now['model']}: {now['revision'] or 'main'} moved from {str(before.get('commit'))[:12]} to "
                f"{now['commit'][:12]} since the last run in {self.out}: all that depends on the model is made again",
                markup=False,
            )
        artifacts.write_json(path, now)

    @cached_property
    def calibration(self) -> Calibration | None:
        """The tokens that calibrated methods see."""
        spec = self.recipe.compress.calibration
        if spec is None:
            return None
        solves = bool(solving(self.recipe.methods))
        found = calibrate(spec, self.model, self.locate, solves)
        for warning in found.warnings:
            console.print(warning)
        known = {source["sha256"] for source in found.described["sources"] if "sha256" in source}
        for source in self._evaluated():
            path = Path(self.locate(source)).expanduser()
            if path.is_file() and artifacts.sha256_file(path) in known:
                console.print(f"calibration: {source} is also what is evaluated on; the numbers there are flattered")
        return found

    def lessons(self, spec: TuneSpec) -> Lessons:
        """What a variant is tuned on, drawn once for all that are tuned on the same."""
        key = spec.model_dump_json(include={"samples", "validation", "calibration"})
        if key not in self._lessons:
            solved = self.recipe.compress.calibration or spec.calibration
            assert solved is not None  # the recipe is checked for it
            self._lessons[key] = lessons(spec, solved, self.model, self.locate)
        return self._lessons[key]

    def _evaluated(self) -> list[str]:
        """Sources that variants are evaluated on, but for bundled ones, which can't be calibrated on."""
        spec = self.recipe.evaluate
        sources = [] if spec is None else [spec.text, spec.traces.source if spec.traces else None]
        return [source for source in sources if source is not None and not source.startswith("bundled:")]

    def locate(self, source: str) -> str:
        """A source with ``data:`` replaced by the data folder, and the model's own traces by their file."""
        return str(self.own_traces) if source == OWN else recipe.locate(source, self.data)

    @property
    def own_traces(self) -> Path:
        """Where the recipe's ``generate`` puts what the model writes."""
        return self.out / "traces.jsonl"

    @property
    def guidance(self) -> Path:
        """Where all variants and candidates find what guides their solves."""
        return self.out / "guidance"

    def at(self, where: Path) -> Model:
        """A checkpoint of the run's model, computed as that is."""
        return Model(str(where), dtype=self.model.dtype, device=self.model.device)

    @property
    def computing(self) -> list[str]:
        """What numbers of the run's model depend on."""
        return computing(self.model)

    @cached_property
    def options(self) -> SolveOptions:
        """The settings of the methods, with what fine-tuning changed where the recipe names the model's base."""
        found, spec = self.recipe.compress.options, self.recipe.compress.fine_tuned_from
        if spec is None:
            return found
        path, base = self.out / "updates.safetensors", spec.as_model()

        def make() -> None:
            with bar("updates", 3 * len(self.model.decoder.linears), "modules") as advance:
                updates.make(base, self.model, path, advance)

        self.stages.do("updates", updates.RULES, [self.model.identity, base.identity], [path], make)
        file = UpdatesFile(path=str(path), sha256=artifacts.sha256_file(path))
        return found.model_copy(update={"updates": file})

    @cached_property
    def alphas(self) -> dict[str, float]:
        """Exponents of the weights' spectra, for AlphaPruning."""
        path = self.out / "spectra.json"

        def make() -> None:
            with bar("spectra", len(self.model.decoder.linears), "modules") as advance:
                found = spectra.alphas(self.model, advance)
                artifacts.write_json(path, found, seal=False)  # addresses alone; the stage has its hash

        self.stages.do("spectra", spectra.RULES, [self.model.identity], [path], make)
        return artifacts.read_object(path)

    def annotate(
        self, spec: TracesSpec, target: Path, name: str, traces: Path | None = None
    ) -> tuple[list[spans.AnnotatedTrace], str]:
        """Spans of annotated traces, and the stage's fingerprint. A judge's answers lie beside the spans.

        ``traces``: a file in the place of the recipe's source. Raises UserError as annotate_traces does.
        """
        source = self.locate(spec.source) if traces is None else str(traces)
        path = store.locate(source)
        said = spec.model_dump(exclude={"source", "judge", "train"})
        inputs: list[Any] = [artifacts.sha256_file(path), said, *annotators.decided_by(spec.annotator, spec.train)]
        if spec.judge is not None:
            inputs.append(judged_by(spec.judge))
        answers = answers_beside(target)
        stamp = self.stages.do(
            name, RULES, inputs, [target], lambda: spans.save_spans(target, annotate_traces(spec, source, answers))
        )
        return spans.load_spans(target), stamp
