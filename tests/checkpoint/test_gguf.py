"""GGUF files: transformers and llama.cpp compute what the compressed model computes; sizes; what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import pieces
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from llamacpp import needs_llamacpp, opened, perplexity
from maps import address
from pydantic import ValidationError
from tiny import TEXT
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig
from typer.testing import CliRunner

from mixprec.checkpoint import compare
from mixprec.checkpoint.base import CheckpointFormat, check_plan
from mixprec.checkpoint.convert import convert
from mixprec.checkpoint.dense import DENSE
from mixprec.checkpoint.formats import checkpoint_format
from mixprec.checkpoint.gguf import tokenizer
from mixprec.checkpoint.gguf.reader import open_gguf
from mixprec.checkpoint.gguf.values import weight
from mixprec.checkpoint.gguf.writer import FILE
from mixprec.checkpoint.opening import open_checkpoint, open_stored
from mixprec.cli import app
from mixprec.compress.stream import compress
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.models import conversion, locate
from mixprec.models.config import load_config
from mixprec.models.encoding import Encoder
from mixprec.models.gguf import metadata
from mixprec.models.gguf.names import reordered
from mixprec.models.load import LoadedModel
from mixprec.models.locate import BUNDLED
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.numerics.formats import GGML
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import Plan, with_outside
from mixprec.recipe.parts import CheckpointSpec

GGUF = checkpoint_format("gguf")
#: Widths that types with blocks of 32 fit, down's rows those with 256 too.
WIDE = {"hidden_size": 64, "intermediate_size": 256, "head_dim": 16}
ROPE = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "llama 3's rope": {"rope_parameters": ROPE},
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": None},
    "gemma3_text": {
        "num_hidden_layers": 7,
        "sliding_window": 16,
        "query_pre_attn_scalar": 16,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    },
}
SLIDING = {kind: {"rope_type": "default", "rope_theta": 5_000.0} for kind in ("full_attention", "sliding_attention")}
#: Those with SentencePiece tokenizers: whether it puts a space in front.
PIECES = {"mistral": True, "gemma3_text": False}
PLANS: dict[str, dict[str, Any]] = {
    "types": {
        "default": "q4_0",
        "method": "ggml",
        "rules": [{"match": "*_gate", "format": "q8_0"}, {"match": ["last_down", "1_q"], "format": "keep"}],
    },
    "integers": {
        "default": "w4g32",
        "rules": [
            {"match": "*_down", "format": "w3g256"},
            {"match": "*_v", "format": "w4g32_asym"},
            {"match": "*_o", "format": "w8g64"},
            {"match": "last_up", "format": "keep"},
        ],
    },
}


def write(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Path:
    """A tiny model in a folder."""
    loaded = tiny.build(name.split()[0], **WIDE, **MODELS[name])
    if name in PIECES:
        loaded = LoadedModel(loaded.model, Encoder(pieces.tokenizer(PIECES[name]), loaded.encoder.rows))
    tiny.learn(loaded, 20)
    loaded.model.to(dtype).save_pretrained(folder)
    loaded.tokenizer.chat_template = "{{ messages }}"
    loaded.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return {name: write(tmp_path_factory.mktemp("source") / "model", name) for name in MODELS}


def plan_for(source: Path, spec: Mapping[str, Any]) -> Plan:
    inventory = decoder_of(load_config(str(source)))
    return build_plan(PlanSpec.model_validate(spec), inventory, str(source), "rtn")


def made(source: Path, spec: Mapping[str, Any], out: Path, form: CheckpointFormat = GGUF) -> Path:
    compress(Model(source), plan_for(source, spec), out, format=form)
    return out


def logits(loaded: LoadedModel, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = loaded.model(input_ids=torch.tensor([tokens])).logits[0]
    return found


def by_transformers(folder: Path) -> Any:
    """What its own reader makes of the file; of Mistral's it only knows that llama.cpp calls them Llama."""
    config = AutoConfig.from_pretrained(folder)
    known = {} if config.model_type == "mistral" else {"config": config}
    dequantized = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, quantization_config=dequantized, **known)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("plan", PLANS)
