"""What a run writes for its report alone: bits by layer and kind, and KL token by token."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from mixprec.evaluate.passages import from_traces
from mixprec.models.maps import decoder_of
from mixprec.numerics.divergence import TokenFidelity
from mixprec.numerics.formats import parse_format
from mixprec.pipeline import shown
from mixprec.plan import bits
from mixprec.plan.rules import PlanSpec, build_plan, is_control
from mixprec.traces import spans
from mixprec.traces.store import Trace


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_the_layouts_bits_are_those_of_the_account(architecture: str) -> None:
    decoder = decoder_of(tiny.build(architecture).model.config)
    rules = [{"match": "embedding", "format": "w8g16"}, {"match": "last_attn", "format": "keep"}]
    plan = build_plan(PlanSpec.model_validate({"default": "w3g16", "rules": rules}), decoder, "m", "rtn")
    found = shown.layout(plan, decoder)
    assert (found["layers"], found["tied"]) == (decoder.layers, decoder.tied)
    inside = [cell for cell in found["cells"] if cell["layer"]]
    total = sum(cell["bits"] * cell["weights"] for cell in inside) / sum(cell["weights"] for cell in inside)
    assert math.isclose(total, bits.account(plan, decoder).effective_bits, rel_tol=1e-12)
    outside = {cell["kind"]: cell["formats"] for cell in found["cells"] if not cell["layer"]}
    assert outside == {"embedding": {"w8g16": 1}, "head": {"keep": 1}}
    assert sum(sum(cell["formats"].values()) for cell in found["cells"]) == len(decoder.matrices)
    assert str(parse_format("w3g16")) in inside[0]["formats"]


def test_tokens_stand_at_their_characters() -> None:
    trace = Trace("a", "toy", "How many?\n", "Okay. Wait, no. Five.")
    passages, _ = from_traces([spans.AnnotatedTrace(trace, [])] * 20, tiny.encoder(), 12)
    kl = torch.arange(1.0, len(passages[0].tokens))
    results = [TokenFidelity(kl, kl, kl > 0)] * len(passages)
    found = shown.tokens(passages, results)
    assert found["of"] == 20 and len(found["traces"]) == shown.TRACES
    encoded = tiny.encoder()(trace.text)
    row = found["traces"][0]
    expected = [
        [start, end, float(number)]
        for number, (start, end) in enumerate(encoded.offsets[1:12], 1)
        if end > start
    ]  # fmt: skip
    assert row["tokens"] == expected and row["of"] == len(expected)


@pytest.mark.parametrize(
    ("spec", "control"),
    [
        ({"default": "w3g16"}, False),
        ({"default": "w3g16", "rules": [{"match": {"random": "last_mlp", "seed": 0}, "format": "keep"}]}, True),
        ({"budget": {"effective_bits": 3.5, "candidates": ["w3g16", "w4g16"]}}, False),
        ({"budget": {"effective_bits": 3.5, "candidates": ["w3g16", "w4g16"], "allocation": "random"}}, True),
    ],
)
def test_what_is_there_to_be_beaten_is_a_control(spec: dict[str, object], control: bool) -> None:
    assert is_control(PlanSpec.model_validate(spec)) is control
