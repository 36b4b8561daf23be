from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rounding import round_in_memory
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mixprec.compress.module import KEPT, ModuleReport
from mixprec.compress.stream import compress
from mixprec.core.errors import UserError
from mixprec.models import locate
from mixprec.models.config import load_config
from mixprec.models.load import LoadedModel
from mixprec.models.locate import BUNDLED
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.plan.bits import account
from mixprec.plan.schema import Plan

Make = Callable[..., Path]
Planner = Callable[..., Plan]

TOKENS = torch.arange(2, 34).unsqueeze(0)
UP = "model.layers.1.mlp.up_proj"


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        ("llama", torch.bfloat16),
        ("qwen2", torch.float16),
        ("qwen3", torch.bfloat16),
        ("mistral", torch.float32),
        ("gemma", torch.bfloat16),
        ("gemma2", torch.bfloat16),
        ("gemma3_text", torch.float16),
    ],
)
def test_the_reloaded_checkpoint_has_the_logits_of_the_compressed_model(
    checkpoint: Make, planner: Planner, tmp_path: Path, architecture: str, dtype: torch.dtype
) -> None:
    source = checkpoint(architecture, dtype)
    plan = planner(source, "w3g16", last_mlp="keep", last_attn="w4g12_asym")
    on_disk = compress(Model(source), plan, tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    original = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    before = logits(original)
    round_in_memory(original, plan)
    assert reloaded.dtype == dtype
    assert torch.equal(logits(reloaded), logits(original))
    assert not torch.equal(before, logits(original))
    assert {name: report.format for name, report in on_disk.items()} == {n: str(f) for n, f in plan.formats.items()}
    assert list(on_disk) == list(plan.modules)


def test_a_model_loaded_in_a_wider_type_gets_the_stored_values(
    checkpoint: Make, planner: Planner, tmp_path: Path
) -> None:
    source = checkpoint("llama", torch.bfloat16)
    plan = planner(source, "w3g16")
    compress(Model(source), plan, tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    wide = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    round_in_memory(wide, plan, stored=torch.bfloat16)
    assert torch.equal(logits(reloaded), logits(wide))


def test_only_the_planned_module_changes(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint()
    seen: list[tuple[str, ModuleReport]] = []
    reports = compress(
        Model(source),
        planner(source, "keep", last_up="w3g16"),
        tmp_path / "out",
        on_module=lambda address, report: seen.append((address, report)),
    )
    before, after = weights(source), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == [f"{UP}.weight"]
    assert dict(seen) == reports
    assert len(seen) == 14
    difference = (before[f"{UP}.weight"].double() - after[f"{UP}.weight"].double()).norm()
    expected = float(difference / before[f"{UP}.weight"].double().norm())
    assert reports[UP].relative_error == pytest.approx(expected, rel=1e-5)
    assert 0.05 < expected < 0.5
    assert all(report == KEPT for address, report in reports.items() if address != UP)


def test_what_is_kept_is_copied_byte_for_byte(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint()
    compress(Model(source), planner(source, "keep"), tmp_path / "out")
    kept = names(source) - {"training_args.bin"}
    assert names(tmp_path / "out") == kept | {"mixprec.json", "README.md"}
    for name in kept:
        assert (source / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name


def test_weights_may_be_read_by_whoever_may_read_the_folder(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint()
    compress(Model(source), planner(source, "w3g16"), tmp_path / "out")
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert modes["model.safetensors"] == modes["mixprec.json"]


def test_shards_and_index_mirror_the_source(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint(shard="10KB")
    plan = planner(source, "w3g16")
    assert len(list(source.glob("*.safetensors"))) > 2
    compress(Model(source), plan, tmp_path / "out")
    name = "model.safetensors.index.json"
    before, after = (json.loads((folder / name).read_text()) for folder in (source, tmp_path / "out"))
    assert after["weight_map"] == before["weight_map"]
    assert after["metadata"]["total_size"] == before["metadata"]["total_size"]
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    original = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    round_in_memory(original, plan)
    assert torch.equal(logits(reloaded), logits(original))


def test_two_runs_give_the_same_bytes(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint(shard="10KB")
    plan = planner(source, "w3g16")
    for run in ("a", "b", "a"):  # the second "a" replaces the first
        compress(Model(source), plan, tmp_path / run)
    assert names(tmp_path / "a") == names(tmp_path / "b")
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_the_card_has_plan_and_provenance(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint()
    plan = planner(source, "w3g16")
    compress(Model(source), plan, tmp_path / "out")
    card = json.loads((tmp_path / "out" / "mixprec.json").read_text())
    assert Plan.model_validate(card["plan"]) == plan
    assert card["source"]["identity"] == Model(source).identity
    assert card["schema_version"] == 1


def test_bytes_of_weights_are_those_predicted(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint()
    plan = planner(source, "w3g16")
    compress(Model(source), plan, tmp_path / "out")
    predicted = account(plan, decoder_of(load_config(str(source))))
    assert sum(tensor.nbytes for tensor in weights(tmp_path / "out").values()) == predicted.dense_bytes


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def spoil(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors[name].view(-1)[3:4].fill_(value)


BREAKAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "NaN in a compressed module": (
        lambda f: change(f, spoil(f"{UP}.weight", float("nan"))),
        f"{UP}.weight: holds NaN",
    ),
    "infinity in a kept module": (
        lambda f: change(f, spoil("model.layers.0.mlp.up_proj.weight", float("inf"))),
        "layers.0.mlp.up_proj.weight: holds NaN or infinite",
    ),
    "NaN elsewhere": (
        lambda f: change(f, spoil("model.norm.weight", float("nan"))),
        "model.norm.weight: holds NaN",
    ),
    "another shape": (
        lambda f: change(f, lambda t: t.update({f"{UP}.weight": torch.zeros(3, 3).bfloat16()})),
        f"{UP}.weight has the shape (3, 3), config.json asks for (48, 32)",
    ),
    "integers": (
        lambda f: change(f, lambda t: t.update({f"{UP}.weight": torch.zeros(48, 32, dtype=torch.int8)})),
        f"{UP}.weight is stored as I8",
    ),
    "a missing module": (
        lambda f: change(f, lambda t: t.pop(f"{UP}.weight")),
        f"missing weights: 1, first {UP}.weight",
    ),
    "a truncated file": (
        lambda f: os.truncate(f / "model.safetensors", 5000),
        "model.safetensors: broken safetensors file",
    ),
    "an empty file": (
        lambda f: os.truncate(f / "model.safetensors", 0),
        "model.safetensors: broken safetensors file",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "there are no weights; fetch them"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_broken_checkpoints(checkpoint: Make, planner: Planner, tmp_path: Path, breakage: str) -> None:
    source = checkpoint()
    plan = planner(source, "keep", last_up="w3g16")
    ruin, expected = BREAKAGES[breakage]
    ruin(source)
    with pytest.raises(UserError) as caught:
        compress(Model(source), plan, tmp_path / "out")
    assert expected in str(caught.value)
    assert str(source) in str(caught.value)
    assert "out" not in names(tmp_path)  # finished blocks may stay, a checkpoint must not be there


def test_weights_too_large_for_a_16_bit_scale(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint(dtype=torch.float32)
    change(source, spoil(f"{UP}.weight", 1e9))
    with pytest.raises(UserError, match=r"up_proj\.weight: weights up to 1e\+09 are too large for w3g16"):
        compress(Model(source), planner(source, "keep", last_up="w3g16"), tmp_path / "out")


def test_a_plan_for_another_model(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint()
    plan = planner(source, "w3g16")
    shutil.rmtree(source)
    source = checkpoint(num_hidden_layers=1)
    with pytest.raises(UserError, match=r"doesn't have: model\.layers\.1\.self_attn\.q_proj"):
        compress(Model(source), plan, tmp_path / "out")


def test_other_peoples_folders_are_not_replaced(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint()
    plan = planner(source, "w3g16")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="mixprec did not make it"):
        compress(Model(source), plan, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"
    with pytest.raises(UserError, match="is the source checkpoint itself"):
        compress(Model(source), plan, source)
    (tmp_path / "empty").mkdir()
    compress(Model(source), plan, tmp_path / "empty")
    assert "config.json" in names(tmp_path / "empty")


def test_a_failed_run_keeps_the_finished_checkpoint(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint()
    plan = planner(source, "w3g16")
    compress(Model(source), plan, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    change(source, spoil("model.norm.weight", float("nan")))
    with pytest.raises(UserError):
        compress(Model(source), plan, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_the_embedded_model_with_only_last_up_compressed(
    smollm2: LoadedModel, planner: Planner, tmp_path: Path
) -> None:
    source = Path(locate.resolve(BUNDLED))
    plan = planner(source, "keep", last_up="w3g64")
    reports = compress(Model(BUNDLED), plan, tmp_path / "out")
    assert [name for name, report in reports.items() if report.relative_error] == ["model.layers.29.mlp.up_proj"]
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    up = smollm2.linears["model.layers.29.mlp.up_proj"].weight
    original = up.clone()
    before = logits(smollm2.model)
    try:
        round_in_memory(smollm2.model, plan, stored=torch.float16)
        after = logits(smollm2.model)
    finally:
        up.copy_(original)
    assert torch.equal(logits(reloaded), after)
    assert not torch.equal(before, after)
    assert torch.equal(logits(smollm2.model), before)
