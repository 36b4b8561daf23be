"""``mixprec run``: walk the stages that a recipe needs, skip what is done, and end with summary.json and a report.

Run folder::

    recipe.yaml  spans.jsonl  importance/  evaluation/{spans.jsonl,reference.safetensors}
    variants/<name>/{plan.json,quality.json,checkpoint/,result.json}  summary.json  report.html  *.png
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from mixprec import artifacts, damage, loadable, models, modules, recipe
from mixprec.benchmarking import Benchmarks, baseline_of, labels_of
from mixprec.calibration import data as calibration_data
from mixprec.checkpoint.integrity import README
from mixprec.checkpoint.modelcard import model_card
from mixprec.checkpoint.source import fetch
from mixprec.compress import spectra
from mixprec.compress.module import ModuleReport, summarise
from mixprec.compress.stream import compress
from mixprec.errors import UserError
from mixprec.evaluate import bench, fidelity, metrics, passages
from mixprec.importance import artifact, streaming
from mixprec.importance.attribute import attribute
from mixprec.joint import run as joint
from mixprec.peers import engine
from mixprec.peers.engine import Peer
from mixprec.plan import bits, sensitivity
from mixprec.plan.budgetspec import SENSITIVITY
from mixprec.plan.relative import Importance
from mixprec.plan.rules import PlanSpec, build_plan, needs_importance, needs_spectra, tables_wanted
from mixprec.plan.schema import NEEDS_INPUTS, USES_INPUTS, Plan, load_plan, save_plan
from mixprec.plan.sensitivity import Sensitivity
from mixprec.progress import bar, console
from mixprec.recipe import ImportanceSpec, Recipe, TracesSpec
from mixprec.report.html import write_report
from mixprec.sensitivity import run as scoring
from mixprec.stages import Stages
from mixprec.traces import cues, spans, store


class Run:
    """One recipe's run in one folder. Models are loaded when a stage needs them, and the original only once."""

    def __init__(self, chosen: Recipe, text: str, name: str, out: Path, data: Path | None) -> None:
        self.recipe = chosen
        self.text = text
        self.name = name
        self.out = out
        self.data = recipe.data_folder(chosen, data)
        self._scored: str | None = None
        self.stages = Stages(out)

    # What stages share

    @cached_property
    def identity(self) -> str:
        """Fingerprint of the model's files."""
        return models.identity(self.recipe.model.id, self.recipe.model.revision)

    @cached_property
    def inventory(self) -> modules.Inventory:
        """The model's modules, from its configuration."""
        return modules.inventory(self.config)

    @cached_property
    def config(self) -> PretrainedConfig:
        return models.load_config(self.recipe.model.id, self.recipe.model.revision)

    @cached_property
    def calibration(self) -> calibration_data.Calibration | None:
        """The tokens that calibrated methods see."""
        spec = self.recipe.compress.calibration
        if spec is None:
            return None
        where, config = models.resolve(self.recipe.model.id), models.load_config(self.recipe.model.id)
        tokenizer = models.load_tokenizer(self.recipe.model.id, where, self.recipe.model.revision, config.vocab_size)
        found = calibration_data.load(
            spec, tokenizer, lambda source: recipe.locate(source, self.data), config.max_position_embeddings
        )
        for warning in calibration_data.warnings(found, self.inventory.widest_input, config.hidden_size):
            console.print(f"calibration: {warning}")
        known = {source["sha256"] for source in found.described["sources"] if "sha256" in source}
        for source in self._evaluated():
            path = Path(recipe.locate(source, self.data)).expanduser()
            if path.is_file() and artifacts.sha256_file(path) in known:
                console.print(f"calibration: {source} is also what is evaluated on; the numbers there are flattered")
        return found

    def _evaluated(self) -> list[str]:
        """Sources that variants are evaluated on, but for bundled ones, which can't be calibrated on."""
        spec = self.recipe.evaluate
        sources = [] if spec is None else [spec.text, spec.traces.source if spec.traces else None]
        return [source for source in sources if source is not None and not source.startswith("bundled:")]

    @cached_property
    def original(self) -> models.LoadedModel:
        """The uncompressed model."""
        return self._load(self.recipe.model.id, self.recipe.model.revision)

    def _load(self, where: str, revision: str | None = None) -> models.LoadedModel:
        spec = self.recipe.model
        console.print(f"loading {where}")
        return models.load(where, dtype=spec.dtype, device=spec.device, revision=revision)

    def _streamed(self, spec: ImportanceSpec) -> streaming.StreamedModel:
        where = self.recipe.model
        return streaming.open_model(
            where.id, dtype=where.dtype, device=where.device, revision=where.revision, sweep_gb=spec.sweep_gb
        )

    @property
    def computing(self) -> list[str]:
        """What else numbers depend on."""
        return [self.identity, self.recipe.model.dtype, self.recipe.model.device]

    @cached_property
    def alphas(self) -> dict[str, float]:
        """Exponents of the weights' spectra, for AlphaPruning."""
        path = self.out / "spectra.json"
        where, revision = self.recipe.model.id, self.recipe.model.revision

        def make() -> None:
            with bar("spectra", len(self.inventory.linears), "modules") as advance:
                artifacts.write_json(path, spectra.alphas(fetch(where, revision), self.inventory, advance))

        self.stages.do("spectra", [self.identity], [path], make)
        return dict(artifacts.read_json(path))

    # Stages

    def run(self) -> dict[str, Any]:
        """All stages; returns the summary."""
        loadable.check_known(self.recipe, self.inventory, self.config)
        spec = self.recipe.evaluate
        # Questions are read first: what is wrong with them is told before any work.
        self.benchmarks = (
            Benchmarks(spec.protocol, self.recipe.model, self.stages, self.data)
            if spec and spec.benchmarks and self.recipe.all_variants
            else None
        )
        artifacts.write_text(self.out / "recipe.yaml", self.text)
        importance, importance_stamp = self._importance()
        self._scored = damage.score(self, importance, importance_stamp)
        if self.recipe.ablation is not None:
            damage.ablate(self, self.out / "ablation", importance)
        plans = {name: self._plan(name, variant.plan, importance) for name, variant in self.recipe.all_variants.items()}
        for name, plan in plans.items():
            loadable.check_variant(self.recipe, name, plan, self.inventory, self.config)
            if peer := self._peer(name):
                peer.check(plan, self.inventory)
        self.evaluator = Evaluator(self) if spec and (spec.traces or spec.text) and plans else None
        rows = {name: self._variant(name, plan) for name, plan in plans.items()}
        summary = self._summary(importance, rows) | {
            "provenance": artifacts.provenance(
                model=self.identity, importance=importance_stamp, recipe=artifacts.fingerprint(self.text)
            )
        }
        artifacts.write_json(self.out / "summary.json", summary)
        write_report(self.out)
        return summary

    def _plan(self, name: str, spec: PlanSpec, importance: dict[str, Any] | None) -> Plan:
        """A variant's plan; where its budget says so, improved by measuring joint plans."""
        plan = build_plan(
            spec,
            self.inventory,
            self.recipe.model.id,
            self.recipe.compress.method,
            artifact.scores_of(importance) if needs_importance(spec) and importance else None,
            self.alphas if needs_spectra(spec) else None,
            self._table(spec),
            lambda made: self.recipe.checkpoint.written.bytes(made, self.inventory, self._config),
        )
        scored = self.recipe.sensitivity
        if spec.budget is None or spec.budget.exchange is None or scored is None:
            return plan
        folder, start = self.out / "variants" / name / "exchange", plan.model_dump(mode="json")
        subject = damage.subject(self, self.out / "sensitivity", importance)

        def make() -> None:
            assert spec.budget is not None and scored is not None
            candidates = subject.candidates(self.recipe.candidates())
            save_plan(folder / "plan.json", joint.improve(subject, scored, candidates, spec.budget, plan, folder))

        self.stages.do(
            f"exchange/{name}",
            [self._scored, start, spec.model_dump(mode="json")],
            [folder / "plan.json", folder / "exchange.json"],
            make,
        )
        return load_plan(folder / "plan.json", self.inventory)

    def _table(self, spec: PlanSpec) -> Sensitivity | None:
        """The scores that a budget is spent by, those of several targets weighed into one."""
        own, scored = tables_wanted(spec) == (SENSITIVITY,), self.recipe.sensitivity
        if not own or scored is None:
            return table_for(spec, self.inventory, self.identity)
        folder = self.out / "sensitivity"
        paths = [folder / scoring.file_name(scored.scorer, target) for target in ("all", *scored.behaviours)]
        return table_for(spec, self.inventory, self.identity, paths)

    def annotate(self, spec: TracesSpec, target: Path, name: str) -> tuple[list[spans.AnnotatedTrace], str]:
        """Spans of annotated traces, and the stage's fingerprint."""
        source = recipe.locate(spec.source, self.data)
        path = store.locate(source)
        stamp = self.stages.do(
            name,
            [artifacts.sha256_file(path), spec.model_dump(exclude={"source"})],
            [target],
            lambda: spans.save_spans(target, annotate_traces(spec, source)),
        )
        return spans.load_spans(target), stamp

    def _importance(self) -> tuple[dict[str, Any] | None, str | None]:
        spec, traces_spec = self.recipe.importance, self.recipe.traces
        if spec is None or traces_spec is None:
            return None, None
        traces, stamp = self.annotate(traces_spec, self.out / "spans.jsonl", "annotate")
        folder = self.out / "importance"
        compared = [folder / f"importance_{preset}.json" for preset in spec.presets[1:]]
        beyond = [folder / "importance_beyond.json"] if spec.beyond_linear else []
        stamp = self.stages.do(
            "attribute",
            [self.computing, stamp, spec.model_dump(exclude={"stream", "sweep_gb"})],  # how, not what
            [folder / "importance.json", folder / "steering.safetensors", *compared, *beyond],
            lambda: attribute(
                self._streamed(spec) if spec.stream else self.original,
                traces,
                folder,
                presets=spec.presets,
                identity=artifacts.fingerprint(self.computing),
                max_tokens=spec.max_tokens,
                resamples=spec.resamples,
                beyond_linear=spec.beyond_linear,
            ),
        )
        return artifact.load(folder / "importance.json"), stamp

    def _variant(self, name: str, plan: Plan) -> dict[str, Any]:
        """Plan, compress and evaluate one variant; returns its row of the summary."""
        folder = self.out / "variants" / name
        save_plan(folder / "plan.json", plan)
        checkpoint = folder / "checkpoint"
        account = bits.account(plan, self.inventory)
        changed = len(plan.changed)
        stamp = self.identity
        if changed:
            stamp = self.stages.do(
                f"compress/{name}",
                [
                    self.identity,
                    plan.model_dump(mode="json"),
                    self.recipe.checkpoint.model_dump(mode="json", exclude_none=True),
                    *self._compressing(name, plan),
                ],
                [checkpoint, folder / "quality.json"],
                lambda: self._compress(name, plan, checkpoint, folder / "quality.json"),
            )
        else:
            # A variant that keeps everything is the original itself: no copy of it is written, and none of what an
            # earlier recipe compressed under this name stays.
            artifacts.remove(checkpoint)
            artifacts.remove(folder / "quality.json")
        where = str(checkpoint) if changed else self.recipe.model.id
        labels = {module.address: module.label for module in self.inventory.linears}
        reports = artifacts.read_json(folder / "quality.json") if changed else {}
        quality = {labels[address]: ModuleReport(**report) for address, report in reports.items()}
        row: dict[str, Any] = {
            "description": self.recipe.all_variants[name].description,
            "modules_quantized": changed,
            "code_bits": account.code_bits,
            "effective_bits": account.effective_bits,
            "bytes": account.packed_bytes,
            "bytes_on_disk": _bytes_on_disk(Path(models.resolve(where))),
            "quality": summarise(quality),
        }
        if self.evaluator:
            row |= self.evaluator.evaluate(name, where, stamp, folder / "result.json")
        if self.benchmarks:
            labels = labels_of(plan, self.inventory, row["description"])
            row["benchmarks"] = bench.brief(self.benchmarks.evaluate(name, where, stamp, folder, labels))
        if changed:
            self._card(plan, checkpoint, row)
        return row

    def _card(self, plan: Plan, checkpoint: Path, row: Mapping[str, Any]) -> None:
        """The checkpoint's model card, with recipe and results."""
        source = fetch(self.recipe.model.id, self.recipe.model.revision)
        form = self.recipe.checkpoint.format
        text = model_card(plan, self.inventory, source, form, recipe=self.text, results=row)
        artifacts.write_text(checkpoint / README, text)

    def _peer(self, name: str) -> Peer | None:
        """The other quantizer that compresses a variant, or None for mixprec itself."""
        engine = self.recipe.engine_of(self.recipe.all_variants[name])
        return None if engine == "mixprec" else Peer(engine, self.recipe.compress.engine_settings.get(engine, {}))

    def _calibrating(self, name: str, plan: Plan) -> calibration_data.Calibration | None:
        """The calibration data of a variant's compression; None for methods that need none."""
        peer = self._peer(name)
        inputs = NEEDS_INPUTS if self.recipe.compress.calibration is None else USES_INPUTS
        needed = peer.needs_inputs(plan.method) if peer else bool(plan.methods & inputs)
        return self.calibration if needed else None

    def _compressing(self, name: str, plan: Plan) -> list[Any]:
        """What a variant's compression depends on besides model and plan."""
        spec, peer, calibration = self.recipe.model, self._peer(name), self._calibrating(name, plan)
        digest = calibration.digest if calibration else None
        if peer:
            return [digest, spec.dtype, *peer.identity]
        return [digest, self.recipe.compress.options.model_dump(), spec.dtype, spec.device] if calibration else []

    def _compress(self, name: str, plan: Plan, checkpoint: Path, quality: Path) -> None:
        spec, peer, calibration = self.recipe.model, self._peer(name), self._calibrating(name, plan)
        with bar(f"compress {name}", len(plan.modules), "modules") as advance:
            if peer:
                reports = engine.compress(
                    peer,
                    spec.id,
                    plan,
                    checkpoint,
                    calibration=calibration,
                    revision=spec.revision,
                    dtype=spec.dtype,
                    on_module=lambda *_: advance(1),
                )
            else:
                reports = compress(
                    spec.id,
                    plan,
                    checkpoint,
                    calibration=calibration,
                    options=self.recipe.compress.options,
                    revision=spec.revision,
                    dtype=spec.dtype,
                    device=models.one_device(spec.device),
                    format=self.recipe.checkpoint.written,
                    on_module=lambda *_: advance(1),
                )
        artifacts.write_json(quality, {address: report._asdict() for address, report in reports.items()})

    def _summary(self, importance: dict[str, Any] | None, rows: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "schema_version": artifacts.SCHEMA_VERSION,
            "recipe": self.name,
            "title": self.recipe.title,
            "model": self.recipe.model.id,
            "evaluation": self.evaluator.described if self.evaluator else None,
            "variants": rows,
            "differences": self._differences(list(rows)) if self.evaluator else {},
            "benchmarks": self._benchmarks(rows) if self.benchmarks else None,
            "behaviours": artifact.top_modules(importance) if importance else {},
        }

    def _benchmarks(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """The protocol, and every variant's paired differences to the baseline: the first variant that keeps all."""
        baseline = baseline_of({name: row["modules_quantized"] for name, row in rows.items()})
        results = {name: artifacts.read_json(self.out / "variants" / name / "benchmarks.json") for name in rows}
        return {
            "protocol": results[baseline]["protocol"],
            "baseline": baseline,
            "differences": {
                name: bench.differences(results[baseline], found) for name, found in results.items() if name != baseline
            },
        }

    def _differences(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """first -> second -> paired difference of their mean KLs, for every pair of variants."""
        passages_of = {
            name: artifacts.read_json(self.out / "variants" / name / "result.json")["kl_by_passage"] for name in names
        }
        return {
            first: {
                second: metrics.kl_difference(passages_of[first], passages_of[second])
                for second in names
                if second != first
            }
            for first in names
        }


class Evaluator:
    """Compares variants with the original; its final hidden states are computed once."""

    def __init__(self, run: Run) -> None:
        assert run.recipe.evaluate is not None
        self.run = run
        self.spec = run.recipe.evaluate
        self.folder = run.out / "evaluation"
        traces: list[spans.AnnotatedTrace] = []
        stamp = None
        if self.spec.traces:
            traces, stamp = run.annotate(self.spec.traces, self.folder / "spans.jsonl", "annotate/evaluation")
        tokenizer = run.original.tokenizer
        limit = min(self.spec.max_tokens or run.original.context, run.original.context)
        self.on_traces, skipped = passages.from_traces(traces, tokenizer, limit)
        self.on_text = []
        if self.spec.text:
            source = recipe.locate(self.spec.text, run.data)
            length = min(self.spec.text_tokens, limit)
            self.on_text = passages.from_text(source, tokenizer, length, self.spec.text_passages)
        self.all = [*self.on_traces, *self.on_text]
        self.described = {
            "traces": {"passages": len(self.on_traces), "tokens": passages.total_tokens(self.on_traces)},
            "text": {"passages": len(self.on_text), "tokens": passages.total_tokens(self.on_text)},
            "skipped": dict(sorted(skipped.items())),
        }
        texts = artifacts.fingerprint([passage.tokens.tolist() for passage in self.all])
        self.stamp = artifacts.fingerprint(run.computing, stamp, texts)
        self.head = models.head(run.original.model)
        self.reference = self._reference()
        # From here on only the original's head is needed: its body's memory is for the variants.
        del run.__dict__["original"]
        gc.collect()

    def _reference(self) -> list[Tensor]:
        path = self.folder / "reference.safetensors"

        def make() -> None:
            states = fidelity.hidden_states(self.run.original, self.all, "original")
            artifacts.save_tensors(path, {f"{i:05d}": state.cpu() for i, state in enumerate(states)})

        self.run.stages.do("reference", self.stamp, [path], make)
        tensors, _ = artifacts.load_tensors(path)
        return [tensors[name] for name in sorted(tensors)]

    def evaluate(self, name: str, where: str, stamp: str, path: Path) -> dict[str, Any]:
        """The metrics of the model in ``where``, for the summary: over traces at the top, then text, behaviours."""

        def make() -> None:
            if where == self.run.recipe.model.id:
                found = fidelity.compare(self.all, self.reference, self.head, self.reference, self.head)
            else:
                loaded = self.run._load(where)
                hidden = fidelity.hidden_states(loaded, self.all, f"evaluate {name}")
                found = fidelity.compare(self.all, hidden, models.head(loaded.model), self.reference, self.head)
            artifacts.write_json(path, metrics.evaluate_all(self.on_traces, self.on_text, found))

        self.run.stages.do(f"evaluate/{name}", [self.stamp, stamp], [path], make)
        result = artifacts.read_json(path)
        main = result["traces"] or result["text"]
        return {**main, "text": result["text"], "behaviours": result["behaviours"]}


def annotate_traces(spec: TracesSpec, source: str) -> list[spans.AnnotatedTrace]:
    """Read traces and find the spans of their annotations, or of lexical cues where the recipe says so.

    Raises UserError where no trace has a span of a scored behaviour, with what was skipped and why.
    """
    traces = store.load(source)[: spec.first]
    found = []
    with bar("annotate", len(traces), "traces") as advance:
        for trace in traces:
            if spec.annotator == "cues":
                trace = store.Trace(trace.id, trace.dataset, trace.prompt, trace.output, cues.annotate_with_cues(trace))
            # Cues are written in reading order and verbatim: only the rule made for that loses none.
            found.append(spans.char_spans(trace, "aligned" if spec.annotator == "cues" else spec.preset))
            advance(1)
    summary = spans.summarise(found)
    if not any(summary.spans[behaviour] for behaviour in store.BEHAVIOURS):
        raise UserError(
            f"{source}: no trace has a span of {', '.join(store.BEHAVIOURS)}; skipped segments: "
            f"{summary.skipped or 'none'}; are the annotations of these traces?"
        )
    return found


def _bytes_on_disk(folder: Path) -> int | None:
    """Bytes of a checkpoint's files of weights; None for a model on the hub."""
    if not folder.is_dir():
        return None
    return sum(path.stat().st_size for kind in ("*.safetensors", "*.gguf") for path in folder.glob(kind))


def table_for(
    spec: PlanSpec, inventory: modules.Inventory, identity: str | None, paths: Sequence[Path] | None = None
) -> Sensitivity | None:
    """The tables that a budget names by their ``paths``, weighed into one; None where it needs none, or where the
    recipe's own are not there yet. ``paths`` take the place of what the budget names.

    Raises UserError for broken tables and those of another model.
    """
    wanted = [str(path) for path in paths or ()] or list(tables_wanted(spec))
    if spec.budget is None or not tables_wanted(spec) or SENSITIVITY in wanted:
        return None
    tables = [sensitivity.load(Path(path).expanduser(), inventory, identity) for path in wanted]
    return sensitivity.combine(tables, spec.budget.weights)


def explain(
    chosen: Recipe, importance: Importance | None, scores: Sequence[Path] | None = None
) -> dict[str, dict[str, Any]]:
    """Per variant what its plan comes to, without weights; None for one that is known only when it runs.

    ``scores``: tables for budgets, in the place of those that the recipe names.
    """
    config = models.load_config(chosen.model.id, chosen.model.revision)
    inventory = modules.inventory(config)
    form = chosen.checkpoint.written
    rows: dict[str, dict[str, Any]] = {}
    for name, variant in chosen.all_variants.items():
        # Planning for a model that isn't here works too, so that its files aren't looked at.
        table = table_for(variant.plan, inventory, None, scores)
        waits = bool(tables_wanted(variant.plan)) and table is None
        if waits or (needs_importance(variant.plan) and importance is None) or needs_spectra(variant.plan):
            rows[name] = {"description": variant.description, "account": None}
            continue
        plan = build_plan(
            variant.plan,
            inventory,
            chosen.model.id,
            chosen.compress.method,
            importance,
            table=table,
            file_size=lambda made: form.bytes(made, inventory, config),
        )
        loadable.check_variant(chosen, name, plan, inventory, config)
        rows[name] = {
            "description": variant.description,
            "account": asdict(bits.account(plan, inventory)),
            "bytes_on_disk": form.bytes(plan, inventory, config),
        }
    return rows
