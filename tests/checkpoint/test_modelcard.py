"""Model cards: what the hub reads of them, checked with its own library, and what stands in them for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from huggingface_hub import EvalResult, ModelCard, metadata_load
from typer.testing import CliRunner

from mixprec import recipe
from mixprec.checkpoint import licences
from mixprec.checkpoint.formats import FORMATS
from mixprec.checkpoint.modelcard import Told, base_model, model_card
from mixprec.cli import app
from mixprec.core.errors import UserError
from mixprec.models.config import load_config
from mixprec.models.locate import BUNDLED
from mixprec.models.maps import decoder_of
from mixprec.pipeline.cards import evaluated
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import Plan


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A folder that a card's licence is read from."""
    (tmp_path / "base").mkdir()
    return tmp_path / "base"


def card(
    source: Path,
    checkpoint: Path,
    format: str = "compressed-tensors",
    told: Told = Told(),
    model: str = "",
    **plan: Any,
) -> ModelCard:
    config = load_config(str(checkpoint))
    inventory = decoder_of(config)
    spec = PlanSpec.model_validate({"default": "w4g16"} | plan)
    made: Plan = build_plan(spec, inventory, model or str(checkpoint), "rtn")
    text = model_card(made, inventory, config, source, FORMATS[format], told)
    assert text == model_card(made, inventory, config, source, FORMATS[format], told)
    (source / "card.md").write_text(text)
    assert metadata_load(source / "card.md") == ModelCard(text).data.to_dict()
    return accepted(ModelCard(text))


def accepted(found: ModelCard) -> ModelCard:
    """What of the hub's check of a card needs no network: types, known names, ids."""
    data = found.data.to_dict()
    assert data.get("license", "mit") in licences.KNOWN
    if data.get("license") == "other":
        assert isinstance(data["license_name"], str)
    if "base_model" in data:
        assert base_model(BUNDLED, Path(), data["base_model"]) == data["base_model"]
        assert data["base_model_relation"] == "quantized"
    assert data["pipeline_tag"] == "text-generation" and data.get("library_name") in ("transformers", None)
    assert all(isinstance(tag, str) and tag for tag in data["tags"]) and len(set(data["tags"])) == len(data["tags"])
    return found


