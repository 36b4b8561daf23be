"""What goes along with a checkpoint, and what its identity is made of: all that changes what it reads or writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny

from mixprec.checkpoint import integrity, opening
from mixprec.checkpoint.convert import convert
from mixprec.checkpoint.formats import checkpoint_format
from mixprec.compress import stream
from mixprec.core.errors import UserError
from mixprec.models import modelfiles
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.plan.rules import PlanSpec, build_plan

WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
TOOLS = "additional_chat_templates/tool_use.jinja"
#: Path -> whether it changes what the model reads or writes.
SIDE = {
    "chat_template.jinja": True,
    TOOLS: True,
    "chat_template.json": True,
    "generation_config.json": True,
    "tokenizer.model": True,
    "vocab.txt": True,
    "merges.txt": True,
    "special_tokens_map.json": True,
    "added_tokens.json": True,
    "preprocessor_config.json": True,
    "LICENSE": False,
    "LICENSE.txt": False,
    "NOTICE.md": False,
    "USE_POLICY.md": False,
}
#: Files that nobody reads.
REST = ("pytorch_model.bin", "consolidated.safetensors", "original/params.json", "optimizer.pt", "figure.png")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.write_checkpoint(tmp_path_factory.mktemp("plain") / "model", **WIDE)
    words = tiny.tokenizer()
    words.chat_template = {"default": "{{ messages[0].content }}", "tool_use": "TOOLS"}
    words.save_pretrained(folder)
    return folder


@pytest.fixture
def model(plain: Path, tmp_path: Path) -> Path:
    """A checkpoint with all that may lie beside one."""
    folder = shutil.copytree(plain, tmp_path / "model")
    for name in (*SIDE, *REST):
        path = folder / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_text("{}" if path.suffix == ".json" else name)
    for name in modelfiles.CURVES:  # of a student
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / ".gitattributes").write_text("")
    return folder


def compressed(model: Path, out: Path, form: str, default: str = "w4g32") -> Path:
    inventory = decoder_of(load_config(str(model)))
    plan = build_plan(PlanSpec.model_validate({"default": default}), inventory, str(model), "rtn")
    stream.compress(Model(model), plan, out, format=checkpoint_format(form))
    return out


@pytest.mark.parametrize("form", ["dense", "compressed-tensors", "gptq", "gguf"])
def test_what_changes_reading_and_writing_goes_along(
    model: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = compressed(model, tmp_path / "out", form)
    for name in SIDE:
        assert (out / name).read_bytes() == (model / name).read_bytes(), name
    assert not any((out / name).exists() for name in REST)
    said = " ".join(capsys.readouterr().err.split())
    assert f"{len(REST)} files that are no part of the model stay behind: consolidated.safetensors, figure.png" in said
    assert TOOLS in integrity.card_of(out)["files"]
    assert integrity.verify(out)
    (out / TOOLS).write_text("other tools")
    with pytest.raises(UserError, match=r"tool_use\.jinja"):
        integrity.verify(out)
    loaded = Model(out).encoder.tokenizer
    assert set(loaded.chat_template) == {"default", "tool_use"}


def test_a_conversion_takes_them_along_too(model: Path, tmp_path: Path) -> None:
    packed = compressed(model, tmp_path / "packed", "compressed-tensors")
    convert(opening.open_checkpoint(packed), checkpoint_format("gptq"), tmp_path / "gptq")
    for name in SIDE:
        assert (tmp_path / "gptq" / name).read_bytes() == (model / name).read_bytes(), name


def test_how_other_weights_were_packed_stays_behind(model: Path, tmp_path: Path) -> None:
    """vLLM and GPTQModel read these files beside weights; an adapter's configuration makes transformers look for it."""
    names = ("quantize_config.json", "quant_config.json", "hf_quant_config.json", "adapter_config.json")
    for name in names:
        (model / name).write_text('{"bits": 4}')
    out = compressed(model, tmp_path / "out", "dense")
    assert not any((out / name).exists() for name in names)


def test_named_templates_in_gguf(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf

    out = compressed(model, tmp_path / "out", "gguf")
    fields = gguf.GGUFReader(out / "model.gguf").fields
    assert fields["tokenizer.chat_templates"].contents() == ["tool_use"]
    assert fields["tokenizer.chat_template.tool_use"].contents() == "TOOLS" == (model / TOOLS).read_text()
    assert fields["tokenizer.chat_template"].contents() == "{{ messages[0].content }}"
    monkeypatch.setenv("MIXPREC_CACHE", str(tmp_path / "cache"))
    alone = shutil.copy(out / "model.gguf", tmp_path / "alone.gguf")
    found = Model(alone).encoder.tokenizer.chat_template
    assert found == {"default": "{{ messages[0].content }}", "tool_use": "TOOLS"}


@pytest.mark.parametrize("form", ["list", "text"])
def test_templates_in_the_tokenizers_configuration(tmp_path: Path, form: str) -> None:
    said: Any = [{"name": "default", "template": "A"}, {"name": "rag", "template": "B"}] if form == "list" else "A"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": said}))
    assert modelfiles.chat_templates(tmp_path) == ({"default": "A"} | ({"rag": "B"} if form == "list" else {}))
    (tmp_path / "chat_template.jinja").write_text("C")
    assert modelfiles.chat_templates(tmp_path) == {"default": "C"}  # as transformers: files replace all of them


def test_identity_is_all_that_changes_what_a_model_reads_or_writes(model: Path) -> None:
    before = Model(model).identity
    for name, counts in SIDE.items():
        text = (model / name).read_text()
        (model / name).write_text(text + " ")
        assert (Model(model).identity != before) == counts, name
        (model / name).write_text(text)
        assert Model(model).identity == before, name
    for name in (*REST, "README.md", "mixprec.json"):
        (model / name).write_text("something else")
        assert Model(model).identity == before, name


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", TOOLS])
def test_a_file_that_changes_is_seen_in_the_same_process(model: Path, name: str) -> None:
    before = Model(model).identity
    data = (model / name).read_bytes()
    changed = data[:-1] + bytes([data[-1] ^ 1])
    (model / name).with_suffix(".new").write_bytes(changed)
    (model / name).with_suffix(".new").replace(model / name)  # same size
    assert Model(model).identity != before


def test_weights_are_hashed_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Model(model).identity
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("read again"))
    assert Model(model).identity == before


def test_code_of_a_known_architecture_is_not_run_and_goes_along(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "modeling_my.py").write_text("raise SystemExit('ran')\n")
    assert not (compressed(model, tmp_path / "without", "dense") / "modeling_my.py").exists()  # nothing names it
    before = Model(model).identity
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_my.My", "AutoTokenizer": ["tokenization_my.My", None]}
    (model / "config.json").write_text(json.dumps(config))
    named = Model(model).identity
    (model / "modeling_my.py").write_text("raise SystemExit('ran, too')\n")
    assert len({before, named, Model(model).identity}) == 3
    capsys.readouterr()
    out = compressed(model, tmp_path / "out", "dense")
    assert (out / "modeling_my.py").read_text() == "raise SystemExit('ran, too')\n"
    said = " ".join(capsys.readouterr().err.split())
    assert "the configuration names code (modeling_my.My, tokenization_my.My); none of it was run" in said
