"""The embedded model as GGUF files, in llama.cpp and in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llamacpp import needs_llamacpp, opened, perplexity

from mixprec.checkpoint.formats import checkpoint_format
from mixprec.checkpoint.gguf.writer import FILE
from mixprec.compress.stream import compress
from mixprec.evaluate import passages
from mixprec.models.config import load_config
from mixprec.models.load import LoadedModel
from mixprec.models.locate import BUNDLED
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.numerics.formats import GgmlFormat
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import ModulePlan, with_outside


@pytest.mark.slow
@needs_llamacpp
@pytest.mark.parametrize(
    "spec",
    [
        {"default": "q3_k", "method": "ggml", "rules": [{"match": "last_mlp", "format": "q8_0"}]},
        {"default": "w4g64", "rules": [{"match": "last_mlp", "format": "keep"}]},
    ],
)
def test_perplexity_in_llama_cpp(smollm2: LoadedModel, tmp_path: Path, spec: Any) -> None:
    form = checkpoint_format("gguf")
    config = load_config(BUNDLED)
    inventory = decoder_of(config)
    plan = build_plan(PlanSpec.model_validate(spec), inventory, BUNDLED, "rtn")
    plan = with_outside(plan, inventory, {"embedding": ModulePlan(format=GgmlFormat("q8_0"), method="ggml")})
    compress(Model(BUNDLED), plan, tmp_path / "out", format=form)
    predicted = form.bytes(plan, inventory, config)
    assert (tmp_path / "out" / FILE).stat().st_size == pytest.approx(predicted, rel=1e-4)
    text = passages.from_text("bundled:held_out", smollm2.encoder, 160, 1)[0]
    tokens = text.tokens.flatten().tolist()
    loaded = Model(tmp_path / "out").load()
    with torch.no_grad():
        reference = loaded.model(input_ids=torch.tensor([tokens])).logits[0]
    with opened(tmp_path / "out" / FILE) as other:
        found = other.logits(tokens)
    assert perplexity(found, tokens) == pytest.approx(perplexity(reference, tokens), rel=0.01)
    # Its kernels round activations to 8 bits, each processor's in its own way.
    assert (found.argmax(-1) == reference.argmax(-1)).float().mean() > 0.92
