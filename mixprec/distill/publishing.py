"""A trained student as a checkpoint: the student's own files with other weights, and what it learned from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import ModelCardData
from torch import Tensor

from mixprec.checkpoint import modelcard, shards
from mixprec.checkpoint.base import Finish
from mixprec.checkpoint.convert import plan_of
from mixprec.checkpoint.integrity import seal
from mixprec.checkpoint.reader import Checkpoint
from mixprec.checkpoint.target import blocks_folder, write_side_files
from mixprec.core import artifacts, publish
from mixprec.core.escaping import markdown
from mixprec.core.headers import type_name
from mixprec.models.model import Model
from mixprec.models.modelfiles import CURVES, README
from mixprec.report.losses import losses_figure
from mixprec.report.style import render

_TYPES: Final = {type_name(each): each for each in (torch.float32, torch.bfloat16, torch.float16)}


def dtypes(opened: Checkpoint) -> dict[str, torch.dtype]:
    """The types of a checkpoint's tensors, by name."""
    return {name: _TYPES[info.dtype] for name, info in opened.source.tensors.items()}


def write(
    student: Model,
    opened: Checkpoint,
    tensors: Mapping[str, Tensor],
    out: Path,
    told: Mapping[str, Any],
    base_model: str | None,
) -> None:
    """Write the checkpoint ``opened`` of ``student`` with other ``tensors``; ``told``: for mixprec.json."""
    plan = plan_of(opened).model_copy(update={"model": student.id})
    with publish.atomic_path(out) as folder, publish.scratch(blocks_folder(out) / "weights") as scratch:
        folder.mkdir()
        file = scratch / "all.safetensors"
        artifacts.save_tensors(file, tensors)
        shards.finish(Finish(opened.source, [file], folder, plan, opened.inventory, opened.shapes), {})
        write_side_files(folder, opened.source)
        numbers, picture = (folder / name for name in CURVES)
        numbers.parent.mkdir()
        publish.write_json(numbers, told["course"])
        picture.write_bytes(render(losses_figure(told["course"]), "png"))
        (folder / README).write_text(_card(student, opened.path, told, base_model), encoding="utf-8")
        plain = plan.model_dump(mode="json")
        seal(folder, artifacts.provenance(plan=plain, checkpoint={"format": "dense"}, distillation=dict(told)))


def _card(student: Model, source: Path, told: Mapping[str, Any], base_model: str | None) -> str:
    """The model card."""
    base = modelcard.base_model(student.id, source, base_model)
    counts, course = told["counts"], told["course"]
    keys: dict[str, Any] = {
        **({"base_model": base, "base_model_relation": "finetune"} if base else {}),
        **modelcard.licence(student.id, source),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["mixprec", "distillation"],
    }
    what = f"[{markdown(base)}](https://huggingface.co/{base})" if base else "A model that is not named on the hub"
    learned = f"the predictions of {markdown(told['teacher']['model'])}" if told["teacher"] else "their text"
    how = f"adapters of rank {told['options']['lora']}" if told["options"]["lora"] else "all weights"
    name = base.rpartition("/")[2] if base else Path(student.id).stem
    parts = [
        f"---\n{str(ModelCardData(**keys).to_yaml()).rstrip()}\n---",
        f"# {markdown(name)}, distilled",
        f"{what}, trained by mixprec on {counts['training_traces']:,} reasoning traces ({how}): it learned {learned}, "
        f"in {course['kept_step']} steps. Loss on {counts['validation_traces']} traces that were held out, "
        f"{course['objective']} in nats per token: {course['before']:.4f} before, {course['written']:.4f} after.",
        f"![losses]({CURVES[1]})",
        "The base's licence and terms, and those of the traces' teacher, hold for this copy too. `mixprec.json` says "
        "what it was made from.",
    ]
    return "\n\n".join(parts) + "\n"
