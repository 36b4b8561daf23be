"""Tuning from recipes and from the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

import mixprec as mp
from mixprec import cli
from mixprec.core.errors import UserError
from mixprec.tune.solved import SolvedTuning

SEEN = {"samples": 6, "tokens": 24}
TUNE = {"validation": 3, "epochs": 3, "rate": 0.02, "norm_rate": 0.01, "dtype": "float32"}


@pytest.fixture
def write(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """A recipe with a tuned variant and the same one untuned; ``parts`` replace its keys."""
    traces = tiny.write_traces(tmp_path / "traces.jsonl")

    def made(**parts: Any) -> Path:
        recipe = {
            "traces": None,
            "importance": None,
            "compress": {"calibration": {"traces": str(traces), **SEEN}, "tune": TUNE},
            "variants": {
                "original": {"plan": {"default": "keep"}},
                "tuned": {"plan": {"default": "w2g16"}},
                "untuned": {"plan": {"default": "w2g16"}, "tune": False},
            },
        }
        return tiny.write_recipe(tmp_path / "recipe.yaml", tiny_checkpoint, traces, **(recipe | parts))

    return made


def test_a_variant_is_tuned_and_says_what_came_of_it(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = mp.run(write(), tmp_path / "run").summary["variants"]
    course = json.loads((tmp_path / "run" / "variants" / "tuned" / "tune.json").read_text())
    assert found["tuned"]["tune"]["before"] == course["before"] > course["after"]
    assert "tune" not in found["untuned"]
    assert found["tuned"]["bytes_on_disk"] == found["untuned"]["bytes_on_disk"]
    assert found["tuned"]["kl_mean"] != found["untuned"]["kl_mean"]
    assert f"{course['before']:.3g}" in (tmp_path / "run" / "report.html").read_text()
    card = json.loads((tmp_path / "run" / "variants" / "tuned" / "checkpoint" / "mixprec.json").read_text())
    assert card["tune"]["epochs"] == 3
    made: list[str] = []
    once = SolvedTuning.__call__
    monkeypatch.setattr(SolvedTuning, "__call__", lambda *given: made.append("tuned") or once(*given))
    mp.run(tmp_path / "recipe.yaml", tmp_path / "run")
    assert made == []
    mp.run(tmp_path / "recipe.yaml", tmp_path / "run", change=["compress.tune.epochs=1"])
    assert made == ["tuned"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"compress": {"tune": TUNE}}, "tune needs samples"),
        ({"compress": {"engine": "gptqmodel", "method": "gptq", "calibration": {"traces": "T", **SEEN}, "tune": TUNE}},
         "without scales to tune"),
        ({"compress": {"calibration": {"traces": "T", **SEEN}, "tune": {"scales": False, "norms": False}}},
         "nothing to tune"),
        ({"compress": {"calibration": {"traces": "T", **SEEN}, "tune": {"validation": 1}}}, "validation"),
        ({"compress": {"calibration": {"traces": "T", **SEEN}, "tune": {"validation": 500}}}, "are asked for"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_any_work(
    write: Callable[..., Path], tmp_path: Path, parts: dict[str, Any], message: str
) -> None:
    text = json.dumps(parts).replace('"T"', json.dumps(str(tmp_path / "traces.jsonl")))
    with pytest.raises(UserError, match=message):
        mp.run(write(**json.loads(text)), tmp_path / "run")
    assert not (tmp_path / "run" / "variants").exists()


def test_validate_counts_what_tuning_asks_for(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mix(monkeypatch, "validate", write()) == 0
    many = {"calibration": {"traces": str(tmp_path / "traces.jsonl"), **SEEN}, "tune": {"validation": 500}}
    assert mix(monkeypatch, "validate", write(compress=many)) == 2
    assert "506 are asked for" in capsys.readouterr().err


def mix(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["mixprec", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_verbs_tune(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    traces = tiny.write_traces(tmp_path / "traces.jsonl")
    mp.plan(mp.Model(tiny_checkpoint), "w2g16").save(tmp_path / "plan.json")
    on = ("--traces", traces, "--samples", 6, "--tokens", 24, "--validation", 3)
    packed = ("--format", "compressed-tensors")
    assert mix(monkeypatch, "compress", tmp_path / "plan.json", "--tune", *on, *packed, "--out", tmp_path / "both") == 0
    assert "tune: KL on 3 validation samples" in capsys.readouterr().err
    assert mix(monkeypatch, "compress", tmp_path / "plan.json", *packed, "--out", tmp_path / "solved") == 0
    given = ("--reference", tiny_checkpoint, *on, "--rate", 0.01, "--dtype", "float32")
    assert mix(monkeypatch, "tune", tmp_path / "solved", *given, "--out", tmp_path / "tuned") == 0
    assert "compressed-tensors" in capsys.readouterr().out
    assert mix(monkeypatch, "tune", tmp_path / "solved", "--out", tmp_path / "no") == 2
    assert "give --text FILE or --traces" in capsys.readouterr().err
    assert mix(monkeypatch, "compress", tmp_path / "plan.json", "--tune", "--out", tmp_path / "no") == 2
    assert "--tune needs samples" in capsys.readouterr().err
