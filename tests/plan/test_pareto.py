"""Curves of size against damage: points that only get better, one format for all beside them, the verb."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mixprec.cli import app
from mixprec.core.errors import UserError
from mixprec.models.config import load_config
from mixprec.models.decoder import Decoder
from mixprec.models.locate import BUNDLED
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.plan.budgetspec import BudgetSpec
from mixprec.plan.pareto import curve, sizes, uniform
from mixprec.plan.sensitivity import Sensitivity, save

TEXTS = ("w2g16", "w3g16", "w4g16", "w8g16")


def table(of: Decoder, texts: tuple[str, ...] = TEXTS) -> Sensitivity:
    scores = {
        m.address: {t: (1 + i % 5) * m.weights * 4.0 ** -int(t[1]) for t in texts} for i, m in enumerate(of.linears)
    }
    data = {"model": "tiny", "identity": "x", "scorer": "fisher", "method": "gptq", "scores": scores}
    return Sensitivity.model_validate(data)


def test_more_bits_are_less_damage_and_better_than_one_format(tiny: Decoder) -> None:
    spec = BudgetSpec.model_validate({"bytes": 10**6, "candidates": TEXTS, "pin": {"last_up": "w8g16"}})
    points = curve(spec, tiny, "tiny", "gptq", table(tiny), sizes(2.5, 6.5, 0.5))
    # 3 bits and what is pinned is the least: sizes below are left out.
    assert [point.size for point in points] == [4.0, 4.5, 5.0, 5.5, 6.0, 6.5]
    damages = [point.damage for point in points]
    assert damages == sorted(damages, reverse=True)
    alone = uniform(spec, tiny, "tiny", "gptq", table(tiny))
    assert [point.name for point in alone] == list(TEXTS)
    for point in alone:
        assert point.formats["w8g16"] >= 1
        if point.name in ("w3g16", "w4g16"):
            [best] = curve(spec, tiny, "tiny", "gptq", table(tiny), [point.effective_bits])
            assert best.damage <= point.damage
    with pytest.raises(UserError, match="no plan takes less"):
        curve(spec, tiny, "tiny", "gptq", table(tiny), [2.5])


@pytest.mark.parametrize(("first", "last", "step"), [(3, 2, 0.1), (0, 2, 0.1), (2, 3, 0)])
def test_ranges_that_hold_nothing(first: float, last: float, step: float) -> None:
    with pytest.raises(UserError, match="nothing lies there"):
        sizes(first, last, step)
    assert sizes(2.5, 4.5, 0.125)[-1] == 4.5
    assert len(sizes(2.5, 4.5, 0.1)) == 21


def test_the_verb_draws_the_curve(tmp_path: Path) -> None:
    of = decoder_of(load_config(BUNDLED))
    texts = ("w2g64", "w3g64", "w4g64", "w5g64")
    save(tmp_path / "scores.json", table(of, texts).model_copy(update={"identity": Model(BUNDLED).identity}))
    recipe = tmp_path / "r.yaml"
    budget = {"effective_bits": 3.5, "candidates": list(texts), "scores": str(tmp_path / "scores.json")}
    recipe.write_text(
        yaml.safe_dump(
            {
                "model": {"id": BUNDLED},
                "plan": {"budget": budget},
                "compress": {"method": "gptq", "calibration": {"traces": "bundled:attribution"}},
            }
        )
    )
    done = CliRunner().invoke(app, ["pareto", str(recipe), "--step", "0.5", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "pareto.json").read_text())
    assert [row["size"] for row in found["points"]] == [2.5, 3.0, 3.5, 4.0, 4.5]
    assert [row["name"] for row in found["uniform"]] == list(texts)
    assert all(sum(row["formats"].values()) == 210 for row in found["points"])
    assert (tmp_path / "out" / "pareto.png").stat().st_size > 10_000
    assert (tmp_path / "out" / "plans" / "3.5.json").is_file()
