"""Embedding and head in every checkpoint format: what is written is read, sized and loaded, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import unpackers
from llamacpp import needs_llamacpp, opened, perplexity
from plan_made import WIDE
from safetensors.torch import load_file
from tiny import TEXT, build, learn
from transformers import AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from mixprec.checkpoint.check import Target, check, differences
from mixprec.checkpoint.compare import diff
from mixprec.checkpoint.convert import convert, plan_of
from mixprec.checkpoint.formats import FORMATS
from mixprec.checkpoint.gguf.writer import FILE
from mixprec.checkpoint.opening import open_checkpoint, open_stored
from mixprec.checkpoint.packings import PACKINGS
from mixprec.cli import app
from mixprec.compress.stream import compress
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.numerics.formats import KEEP, Format
from mixprec.numerics.groupwise import dequantize, quantize
from mixprec.plan.budget import budget_plan
from mixprec.plan.budgetspec import BudgetSpec
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import Plan
from mixprec.plan.sensitivity import Sensitivity

MakeSource = Callable[..., Path]
Planner = Callable[..., Plan]

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
TOKENS = torch.arange(2, 50).unsqueeze(0)
#: Every architecture, with what llama.cpp knows of it.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": None},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {"sliding_window": 512, "query_pre_attn_scalar": 16},
}
#: Format -> what it holds outside the blocks where the head is one of its own, and where it isn't.
HELD = {
    "dense": ({"embedding": "w3g16_asym", "head": "w4g32"}, {"embedding": "w3g16_asym"}),
    "compressed-tensors": ({"embedding": "w8g32", "head": "w4g32"}, {}),
    "gptq": ({"head": "w4g32"}, {}),
    "awq": ({}, {}),
    "mlx": ({"embedding": "w8g32", "head": "w5g64"}, {"embedding": "w8g32"}),
    "gguf": ({"embedding": "w8g32", "head": "w4g32"}, {"embedding": "w8g32"}),
}


def weights_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf"))


#: Format -> what it holds within the blocks, where that isn't w4g32.
INSIDE = {"awq": "w4g32_asym"}


@torch.no_grad()
def in_memory(source: Path, plan: Plan) -> PreTrainedModel:
    """The source's model with its weights rounded, in the source's type."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    for address, format in plan.formats.items():
        weight = model.get_submodule(address).weight
        if isinstance(format, Format):
            weight.copy_(dequantize(quantize(weight, format), format, weight.dtype))
    return model.eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("form", list(FORMATS))
@pytest.mark.parametrize("architecture", list(FAMILIES))
def test_what_is_written_is_read_and_sized(
    source: MakeSource, planner: Planner, tmp_path: Path, architecture: str, form: str, tied: bool
) -> None:
    if form == "gguf" and architecture in ("gemma", "gemma2"):
        pytest.skip("llama.cpp's names are not known of it")
    folder = source(architecture, tie_word_embeddings=tied, **FAMILIES[architecture])
    rules = HELD[form][tied]
    plan = planner(folder, INSIDE.get(form, "w4g32"), **rules)
    compress(Model(folder), plan, tmp_path / "out", format=FORMATS[form])
    config = load_config(str(folder))
    inventory = decoder_of(config)
    assert weights_in(tmp_path / "out") == FORMATS[form].bytes(plan, inventory, config)
    found, expected = open_checkpoint(tmp_path / "out"), in_memory(folder, plan)
    assert set(found.layouts) == {linear.address for linear in inventory.matrices}
    for linear in inventory.matrices:
        weight = expected.get_submodule(linear.address).weight
        assert torch.equal(found.weight(linear, torch.bfloat16), weight), linear.address
    if form in PACKINGS and form != "mlx":  # it has offsets in the place of zero points
        formats = {address: layout.format for address, layout in found.layouts.items()}
        assert formats == {linear.address: plan.formats.get(linear.address, KEEP) for linear in inventory.matrices}
        assert plan_of(found).formats == plan.formats
    loaded = Model(tmp_path / "out", dtype="bfloat16").load().model
    with torch.no_grad():
        logits, wanted = loaded(TOKENS).logits, expected(TOKENS).logits
    assert torch.equal(logits, wanted) or "gemma" in architecture  # the file has Gemma's norms as 1 + w, in float32
    assert torch.allclose(logits, wanted, rtol=0, atol=0.02)


@pytest.mark.parametrize("head", ["w3g32", "w4g32", "w8"])
def test_transformers_loads_a_packed_head(source: MakeSource, planner: Planner, tmp_path: Path, head: str) -> None:
    folder = source(tie_word_embeddings=False)
    plan = planner(folder, "w4g32", head=head)
    compress(Model(folder), plan, tmp_path / "out", format=FORMATS["compressed-tensors"])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, in_memory(folder, plan)(TOKENS).logits)
    assert check(plan, decoder_of(load_config(str(folder))), None, Target("transformers", "compressed-tensors")).loads


