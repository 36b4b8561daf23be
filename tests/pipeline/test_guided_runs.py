"""Guided solves in recipes and on the command line: gradients are taken once for all variants and candidates."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from safetensors.torch import load_file

from mixprec import cli, pipeline, recipe
from mixprec.compress import guided


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the samples whose gradients were taken."""
    numbers: list[int] = []
    sweep = guided._sweep

    def telling(opened: Any, calibration: Any, here: Any, *rest: Any) -> Any:
        numbers.extend(here)
        return sweep(opened, calibration, here, *rest)

    monkeypatch.setattr(guided, "_sweep", telling)
    return numbers


def run(path: Path, parts: dict[str, Any]) -> dict[str, Any]:
    path.write_text(json.dumps(parts), encoding="utf-8")
    return pipeline.Run(recipe.load(path), path.read_text(), path.stem, path.parent / "run", None).run()


def test_variants_and_candidates_share_gradients(tiny_checkpoint: Path, tmp_path: Path, swept: list[int]) -> None:
    traces = str(tiny.write_traces(tmp_path / "traces.jsonl"))
    weighed = {"traces": traces, "samples": 4, "tokens": 16, "behaviours": {"backtracking": 4}}
    parts: dict[str, Any] = {
        "model": {"id": str(tiny_checkpoint)},
        "compress": {"method": "gptq", "guided": {"groups": 2}, "calibration": weighed},
        "sensitivity": {"formats": ["w2g16", "w3g16"], "samples": 2},
        "variants": {
            "uniform": {"plan": {"default": "w3g16"}},
            "drift": {"plan": {"default": "w3g16", "method": "gptaq"}},
            "rounded": {"plan": {"default": "w3g16", "method": "rtn"}},
        },
        "evaluate": {"traces": {"source": traces}},
    }
    first = run(tmp_path / "r.yaml", parts)
    assert swept == [0, 1, 2, 3]
    assert len({row["kl_mean"] for row in first["variants"].values()}) == 3
    card = json.loads((tmp_path / "run" / "variants" / "uniform" / "checkpoint" / "mixprec.json").read_text())
    assert card["compress"]["guided"]["groups"] == 2
    made = load_file(tmp_path / "run" / "variants" / "uniform" / "checkpoint" / "model.safetensors")
    assert run(tmp_path / "r.yaml", parts)["variants"] == first["variants"]
    assert swept == [0, 1, 2, 3]
    del parts["compress"]["guided"]
    run(tmp_path / "r.yaml", parts)
    assert swept == [0, 1, 2, 3]
    plain = load_file(tmp_path / "run" / "variants" / "uniform" / "checkpoint" / "model.safetensors")
    assert any((plain[name] != made[name]).any() for name in plain)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mixprec", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_line(
    tiny_checkpoint: Path,
    tmp_path: Path,
    swept: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    data = ["--text", "text.txt", "--samples", "2", "--tokens", "16", "--out", "out"]
    for method in ("gptq", "rtn"):
        plan = {"plan": {"default": "w3g16", "method": method}, "model": {"id": str(tiny_checkpoint)}}
        plan["compress"] = {"calibration": {"text": "text.txt", "samples": 2, "tokens": 16}}  # type: ignore[dict-item]
        Path(f"{method}.yaml").write_text(json.dumps(plan))
        assert command(monkeypatch, "plan", f"{method}.yaml", "--out", f"{method}.json") == 0
    assert command(monkeypatch, "compress", "gptq.json", *data, "--guided-groups", "2") == 2
    assert "--guided-groups: groups of what?" in capsys.readouterr().err
    assert command(monkeypatch, "compress", "gptq.json", *data, "--guided", "text") == 2
    assert "guided.loss: 'text': Input should be 'fisher' or 'loss'" in capsys.readouterr().err
    assert command(monkeypatch, "compress", "rtn.json", *data, "--guided", "loss") == 2
    assert "rtn can't be guided" in " ".join(capsys.readouterr().err.split())
    assert not swept
    assert command(monkeypatch, "compress", "gptq.json", *data, "--guided", "fisher", "--guided-groups", "2") == 0
    assert swept == [0, 1]
    assert json.loads(Path("out/mixprec.json").read_text())["compress"]["guided"]["groups"] == 2