def test_the_hub_reads_base_licence_and_tags(folder: Path, tiny_checkpoint: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: MIT\ntags: [x]\nbase_model: someone/else\n---\n# Base\n")
    rules = [{"match": "last_mlp", "format": "w8g16"}, {"match": "1_q", "format": "keep"}]
    found = card(folder, tiny_checkpoint, told=Told("me/tiny"), rules=rules)
    assert found.data.to_dict() == {
        "base_model": "me/tiny",
        "base_model_relation": "quantized",
        "license": "mit",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["mixprec", "compressed-tensors", "4-bit", "8-bit"],
    }
    for text in ("# tiny 6.93 bits", "[me/tiny](https://huggingface.co/me/tiny)", "AutoModelForCausalLM", ": 1_q."):
        assert text in found.text
    assert (
        "| vllm | loads" not in found.text and "vllm serve" not in found.text
    )  # q alone is kept, and vLLM fuses q, k and v


@pytest.mark.parametrize(
    ("model", "source", "given", "expected"),
    [
        (BUNDLED, "x", None, "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("owner/name", "x", None, "owner/name"),
        ("/models/mine", "x", None, None),
        ("./mine", "x", None, None),
        ("model.gguf", "x", None, None),
        ("/c", "/cache/hub/models--owner--some.name/snapshots/0a1b", None, "owner/some.name"),
        ("/models/mine", "x", "owner/name", "owner/name"),
    ],
)
def test_a_base_is_named_where_its_id_is_known(
    model: str, source: str, given: str | None, expected: str | None
) -> None:
    assert base_model(model, Path(source), given) == expected


def test_a_local_folder_is_no_base_whatever_its_name_or_its_parents(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    # The path looks like an id, and the card names what this model was tuned from: neither is its id.
    (tmp_path / "runs" / "mine" / "README.md").write_text("---\nbase_model: meta-llama/Llama-3.1-8B\n---\n")
    assert base_model("runs/mine", Path("runs/mine")) is None
    (tmp_path / "runs" / "mine" / "README.md").write_text(
        "---\nbase_model: [a/b]\nbase_model_relation: quantized\n---\n"
    )
    assert base_model("runs/mine", Path("runs/mine")) == "a/b"


@pytest.mark.parametrize("given", ["", "mine", "/a/b", "a/b/c", "a b/c", "../x", "a/--x", "https://huggingface.co/a/b"])
def test_a_base_that_is_no_id_is_refused_before_any_work(tiny_checkpoint: Path, tmp_path: Path, given: str) -> None:
    with pytest.raises(UserError, match="is no id of the hub; write owner/name"):
        base_model("x", Path("x"), given)
    variants = {"uniform": {"plan": {"default": "w2g16"}}}
    parts: dict[str, Any] = {"traces": None, "importance": None, "variants": variants}
    recipe_file = tiny.write_recipe(tmp_path / "r.yaml", tiny_checkpoint, tmp_path / "t", **parts)
    with pytest.raises(UserError, match="is no id of the hub"):
        recipe.load(recipe_file, [f"model.base_model={json.dumps(given)}"])
    plan = ["plan", str(recipe_file), "--variant", "uniform", "--out", str(tmp_path / "plan.json")]
    CliRunner().invoke(app, plan, catch_exceptions=False)
    out = tmp_path / "out"
    words = ["compress", str(tmp_path / "plan.json"), "--out", str(out), "--base-model", given]
    assert isinstance(CliRunner().invoke(app, words).exception, UserError) and not out.exists()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {}),
        ({"README.md": "# no front matter"}, {}),
        ({"README.md": "---\nlicense: apache-2.0\n---\n"}, {"license": "apache-2.0"}),
        ({"README.md": "---\r\nlicense: apache-2.0\r\n---\r\n"}, {"license": "apache-2.0"}),
        ({"README.md": "---\nlicense: [llama3.1]\n---\n"}, {"license": "llama3.1"}),
        ({"README.md": "---\nlicense: My own (v2)\n---\n"}, {"license": "other", "license_name": "my-own-v2"}),
        (
            {"README.md": "---\nlicense: other\nlicense_name: qwen\nlicense_link: LICENSE\n---\n"},
            {"license": "other", "license_name": "qwen", "license_link": "LICENSE"},
        ),
        ({"README.md": "---\nlicense: {a: [\n---\n", "LICENSE": "MIT License Copyright (c) x"}, {"license": "mit"}),
        ({"LICENSE.txt": "  Apache License\n Version 2.0, January 2004\n"}, {"license": "apache-2.0"}),
        (
            {"LICENSE": "Modified MIT License\n\nPermission"},
            {"license": "other", "license_name": "of-the-base-model", "license_link": "LICENSE"},
        ),
        (
            {"LICENSE": "MIT License Copyright (c) x" + " Not for weapons." * 200},
            {"license": "other", "license_name": "of-the-base-model", "license_link": "LICENSE"},
        ),
    ],
)
def test_licences(folder: Path, tiny_checkpoint: Path, files: dict[str, str], expected: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_bytes(text.encode())
    assert licences.licence_of(folder) == expected
    data = card(folder, tiny_checkpoint).data.to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == expected


@pytest.mark.parametrize(
    ("format", "plan", "loads", "not_loads"),
    [
        ("dense", {"default": "any3g16", "method": "anyk"}, ["transformers", "vllm"], ["llama.cpp"]),
        ("compressed-tensors", {}, ["transformers", "vllm"], ["llama.cpp"]),
        ("gguf", {"default": "q4_0", "method": "ggml"}, ["llama.cpp", "transformers", "vllm"], []),
    ],
)
def test_it_says_what_loads_it(
    folder: Path, tiny_checkpoint: Path, format: str, plan: dict[str, Any], loads: list[str], not_loads: list[str]
) -> None:
    found = card(folder, tiny_checkpoint, format, **plan).text
    for name in loads:
        assert f"| {name} | loads" in found
    for name in not_loads:
        assert f"| {name} | does not load: " in found
    assert ("llama-cli -m" in found) == (format == "gguf") and ("from_pretrained" in found) == (format != "gguf")


def test_scores_are_results_for_the_hub(folder: Path, tiny_checkpoint: Path) -> None:
    one = EvalResult("text-generation", "yale-nlp/FOLIO", "FOLIO", "accuracy", 61.5, dataset_split="validation")
    found = card(folder, tiny_checkpoint, told=Told("me/tiny", scores=[one]))
    assert found.data.eval_results is not None and found.data.eval_results[0].metric_value == 61.5
    assert found.data.model_name == "tiny w4g16"


def test_text_of_others_stays_text(folder: Path, tiny_checkpoint: Path) -> None:
    calibration = {"samples": 1, "tokens": 2, "seed": 0, "sources": [{"kind": "text", "name": "a`|b\n# c<script>"}]}
    yaml = "title: '```\n# out <b>'\n"
    found = card(folder, tiny_checkpoint, told=Told(calibration=calibration, recipe=yaml), model="x/[b](http://a)<i>")
    assert "<i>" not in found.text.replace("\\", "").partition("```yaml")[0].replace("&lt;i", "")
    assert "\n# c" not in found.text and "````yaml" in found.text


def test_results_stand_beside_the_originals_with_intervals() -> None:
    part = {"perplexity": 1.5, "kl_mean": 0.1, "kl_mean_ci": [0.08, 0.12], "top1_agreement": 0.9, "tokens": 1200}
    score = {"mean": 0.5, "ci": [0.4, 0.6], "n": 203, "seeds": 3}
    row = {**part, "text": None, "benchmarks": {"folio": {"title": "FOLIO", "accuracy": score}}}
    original = {
        **part,
        "perplexity": 1.25,
        "benchmarks": {"folio": {"title": "FOLIO", "accuracy": score | {"mean": 0.7}}},
    }
    text = evaluated(row, original, {"traces": {"tokens": 1200}})
    assert "| held-out traces, 1,200 tokens | perplexity | 1.500 | 1.250 |" in text
    assert "| 0.100 [0.0800, 0.120] | 0 |" in text and "| 90.0% | 100% |" in text
    assert "| FOLIO | accuracy, 203 questions × 3 seeds | 50.0% [40.0%, 60.0%] | 70.0% [40.0%, 60.0%] |" in text
    assert "| perplexity | 1.500 | – |" in evaluated(row, {}, {"traces": {"tokens": 1200}})
    assert evaluated({"modules_quantized": 3}, {}, None) == ""


def test_a_run_and_the_verbs_name_the_base(tiny_checkpoint: Path, tmp_path: Path) -> None:
    traces = tiny.write_traces(tmp_path / "t.jsonl")
    variants = {"small": {"plan": {"default": "w4g16"}}, "original": {"plan": {"default": "keep"}}}
    parts = {"importance": None, "traces": None, "variants": variants, "checkpoint": {"format": "compressed-tensors"}}
    tiny.write_recipe(tmp_path / "r.yaml", tiny_checkpoint, traces, **parts)
    out = tmp_path / "run"
    words = ["run", str(tmp_path / "r.yaml"), "--out", str(out), "--set", "model.base_model=me/tiny"]
    CliRunner().invoke(app, words, catch_exceptions=False)
    checkpoint = out / "variants" / "small" / "checkpoint"
    found = accepted(ModelCard((checkpoint / "README.md").read_text()))
    summary = json.loads((out / "summary.json").read_text())
    original = summary["variants"]["original"]["perplexity"]
    assert found.data.base_model == "me/tiny" and f"| {original:.4g}" in found.text and "mixprec run" in found.text
    assert str(tiny_checkpoint) not in found.text.partition("## Reproduce")[0]
    convert = ["convert", str(checkpoint), "--format", "dense", "--out", str(tmp_path / "dense")]
    CliRunner().invoke(app, convert, catch_exceptions=False)
    # A copy of a quantized copy names the base that its card names.
    assert accepted(ModelCard((tmp_path / "dense" / "README.md").read_text())).data.base_model == "me/tiny"
