"""Several processes compress one model: each has its samples and its part of the solves, and all come to what one does.

Sums over samples are added in another order, so numbers differ in the last bits, and a weight that lies between two
codes may fall to the other one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import architectures
import pytest
import tiny
import together
import torch
from launching import launched
from safetensors.torch import load_file

from mixprec.core import processes
from mixprec.core.errors import UserError
from mixprec.numerics.statistics import InputSums
from mixprec.walk.samples import part_of

HERE = Path(__file__).parent


def start(folder: Path, count: int, *names: str, **more: str) -> list[subprocess.CompletedProcess[str]]:
    """So many processes that make cases together; how each ended."""
    search = os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parents[1])])
    return launched([[sys.executable, HERE / "together.py", folder, *names]] * count, PYTHONPATH=search, **more)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, and all cases by one process and by two; one of the two was killed in the last case."""
    folder = tmp_path_factory.mktemp("together")
    for name, architecture in (("dense", "llama"), ("mixture", "qwen2_moe")):
        architectures.model_of(architecture).save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    names = list(together.CASES)
    for name in names:
        together.make(folder, name, folder / "of1" / name)
    died = start(folder, 2, "killed", DIE="1")
    assert died[0].returncode == 9 and died[1].returncode != 0
    assert (folder / "of2" / ".killed.blocks" / "00001.safetensors").is_file()
    for ended in start(folder, 2, *names):
        assert ended.returncode == 0, ended.stderr
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: each for path in sorted(folder.glob("*.safetensors")) for name, each in load_file(path).items()}


@pytest.mark.parametrize("name", [name for name in together.CASES if name != "killed"])
def test_two_processes_come_to_what_one_does(made: Path, name: str) -> None:
    one, two = (tensors(made / f"of{count}" / name) for count in (1, 2))
    assert one.keys() == two.keys()
    # A scale that AWQ folds differs in its last bits, and with it every weight of its column.
    same = sum(int(torch.isclose(one[key].float(), two[key].float(), rtol=1e-5, atol=1e-7).sum()) for key in one)
    assert same >= 0.999 * sum(each.numel() for each in one.values())
    first, second = (json.loads((made / f"of{count}" / f"{name}.json").read_text()) for count in (1, 2))
    assert first.keys() == second.keys()
    for address, report in first.items():
        other = second[address]
        assert (report["method"], report["format"], report["tokens"]) == (
            other["method"], other["format"], other["tokens"],
        )  # fmt: skip
        assert other["relative_error"] == pytest.approx(report["relative_error"], rel=1e-3)
        if report["output_error"] is not None:
            assert other["output_error"] == pytest.approx(report["output_error"], rel=1e-3)


def test_a_killed_process_is_continued_with_the_same_bytes(made: Path) -> None:
    """By two processes again; the case is that of ``gptq``."""
    killed, whole = made / "of2" / "killed", made / "of2" / "gptq"
    files = {path.name for path in whole.iterdir()}
    assert files == {path.name for path in killed.iterdir()}
    assert all((killed / name).read_bytes() == (whole / name).read_bytes() for name in files)
    assert not list((made / "of2").glob(".*"))


def test_sums_of_parts_are_those_of_all() -> None:
    inputs, weights = torch.randn(6, 5, 8), torch.rand(6, 5)
    whole, parts = InputSums(8, drift=True), [InputSums(8, drift=True) for _ in range(2)]
    whole.add(inputs, weights, inputs + 1)
    for part, where in zip(parts, (slice(0, 2), slice(2, 6)), strict=True):
        part.add(inputs[where], weights[where], inputs[where] + 1)
    held: list[list[torch.Tensor]] = []
    parts[1].join(lambda given: held.append([each.clone() for each in given]))

    def add(given: object) -> None:
        for tensor, other in zip(given, held[0], strict=True):  # type: ignore[call-overload]
            tensor += other

    parts[0].join(add)
    found, wanted = parts[0].result(), whole.result()
    assert found.tokens == wanted.tokens
    for name in ("hessian", "mean_abs", "drift"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name))


def test_samples_are_shared_without_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    found = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        found += range(10)[part_of(10)]
    assert found == list(range(10)) and processes.count() == 3
    with pytest.raises(UserError, match=r"calibration\.samples: 2: 3 processes share them"):
        part_of(2)