def test_all_readers_compute_the_compressed_model(
    sources: Mapping[str, Path], tmp_path: Path, name: str, plan: str
) -> None:
    source, spec = sources[name], PLANS[plan]
    packed = made(source, spec, tmp_path / "gguf")
    expected = Model(made(source, spec, tmp_path / "dense", DENSE)).load()
    loaded = Model(packed).load()
    tokens = loaded.tokenizer(TEXT)["input_ids"][:60]
    reference = logits(expected, tokens)
    for found in (logits(loaded, tokens), logits(LoadedModel(by_transformers(packed), None), tokens)):
        # The file has Gemma's norms as 1 + w, rounded to float32.
        assert torch.allclose(found, reference, rtol=0, atol=1e-4) if "gemma" in name else torch.equal(found, reference)
    config = load_config(str(source))
    inventory = decoder_of(config)
    assert (packed / FILE).stat().st_size == GGUF.bytes(plan_for(source, spec), inventory, config)
    _check_llama_cpp(packed / FILE, loaded, tokens, reference)


def _check_llama_cpp(path: Path, loaded: LoadedModel, tokens: list[int], reference: torch.Tensor) -> None:
    from mixprec.compress.ggml import library_path

    if library_path() is None:
        return
    with opened(path) as other:
        assert other.encode(TEXT, special=True) == loaded.tokenizer(TEXT)["input_ids"]
        found = other.logits(tokens)
    # Its activations are rounded to 8 bits before they meet packed weights.
    assert perplexity(found, tokens) == pytest.approx(perplexity(reference, tokens), rel=0.03)
    assert (found.argmax(-1) == reference.argmax(-1)).float().mean() > 0.9


@needs_llamacpp
@pytest.mark.parametrize(("name", "most"), [("llama", 0.05), ("mistral", 0.05), ("gemma3_text", 1e-3)])
def test_llama_cpp_computes_the_uncompressed_model(
    sources: Mapping[str, Path], tmp_path: Path, name: str, most: float
) -> None:
    """Without sliding windows, their own base, or the linear scaling Gemma's logits would change by 4e-3 to 0.4."""
    source = Model(sources[name]).load()
    tokens = source.tokenizer(TEXT)["input_ids"][:60]
    with opened(made(sources[name], {"default": "keep"}, tmp_path / "out") / FILE) as other:
        assert torch.allclose(other.logits(tokens), logits(source, tokens), rtol=0, atol=most)


@needs_llamacpp
def test_k_quants_with_importance_in_both_readers(sources: Mapping[str, Path], tmp_path: Path) -> None:
    from mixprec.calibration import data
    from mixprec.calibration.spec import CalibrationSpec

    source = sources["llama"]
    (tmp_path / "text.txt").write_text(TEXT * 4, encoding="utf-8")
    words = Model(source).load().encoder
    spec = CalibrationSpec.model_validate(
        {"sources": [{"text": str(tmp_path / "text.txt")}], "samples": 4, "tokens": 32}
    )
    calibration = data.load(spec, words, str, 256)
    plan = plan_for(source, {"default": "q2_k", "method": "ggml", "rules": [{"match": "last_down", "format": "q6_k"}]})
    assert {str(module.format) for module in plan.modules.values()} == {"q2_k", "iq4_nl", "q6_k"}
    for form, out in ((GGUF, "gguf"), (DENSE, "dense")):
        compress(Model(source), plan, tmp_path / out, calibration=calibration, format=form)
    compress(Model(source), plan, tmp_path / "plain", format=DENSE)
    loaded = Model(tmp_path / "gguf").load()
    tokens = loaded.tokenizer(TEXT)["input_ids"][:60]
    reference = logits(Model(tmp_path / "dense").load(), tokens)
    assert torch.equal(logits(loaded, tokens), reference)
    assert not torch.equal(logits(Model(tmp_path / "plain").load(), tokens), reference)
    _check_llama_cpp(tmp_path / "gguf" / FILE, loaded, tokens, reference)


