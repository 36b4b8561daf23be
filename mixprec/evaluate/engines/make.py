"""The engine that a recipe asks for, with a model."""

from __future__ import annotations

from typing import Any

from mixprec.core.progress import console
from mixprec.evaluate.engines.base import Engine
from mixprec.evaluate.spec import EngineSpec
from mixprec.models.model import Model


def make(spec: EngineSpec, model: Model) -> Engine:
    """Load a model into its engine.

    Raises UserError where the model can't be loaded or the engine is not installed.
    """
    if spec.kind == "transformers":
        from mixprec.evaluate.engines.transformers import TransformersEngine

        return TransformersEngine(model.load(), spec.batch)
    from mixprec.evaluate.engines.vllm import VllmEngine

    options: dict[str, Any] = {"tensor_parallel_size": spec.gpus, "gpu_memory_utilization": spec.memory}
    if spec.max_context:
        options["max_model_len"] = spec.max_context
    console.print(f"loading {model.id}", soft_wrap=True)
    if model.commit is None:
        return VllmEngine(str(model.folder), model.dtype, **options)
    return VllmEngine(model.id, model.dtype, revision=model.commit, **options)
