"""The API on the tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

import mixprec as mp


@pytest.fixture(scope="session")
def model(tiny_checkpoint: Path) -> mp.Model:
    return mp.Model(str(tiny_checkpoint))


@pytest.fixture(scope="session")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_traces(tmp_path_factory.mktemp("traces") / "traces.jsonl")


@pytest.fixture(scope="session")
def calibration(model: mp.Model, traces: Path) -> mp.Calibration:
    return mp.calibrate(model, traces=traces, samples=6, tokens=24)


@pytest.fixture(scope="session")
def scores(model: mp.Model, calibration: mp.Calibration) -> mp.Scores:
    return mp.sensitivity(model, calibration, ["w2g16", "w4g16"], method="gptq", samples=4)


@pytest.fixture
def other(tmp_path: Path) -> mp.Model:
    """A model of the same shape with other weights."""
    return mp.Model(str(tiny.write_checkpoint(tmp_path / "other", seed=1)))