@pytest.mark.parametrize(("dtype", "kind"), [(torch.float16, "f16"), (torch.bfloat16, "bf16"), (torch.float32, "f32")])
def test_what_is_kept_has_its_own_type(tmp_path: Path, dtype: torch.dtype, kind: str) -> None:
    source = write(tmp_path / "source", "llama", dtype)
    out = made(source, {"default": "w4g64", "rules": [{"match": "last_mlp", "format": "keep"}]}, tmp_path / "out")
    file = open_gguf(out / FILE)
    assert file.tensors["model.layers.1.mlp.up_proj.weight"].kind == kind
    assert file.tensors["model.embed_tokens.weight"].kind == kind
    assert file.tensors["model.norm.weight"].kind == "f32"
    assert file.tensors["model.layers.0.mlp.up_proj.weight"].kind == "q4_0"
    assert file.tensors["model.layers.0.mlp.up_proj.weight"].bits == 4.5
    assert file.layers == 2
    weights = Model(source).load().model.state_dict()
    for name in ("model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.layers.0.input_layernorm.weight"):
        assert torch.equal(weight(file, name), weights[name].float())
    restored = Model(made(source, {"default": "w4g64"}, tmp_path / "dense", DENSE)).load().model.state_dict()
    for kind_of in ("q", "k", "down"):  # rows in transformers' order again; values not yet rounded to 16 bits
        name = f"{address(1, kind_of)}.weight"
        assert torch.equal(weight(file, name).to(dtype).float(), restored[name])


def test_types_of_embedding_and_head(sources: Mapping[str, Path], tmp_path: Path) -> None:
    outside = [{"match": "embedding", "format": "q4_0"}, {"match": "head", "format": "q8_0"}]
    spec = PLANS["types"] | {"rules": [*PLANS["types"].get("rules", []), *outside]}
    source = sources["llama"]
    file = open_gguf(made(source, spec, tmp_path / "out") / FILE)
    assert file.tensors["model.embed_tokens.weight"].kind == "q4_0"
    assert file.tensors["lm_head.weight"].kind == "q8_0"
    config = load_config(str(source))
    assert GGUF.bytes(plan_for(source, spec), decoder_of(config), config) == file.path.stat().st_size


def test_a_recipe_says_their_types_in_short(sources: Mapping[str, Path]) -> None:
    source = sources["llama"]
    inventory = decoder_of(load_config(str(source)))
    plan = plan_for(source, PLANS["types"])
    short = CheckpointSpec.model_validate({"format": "gguf", "embedding": "q4_0", "head": "q8_0"})
    found = with_outside(plan, inventory, short.outside)
    assert list(found.modules) == [linear.address for linear in inventory.matrices]
    lines = [found.modules[linear.address] for linear in inventory.outside]
    assert [(str(line.format), line.method) for line in lines] == [("q4_0", "ggml"), ("q8_0", "ggml")]
    with pytest.raises(UserError, match=r"checkpoint.embedding: q4_0: the plan has q8_0 for it .*say it once"):
        other = CheckpointSpec.model_validate({"format": "gguf", "embedding": "q8_0"})
        with_outside(with_outside(plan, inventory, other.outside), inventory, short.outside)
    kept = plan_for(source, {"default": "keep"})
    assert with_outside(kept, inventory, short.outside) is kept  # it is the original, of which nothing is written
    with pytest.raises(ValidationError, match="types for them need gguf"):
        CheckpointSpec.model_validate({"format": "dense", "embedding": "q4_0"})


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("qwen3", {"head": "q8_0"}, "checkpoint.head: q8_0: this model's head is its embedding"),
        ("llama", {"embedding": "q6_k"}, "q6_k wants rows of a multiple of 256"),
    ],
)
def test_types_that_embedding_and_head_cannot_have(
    sources: Mapping[str, Path], model: str, options: Mapping[str, str], message: str
) -> None:
    short = CheckpointSpec.model_validate({"format": "gguf", **options})
    config = load_config(str(sources[model]))
    with pytest.raises(UserError, match=message):
        plan = with_outside(plan_for(sources[model], {"default": "w4g32"}), decoder_of(config), short.outside)
        check_plan(GGUF, plan, decoder_of(config), config)


