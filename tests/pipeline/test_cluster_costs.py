"""What ``explain --on`` says: jobs, GPUs, hours, bytes moved."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import update_large

from mixprec import cli, pipeline, recipe
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.pipeline import clusters, costs
from mixprec.pipeline.checks import Checked
from mixprec.pipeline.clusters import cores, h200s, handed, placing
from mixprec.pipeline.jobs import jobs_of
from mixprec.recipe import Recipe


@pytest.fixture
def asked(tiny_checkpoint: Path, tmp_path: Path) -> tuple[Path, Recipe, Checked]:
    traces = str(tiny.write_traces(tmp_path / "traces.jsonl"))
    path = tiny.write_recipe(
        tmp_path / "r.yaml", tiny_checkpoint, Path(traces),
        compress={"method": "gptq", "calibration": {"traces": traces, "samples": 4, "tokens": 16}},
        ablation={"each": "*_up", "formats": ["w3g16"]},
        variants={name: {"plan": {"default": name}} for name in ("w2g16", "w3g16", "w4g16")},
    )  # fmt: skip
    chosen = recipe.load(path)
    return path, chosen, pipeline.checked(chosen)


def test_one_core_takes_what_all_stages_take(asked: tuple[Path, Recipe, Checked]) -> None:
    _, chosen, found = asked
    made = placing(chosen, found, "ray", cores(1, 1))
    assert [each.name for each in made.listed] == [job.name for job in jobs_of(chosen)]
    listed = costs.stages(chosen, found)
    seconds = sum(each.seconds or 0.0 for each in listed)
    moved = sum(each.traffic.read + each.traffic.written for each in listed)
    assert made.seconds == pytest.approx(seconds + moved / cores(1, 1).storage, rel=1e-3)
    assert made.gpu_seconds == pytest.approx(made.seconds) and made.storage == pytest.approx(moved, rel=1e-3)


def test_more_cores_are_sooner_done_but_not_beyond_the_longest_path(asked: tuple[Path, Recipe, Checked]) -> None:
    _, chosen, found = asked
    spans = [placing(chosen, found, "slurm", cores(1, count)).seconds for count in (1, 2, 4, 64, 128)]
    assert all(span is not None for span in spans)
    assert spans[0] > spans[1] > spans[2] and spans[3] == pytest.approx(spans[4], rel=0.2)  # type: ignore[operator]
    made = placing(chosen, found, "slurm", cores(1, 4))
    cells = [each for each in made.listed if each.name.startswith("cells/")]
    assert len(cells) == 4 and len({each.seconds for each in cells}) == 1


def test_processes_of_a_launcher_share_stages(asked: tuple[Path, Recipe, Checked]) -> None:
    _, chosen, found = asked
    one, four = (placing(chosen, found, "torchrun", cores(1, count)) for count in (1, 4))
    by_name = {each.name: each for each in four.listed}
    assert by_name["compress w3g16"].gpus == 4 and by_name["evaluation"].gpus == 1
    assert one.network == 0 and four.network == 3 * handed(found.inventory, 4)  # type: ignore[arg-type]


def test_what_processes_hand_one_another() -> None:
    decoder = decoder_of(load_config("smollm2-135m-instruct"))
    moments = sum(4 * group[0].in_features ** 2 for group in decoder.groups)
    solved = sum(3.25 * linear.weights for linear in decoder.linears)
    assert handed(decoder, 1) == 0
    assert handed(decoder, 2) == pytest.approx(2 * moments + solved)
    # 30 blocks: q k v, o, gate up read 576 numbers, down 1536.
    assert moments == 30 * 4 * (3 * 576**2 + 1536**2)


def test_gpus_have_their_own_rates(asked: tuple[Path, Recipe, Checked]) -> None:
    _, chosen, found = asked
    chosen = chosen.model_copy(update={"model": chosen.model.model_copy(update={"device": "cuda"})})
    assert all(each.seconds is None for each in costs.stages(chosen, found))
    made = placing(chosen, found, "ray", h200s(1, 8))
    assert made.seconds is not None and {each.gpus for each in made.listed} == {1}


@pytest.mark.parametrize("on", clusters.ON)
def test_explain_says_it(
    asked: tuple[Path, Recipe, Checked], on: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, *_ = asked
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["mixprec", "explain", str(path), "--on", on, "--gpus", "2"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr().out
    assert not ended.value.code and f"On {on}: 1 × 2 cores" in told
    assert ("compress w3g16" if on == "torchrun" else "compress/w3g16") in told and "in all" in told


@pytest.mark.slow
def test_the_page_on_r1_is_todays() -> None:
    assert update_large.PAGE.read_text(encoding="utf-8") == update_large.page(), "run scripts/update_large.py"
