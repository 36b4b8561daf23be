"""The engine that a recipe asks for, with a model."""

from __future__ import annotations

from typing import Any

from mixprec.core.progress import console
from mixprec.evaluate.engines.base import Engine
from mixprec.evaluate.spec import EngineSpec
from mixprec.models import locate
from mixprec.models.load import load_model


def make(spec: EngineSpec, model_id: str, *, dtype: str, device: str, revision: str | None = None) -> Engine:
    """Load a model into its engine.

    Raises UserError where the model can't be loaded or the engine is not installed.
    """
    console.print(f"loading {model_id}", soft_wrap=True)
    if spec.kind == "transformers":
        from mixprec.evaluate.engines.transformers import TransformersEngine

        return TransformersEngine(load_model(model_id, dtype=dtype, device=device, revision=revision), spec.batch)
    from mixprec.evaluate.engines.vllm import VllmEngine

    options: dict[str, Any] = {"tensor_parallel_size": spec.gpus, "gpu_memory_utilization": spec.memory}
    if spec.max_context:
        options["max_model_len"] = spec.max_context
    if commit := locate.commit(model_id, revision):
        options["revision"] = commit
    return VllmEngine(locate.resolve(model_id), dtype, **options)