def test_a_killed_run_ends_with_the_same_bytes(sources: Mapping[str, Path], tmp_path: Path) -> None:
    source, spec = sources["llama"], PLANS["integers"]
    whole = made(source, spec, tmp_path / "whole")

    def stop(address: str, report: object) -> None:
        if address.startswith("model.layers.1.mlp"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(Model(source), plan_for(source, spec), tmp_path / "killed", format=GGUF, on_module=stop)
    assert not (tmp_path / "killed").exists()
    assert (tmp_path / ".killed.blocks" / "00001.safetensors").is_file()
    killed = made(source, spec, tmp_path / "killed")
    assert (killed / FILE).read_bytes() == (whole / FILE).read_bytes()
    assert Model(killed).identity != Model(source).identity


def test_metadata(sources: Mapping[str, Path], tmp_path: Path) -> None:
    reader = gguf.GGUFReader(made(sources["llama"], PLANS["types"], tmp_path / "out") / FILE)
    found = {key: field.contents() for key, field in reader.fields.items()}
    assert found["general.architecture"] == "llama"
    assert found["llama.attention.head_count_kv"] == 2
    assert found["llama.rope.freq_base"] == 10_000
    assert found["tokenizer.ggml.model"] == "gpt2"
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.eos_token_id"]) == (0, 1)
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert found["tokenizer.chat_template"] == "{{ messages }}"
    assert len(found["tokenizer.ggml.tokens"]) == len(found["tokenizer.ggml.token_type"]) == 384
    assert found["tokenizer.ggml.token_type"][:3] == [3, 3, 1]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"default": "any4g64", "method": "anyk"}, "any4g64: llama.cpp has no code books per row; with method ggml"),
        ({"default": "w3g16"}, "w3g16: no type of llama.cpp holds these grids exactly.*nearest are"),
        ({"default": "w8g32_asym"}, "at most 8 bits, 7 with zero points"),
    ],
)
def test_plans_that_no_type_holds(sources: Mapping[str, Path], tmp_path: Path, spec: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"(?s)checkpoint.format: gguf can't hold this plan.*{message}"):
        made(sources["llama"], spec, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("gemma2", {}, "gpt_oss, glm4_moe, this is gemma2"),
        ("mistral", {"sliding_window": 16}, "sliding windows"),
        ("gemma3_text", {"hidden_activation": "silu"}, "with gelu_pytorch_tanh, this model has silu"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 2}, "every 6th layer"),
        ("gemma3_text", {"query_pre_attn_scalar": 9}, "llama.cpp computes with 8, this model has 9"),
        ("gemma3_text", {"query_pre_attn_scalar": 8, "final_logit_softcapping": 30.0}, "final_logit_softcapping: "),
        ("gemma3_text", {"query_pre_attn_scalar": 8, "rope_parameters": SLIDING}, "by base 10000, this model has"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}, "are yarn"),
        ("llama", {"hidden_act": "gelu"}, "this model has gelu"),
        ("llama", {"mlp_bias": True}, "biases of the MLP"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}, "sliding windows"),
    ],
)  # fmt: skip
def test_models_that_are_not_written(model: str, options: Any, message: str) -> None:
    config = AutoConfig.for_model(model, **{**tiny.SHAPE, "vocab_size": 64, **options})
    assert message in str(metadata.problem(config))


def test_a_linear_rope() -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    config = AutoConfig.for_model("llama", **tiny.SHAPE, vocab_size=64, rope_parameters=rope)
    assert metadata.problem(config) is None
    assert metadata.rope_factors(config) is None


def test_rope_factors_are_those_of_transformers() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = AutoConfig.for_model("llama", **{**tiny.SHAPE, "head_dim": 64, "vocab_size": 64, "rope_parameters": ROPE})
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1 / 10_000 ** (torch.arange(0, 64, 2) / 64)
    factors = metadata.rope_factors(config)
    assert factors is not None
    assert torch.allclose(plain / factors, stretched, rtol=1e-6)
    assert 1 < len(factors.unique()) < 32


@given(st.sampled_from(["q", "k", "up"]), st.integers(1, 4), st.integers(1, 4))
def test_reordered_rows_come_back(kind: str, heads: int, half: int) -> None:
    config = AutoConfig.for_model("llama", hidden_size=8 * heads, num_attention_heads=heads, num_key_value_heads=heads)
    rows = torch.arange(heads * 2 * half * 3).reshape(-1, 3)
    name = f"{address(1, kind)}.weight"
    there = reordered(name, rows, config)
    assert torch.equal(reordered(name, there, config, back=True), rows)
    assert kind == "up" or half == 1 or not torch.equal(there, rows)