def test_transformers_stops_at_a_packed_embedding(source: MakeSource, planner: Planner, tmp_path: Path) -> None:
    folder = source(tie_word_embeddings=False)
    plan = planner(folder, "w4g32", embedding="w8g32")
    compress(Model(folder), plan, tmp_path / "out", format=FORMATS["compressed-tensors"])
    with pytest.raises(AttributeError, match="'Embedding' object has no attribute 'weight'"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    inventory = decoder_of(load_config(str(folder)))
    verdict = check(plan, inventory, None, Target("transformers", "compressed-tensors"))
    assert verdict.refused == {EMBEDDING: "w8g32: it loads no packed embedding"}
    assert verdict.nearest is not None
    assert differences(plan, verdict.nearest) == {EMBEDDING: KEEP}


def test_the_library_unpacks_an_embedding(source: MakeSource, planner: Planner, tmp_path: Path) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    folder = source(tie_word_embeddings=False)
    plan = planner(folder, "keep", embedding="w8g32")
    compress(Model(folder), plan, tmp_path / "out", format=FORMATS["compressed-tensors"])
    said = artifacts.read_object(tmp_path / "out" / "config.json")["quantization_config"]
    assert said["config_groups"]["group_0"]["targets"] == ["Embedding"]
    assert said["ignore"][0] == HEAD
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    own = {name.removeprefix(f"{EMBEDDING}."): t for name, t in tensors.items() if name.startswith(f"{EMBEDDING}.")}
    scheme = QuantizationScheme(
        targets=["Embedding"], weights={"num_bits": 8, "symmetric": True, "strategy": "group", "group_size": 32}
    )
    theirs = BaseCompressor.get_value_from_registry("pack-quantized").decompress(own, scheme)["weight"]
    assert torch.equal(theirs, in_memory(folder, plan).get_submodule(EMBEDDING).weight)


def test_an_independent_unpacker_reads_a_gptq_head(source: MakeSource, planner: Planner, tmp_path: Path) -> None:
    folder = source(tie_word_embeddings=False)
    plan = planner(folder, "w4g32", head="w8g32")
    compress(Model(folder), plan, tmp_path / "out", format=FORMATS["gptq"])
    said = artifacts.read_object(tmp_path / "out" / "config.json")["quantization_config"]
    assert said["lm_head"] is True
    assert said["dynamic"] == {r"+:^lm_head$": {"bits": 8, "group_size": 32, "sym": True}}
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    own = {name.removeprefix(f"{HEAD}."): t for name, t in tensors.items() if name.startswith(f"{HEAD}.")}
    expected = in_memory(folder, plan).get_submodule(HEAD).weight
    assert torch.equal(torch.from_numpy(unpackers.gptq(own, 8, 1)).to(expected.dtype), expected)


@pytest.mark.parametrize(
    ("form", "tied", "rules", "message"),
    [
        ("compressed-tensors", True, {"embedding": "w8g32"}, "no reader takes a packed embedding that is the head too"),
        ("gptq", True, {"head": "w8g32"}, "an embedding is not; keep it"),
        ("gptq", False, {"embedding": "w8g32"}, "an embedding is not; keep it"),
        ("gptq", False, {"head": "w5g32"}, "2, 3, 4, 8 bits"),
        ("gguf", False, {"embedding": "w8g16"}, "no type of llama.cpp holds these grids"),
    ],
)
def test_what_a_format_cannot_hold(
    source: MakeSource, planner: Planner, tmp_path: Path, form: str, tied: bool, rules: Any, message: str
) -> None:
    folder = source(tie_word_embeddings=tied)
    with pytest.raises(UserError, match=message):
        plan = planner(folder, "keep", **rules)
        compress(Model(folder), plan, tmp_path / "out", format=FORMATS[form])
    assert not (tmp_path / "out").exists()


def test_an_importance_that_an_embedding_has_not(source: MakeSource, planner: Planner) -> None:
    rule = {"format": "iq2_xxs", "method": "ggml"}
    for tied, match in ((False, "embedding"), (False, "head"), (True, "head")):
        folder = source(tie_word_embeddings=tied, hidden_size=256, name=f"{tied}-{match}")
        config = load_config(str(folder))
        problems = FORMATS["gguf"].problems(planner(folder, "keep", **{match: rule}), decoder_of(config), config)
        assert bool(problems) == (match == "embedding")
        assert not problems or "which the embedding has not; take q2_k" in problems[EMBEDDING]


VLLM, OLDER = Target("vllm", "compressed-tensors"), Target("vllm", "compressed-tensors", "0.19")


@pytest.mark.parametrize(
    ("target", "rules", "refused"),
    [
        (VLLM, {"embedding": "w8g32", "head": "w4g32"}, {}),
        (VLLM, {"head": "w3g32"}, {HEAD: "w3g32: it loads 4, 8 bits symmetric"}),
        (VLLM, {"embedding": "w8g32_asym"}, {EMBEDDING: "w8g32_asym: it loads nothing asymmetric"}),
        (VLLM, {"embedding": "w6g32"}, {EMBEDDING: "w6g32: it loads 2, 4, 8 bits symmetric"}),
        (VLLM._replace(device="cpu"), {"head": "w4g32"}, {HEAD: "w4g32: it loads no packed head"}),
        (OLDER, {"head": "w4g32"}, {HEAD: "w4g32: it loads no packed head"}),
        (Target("vllm", "gptq"), {"head": "w4g32"}, {}),
        (Target("transformers", "gptq"), {"head": "w4g32"}, {HEAD: "w4g32: it loads no packed head"}),
    ],
)
def test_who_loads_what(planner: Planner, source: MakeSource, target: Target, rules: Any, refused: Any) -> None:
    folder = source(tie_word_embeddings=False)
    plan = planner(folder, "w4g32", **rules)
    inventory = decoder_of(load_config(str(folder)))
    verdict = check(plan, inventory, None, target)
    assert verdict.refused == refused
    if refused:
        assert verdict.nearest is not None
        assert set(differences(plan, verdict.nearest)) == set(refused)


def test_diff_convert_and_inspect(source: MakeSource, planner: Planner, tmp_path: Path) -> None:
    folder = source(tie_word_embeddings=False)
    plan = planner(folder, "w4g32", head="w8g32")
    packed, again = tmp_path / "packed", tmp_path / "again"
    compress(Model(folder), plan, packed, format=FORMATS["compressed-tensors"])
    convert(open_checkpoint(packed), FORMATS["gptq"], again)
    first, second = open_checkpoint(packed), open_checkpoint(again)
    assert second.layouts[HEAD].format == Format(8, 32)
    found = diff(first, second)
    assert list(found) == [linear.address for linear in first.inventory.matrices]
    assert all(difference.error == 0 for difference in found.values())
    apart = diff(open_checkpoint(folder), first)
    assert apart[HEAD].error > 0
    assert apart[EMBEDDING].error == 0
    assert open_stored(packed).layouts[HEAD].bytes == first.layouts[HEAD].bytes
    told = CliRunner().invoke(app, ["inspect", str(packed)]).output
    assert "head: w8g32, " in told
    assert "embedding: bf16, " in told
    assert "14 linear modules, 4." in told


@pytest.mark.parametrize(("form", "tied"), [("gguf", True), ("gguf", False), ("compressed-tensors", False)])
def test_files_of_a_size_that_a_budget_says(source: MakeSource, tmp_path: Path, form: str, tied: bool) -> None:
    folder = source(tie_word_embeddings=tied)
    config = load_config(str(folder))
    inventory = decoder_of(config)

    def size(plan: Plan) -> int:
        return FORMATS[form].bytes(plan, inventory, config)

    scores = {
        linear.address: {f"w{bits}g32": linear.weights * 4.0**-bits for bits in (4, 8)} for linear in inventory.matrices
    }
    table = Sensitivity(model="tiny", identity="", scorer="measured", method="rtn", scores=scores)
    wanted = size(build_plan(PlanSpec.model_validate({"default": "w8g32"}), inventory, "tiny", "rtn")) - 8_000
    keys = {
        "file_bytes": wanted,
        "candidates": ["w4g32", "w8g32", "keep"],
        "outside": [each.kind for each in inventory.outside],
    }
    plan = budget_plan(BudgetSpec.model_validate(keys), inventory, "tiny", "rtn", table, size)
    assert [linear.address for linear in inventory.outside if linear.address in plan.modules] == [
        linear.address for linear in inventory.outside
    ]
    compress(Model(folder), plan, tmp_path / "out", format=FORMATS[form])
    assert 0.9 * wanted < weights_in(tmp_path / "out") == size(plan) <= wanted


@needs_llamacpp
@pytest.mark.parametrize("tied", [True, False])
def test_llama_cpp_computes_the_same(source: MakeSource, planner: Planner, tmp_path: Path, tied: bool) -> None:
    loaded = build("llama", tie_word_embeddings=tied, **WIDE)
    learn(loaded, 20)
    loaded.model.to(torch.float32).save_pretrained(tmp_path / "trained")
    loaded.tokenizer.save_pretrained(tmp_path / "trained")
    rules: dict[str, Any] = {"embedding": {"format": "q8_0", "method": "ggml"}} | ({} if tied else {"head": "w4g32"})
    compress(
        Model(tmp_path / "trained"),
        planner(tmp_path / "trained", "w4g32", **rules),
        tmp_path / "out",
        format=FORMATS["gguf"],
    )
    ours = Model(tmp_path / "out").load()
    tokens = ours.tokenizer(TEXT)["input_ids"][:60]
    with torch.no_grad():
        reference = ours.model(input_ids=torch.tensor([tokens])).logits[0]
    with opened(tmp_path / "out" / FILE) as other:
        found = other.logits(tokens)
    assert perplexity(found, tokens) == pytest.approx(perplexity(reference, tokens), rel=0.03)
    assert (found.argmax(-1) == reference.argmax(-1)).float().mean() > 0.9
