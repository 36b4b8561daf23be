"""One variant: compressed by mixprec or by another quantizer, and what is known of it then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixprec.calibration.data import Calibration
from mixprec.checkpoint.integrity import weight_bytes
from mixprec.compress import RULES
from mixprec.compress.guided import samples_swept
from mixprec.compress.module import ModuleReport, summarise
from mixprec.compress.refining import settings_of
from mixprec.compress.stream import compress
from mixprec.contrib import peers
from mixprec.contrib.peers import engine
from mixprec.contrib.peers.engine import Peer
from mixprec.core import artifacts, publish
from mixprec.core.progress import bar
from mixprec.models import locate
from mixprec.models.model import Model
from mixprec.pipeline import shown
from mixprec.pipeline.context import Context
from mixprec.plan import bits
from mixprec.plan.methods import needing_inputs, using_inputs
from mixprec.plan.rules import is_control
from mixprec.plan.schema import Plan, save_plan
from mixprec.tune.blocks import BlockTuner
from mixprec.tune.options import TuneSpec
from mixprec.tune.solved import SolvedTuning


def compressed(run: Context, name: str, plan: Plan) -> tuple[Model, str]:
    """See to it that a variant is compressed; gives its model, the run's own where nothing changes, and its
    fingerprint."""
    folder = run.out / "variants" / name
    save_plan(folder / "plan.json", plan)
    artifacts.write_json(folder / "layout.json", shown.layout(plan, run.model.decoder))
    stamp = _compressed(run, name, plan, folder)
    return (run.at(folder / "checkpoint") if plan.changed else run.model), stamp


def _compressed(run: Context, name: str, plan: Plan, folder: Path) -> str:
    """See to it that the variant's checkpoint is there, if it has one; returns its fingerprint."""
    checkpoint, quality = folder / "checkpoint", folder / "quality.json"
    tuned = [folder / "tune.json"] if tune_of(run, name) else []
    if not plan.changed:
        # A variant that keeps everything is the original itself: no copy of it is written, and none of what an
        # earlier recipe compressed under this name stays.
        publish.remove(checkpoint)
        publish.remove(quality)
        return run.model.identity
    return run.stages.do(
        f"compress/{name}",
        peers.RULES if peer_of(run, name) else RULES,
        [
            run.model.identity,
            plan.model_dump(mode="json"),
            run.recipe.checkpoint.model_dump(mode="json", exclude_none=True),
            *_compressing(run, name, plan),
        ],
        [checkpoint, quality, *tuned],
        lambda: _compress(run, name, plan, checkpoint, quality),
    )


def tune_of(run: Context, name: str) -> TuneSpec | None:
    """How a variant is tuned, if it is."""
    return run.recipe.tune_of(run.recipe.all_variants[name])


def peer_of(run: Context, name: str) -> Peer | None:
    """The other quantizer that compresses a variant, or None for mixprec itself."""
    chosen = run.recipe.engine_of(run.recipe.all_variants[name])
    return None if chosen == "mixprec" else Peer(chosen, run.recipe.compress.engine_settings.get(chosen, {}))


def _calibrating(run: Context, name: str, plan: Plan) -> Calibration | None:
    """The calibration data of a variant's compression; None for methods that need none."""
    peer = peer_of(run, name)
    look = needing_inputs if run.recipe.compress.calibration is None else using_inputs
    tuned = run.recipe.tune_blocks_of(run.recipe.all_variants[name]) is not None
    needed = peer.needs_inputs(plan.method) if peer else tuned or bool(look(plan.methods))
    return run.calibration if needed else None


def _compressing(run: Context, name: str, plan: Plan) -> list[Any]:
    """What a variant's compression depends on besides model and plan."""
    model, peer, calibration = run.model, peer_of(run, name), _calibrating(run, name, plan)
    digest = calibration.digest if calibration else None
    if peer:
        return [digest, model.dtype, *peer.identity]
    refine = _refining(run, name, calibration)
    options = run.options.model_dump() | settings_of(refine)
    solving = [digest, options, model.dtype, model.device] if calibration else []
    spec = tune_of(run, name)
    return solving if spec is None else [*solving, _tuning(run, spec, calibration).described]


def _refining(run: Context, name: str, calibration: Calibration | None) -> BlockTuner | None:
    """What tunes a variant's blocks, None where nothing does."""
    options = run.recipe.tune_blocks_of(run.recipe.all_variants[name])
    return None if options is None else BlockTuner(options, calibration)


def _tuning(run: Context, spec: TuneSpec, solved_on: Calibration | None) -> SolvedTuning:
    memory = run.recipe.compress.memory_gb
    return SolvedTuning(run.lessons(spec), spec.options, solved_on=solved_on, memory_gb=memory)


def _compress(run: Context, name: str, plan: Plan, checkpoint: Path, quality: Path) -> None:
    peer, calibration, spec = peer_of(run, name), _calibrating(run, name, plan), tune_of(run, name)
    tuning = None if spec is None else _tuning(run, spec, calibration)
    options = run.options
    swept = 0 if peer else samples_swept(plan.methods, options, calibration)
    unit = "samples and modules" if swept else "modules"
    with bar(f"compress {name}", swept + len(plan.modules), unit) as advance:
        if peer:
            reports = engine.compress(
                peer,
                run.model,
                plan,
                checkpoint,
                calibration=calibration,
                on_module=lambda *_: advance(1),
            )
        else:
            reports = compress(
                run.model.on_one_device,
                plan,
                checkpoint,
                calibration=calibration,
                options=options,
                format=run.recipe.checkpoint.written,
                on_module=lambda *_: advance(1),
                base_model=run.recipe.model.base_model,
                memory_gb=run.recipe.compress.memory_gb,
                refine=_refining(run, name, calibration),
                guidance=run.guidance,
                on_sample=advance,
                tune=tuning,
            )
    if tuning is not None and tuning.course is not None:
        artifacts.write_json(checkpoint.parent / "tune.json", tuning.course.told)
    artifacts.write_json(quality, {address: report._asdict() for address, report in reports.items()})


def described(run: Context, name: str, plan: Plan, model: Model) -> dict[str, Any]:
    """What is known of a variant without evaluating it: sizes, and how well its modules were solved."""
    quality = run.out / "variants" / name / "quality.json"
    labels = {module.address: module.label for module in run.model.decoder.matrices}
    reports = artifacts.read_json(quality) if plan.changed else {}
    account = bits.account(plan, run.model.decoder)
    variant = run.recipe.all_variants[name]
    tuned = {"tune": artifacts.read_object(quality.parent / "tune.json")} if plan.changed and tune_of(run, name) else {}
    return tuned | {
        "description": variant.description,
        "engine": run.recipe.engine_of(variant),
        "control": is_control(variant.plan),
        "methods": sorted(plan.methods),
        "modules_quantized": len(plan.changed),
        "code_bits": account.code_bits,
        "effective_bits": account.effective_bits,
        "bytes": account.packed_bytes,
        "bytes_on_disk": weight_bytes(Path(locate.resolve(model.id))),
        "quality": summarise({labels[address]: ModuleReport(**report) for address, report in reports.items()}),
    }