def _split(regex: str, **model: Any) -> dict[str, Any]:
    steps = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ]
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "model": model}


def test_pre_tokenizers() -> None:
    digits = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        ],
    }
    where = Path("tokenizer.json")
    assert tokenizer.pre_tokenizer({"pre_tokenizer": digits, "model": {}}, where) == "smollm"
    # As they stand in Llama 3's and Qwen 2's tokenizer.json.
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    rest = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    assert tokenizer.pre_tokenizer(_split(words + "{1,3}" + rest, ignore_merges=True), where) == "llama-bpe"
    assert tokenizer.pre_tokenizer(_split(words + rest), where) == "qwen2"
    with pytest.raises(UserError, match="pre_tokenizer: splits text in none of the ways"):
        tokenizer.pre_tokenizer(_split("x"), where)


@pytest.mark.parametrize("change", ["unigram", "pre_tokenizer", "gone"])
def test_tokenizers_that_llama_cpp_would_read_wrongly(sources: Mapping[str, Path], tmp_path: Path, change: str) -> None:
    source = write(tmp_path / "source", "llama")
    path = source / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    if change == "unigram":
        data["model"] = {"type": "Unigram"}
    else:
        data["pre_tokenizer"] = {"type": "Whitespace"}
    path.write_text(json.dumps(data), encoding="utf-8")
    if change == "gone":
        path.unlink()
    expected = {"unigram": "this is another kind", "pre_tokenizer": "pre_tokenizer", "gone": "no tokenizer.json"}
    with pytest.raises(UserError, match=expected[change]):
        made(source, PLANS["types"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_files(sources: Mapping[str, Path], tmp_path: Path) -> None:
    out = made(sources["llama"], PLANS["types"], tmp_path / "out")
    data = (out / FILE).read_bytes()
    for keep in (0, 3, 10, 200, len(data) // 2, len(data) - 100):
        (out / FILE).write_bytes(data[:keep])
        with pytest.raises(UserError, match=r"no GGUF file|truncated or damaged"):
            open_gguf(out / FILE)
        with pytest.raises(UserError, match=r"mixprec\.json has \d+"):
            Model(out).load()
    with pytest.raises(UserError, match="no such file"):
        open_gguf(tmp_path / "nowhere.gguf")


def test_an_architecture_that_is_not_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"architecture 'mamba' is not read; read are llama, qwen2, qwen3, gemma3"):
        open_gguf(tmp_path / "other.gguf")


@pytest.mark.slow
def test_a_file_that_others_wrote() -> None:
    """The embedded model's: its Q4_1 weights are those that transformers makes of it."""
    try:
        path = locate._bundled_gguf()
    except UserError as problem:
        pytest.skip(str(problem))
    file = open_gguf(path)
    assert file.tensors["model.layers.3.self_attn.q_proj.weight"].kind == "q4_1"
    with artifacts.open_tensors(Path(locate.resolve(BUNDLED)) / "model.safetensors") as stored:
        for name in ("model.layers.3.self_attn.q_proj.weight", "model.layers.3.mlp.down_proj.weight"):
            assert torch.equal(weight(file, name).half(), stored.get_tensor(name))


@pytest.mark.parametrize("name", PIECES)
def test_a_file_on_its_own_is_inspected(sources: Mapping[str, Path], tmp_path: Path, name: str) -> None:
    packed = made(sources[name], PLANS["integers"], tmp_path / "gguf")
    alone, dense = open_checkpoint(packed / FILE), open_checkpoint(sources[name])
    assert [module.address for module in alone.inventory.matrices] == list(dense.layouts)
    assert alone.layouts["model.layers.0.mlp.down_proj"].name == "q3_k"
    assert 0 < compare.diff(dense, alone)["model.layers.0.mlp.down_proj"].error < 0.5
    found, expected = (each.tensor("model.layers.1.input_layernorm.weight") for each in (alone, dense))
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)


#: What transformers leaves out of GGUF files' metadata: name -> shape of a model whose file alone says all of it.
ALONE: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": ROPE | {"rope_theta": 5e5, "original_max_position_embeddings": 8192}},
    "llama linear": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    "qwen3": {},
    "gemma3_text": MODELS["gemma3_text"],
}


@pytest.mark.parametrize("name", ALONE)
def test_a_file_on_its_own_is_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("MIXPREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(MODELS, name, ALONE[name])
    source = write(tmp_path / "source", name)
    packed = made(source, {"default": "q8_0", "method": "ggml"}, tmp_path / "gguf")
    alone = Path(shutil.copy(packed / FILE, tmp_path / "alone.gguf"))
    with conversion.without_converting():
        header = load_config(str(alone))
    original, converted = (Model(path).load().model for path in (packed, alone))
    for key in ("rope_parameters", "head_dim", "query_pre_attn_scalar"):
        for config in (header, converted.config, open_checkpoint(alone).shapes):
            assert getattr(config, key, None) == getattr(original.config, key, None)
    assert open_stored(alone).inventory == decoder_of(header)  # by its metadata, without transformers
    tokens = torch.arange(2, 60)[None]
    with torch.no_grad():
        assert torch.allclose(converted(tokens).logits, original(tokens).logits, rtol=0, atol=0.02)


def test_inspect_and_diff_read_it(sources: Mapping[str, Path], tmp_path: Path) -> None:
    source, spec = sources["llama"], PLANS["integers"]
    packed = made(source, spec, tmp_path / "gguf")
    dense = made(source, spec, tmp_path / "dense", DENSE)
    for path in (packed, packed / FILE):
        found = open_checkpoint(path)
        assert found.container == "gguf"
        assert (open_stored(path).layouts, open_stored(path).inventory) == (found.layouts, found.inventory)
        kinds = {module.label: str(found.layouts[module.address].format) for module in found.inventory.linears}
        assert (kinds["1_q"], kinds["1_down"], kinds["1_v"], kinds["1_o"]) == ("q4_0", "q3_k", "q5_0", "q8_0")
        assert kinds["2_up"] == "keep"
        assert found.layouts["model.layers.0.self_attn.o_proj"].bytes == 64 * 64 // 32 * 34
        assert {item.error for item in compare.diff(open_checkpoint(dense), found).values()} == {0.0}
    result = CliRunner().invoke(app, ["inspect", str(packed / FILE)])
    assert result.exit_code == 0, result.output
    assert "q3_k" in result.output
    with pytest.raises(UserError, match=r"no codes and scales of another format"):
        convert(open_checkpoint(packed), checkpoint_format("gptq"), tmp_path / "gptq")


def test_packed_integers_become_gguf_without_loss(sources: Mapping[str, Path], tmp_path: Path) -> None:
    source = write(tmp_path / "source", "llama", torch.float16)
    spec = {"default": "w4g32", "rules": [{"match": "*_down", "format": "w8g64"}]}
    gptq = made(source, spec, tmp_path / "gptq", checkpoint_format("gptq"))
    convert(open_checkpoint(gptq), GGUF, tmp_path / "gguf")
    differences = compare.diff(open_checkpoint(gptq), open_checkpoint(tmp_path / "gguf"))
    kept = {("f16", 0.0)}  # embedding and head
    assert {(item.format_b, item.error) for item in differences.values()} == {("q4_0", 0.0), ("q8_0", 0.0)} | kept
    loaded = Model(tmp_path / "gguf").load()
    tokens = loaded.tokenizer(TEXT)["input_ids"][:40]
    assert torch.isfinite(logits(loaded, tokens)).all()
    assert "quantization_config" not in artifacts.read_json(tmp_path / "gguf" / "config.json")


def test_an_incomplete_file(sources: Mapping[str, Path], tmp_path: Path) -> None:
    packed = made(sources["llama"], PLANS["types"], tmp_path / "out")
    config = artifacts.read_json(packed / "config.json")
    artifacts.write_json(packed / "config.json", config | {"num_hidden_layers": 3})
    with pytest.raises(UserError, match=r"missing weights: 9, first model\.layers\.2\.self_attn\.q_proj\.weight"):
        open_checkpoint(packed)


def test_a_type_that_is_not_read(sources: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = made(sources["llama"], PLANS["types"], tmp_path / "out")
    monkeypatch.delitem(GGML, "q8_0")
    with pytest.raises(UserError, match=r"gate_proj\.weight: type q8_0 is not read; read are f16"):
        _ = open_checkpoint(packed).layouts
