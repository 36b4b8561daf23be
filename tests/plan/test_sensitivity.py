"""The table of predicted damage: text of choices, files, and what a table must not hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from maps import decoder, linear

from mixprec.core.errors import UserError
from mixprec.core.seals import KEY
from mixprec.plan.sensitivity import Choice, Sensitivity, combine, load, parse_choice, save

MODULES = tuple(linear(1, kind) for kind in ("q", "k", "up"))
INVENTORY = decoder(*MODULES)


def table(target: str = "all", factor: float = 1.0, **changes: object) -> Sensitivity:
    scores = {m.address: {"w3g64": factor * (i + 1), "0.5": factor * 2} for i, m in enumerate(MODULES)}
    data = {
        "model": "tiny", "identity": "a" * 64, "scorer": "fisher", "method": "gptq", "target": target, "scores": scores,
    }  # fmt: skip
    return Sensitivity.model_validate(data | changes)


@given(st.sampled_from(["keep", "w3g64", "w4g128_asym", "any4g64", "0.5", "2:4", "w4g64@0.5", "w2@2:4", "0.35"]))
def test_choices_are_their_texts(text: str) -> None:
    assert str(parse_choice(text)) == text
    assert parse_choice(text).changes == (text != "keep")


@pytest.mark.parametrize("text", ["w9", "1.5", "w3g64@2", "", "w3g64@"])
def test_other_texts_are_no_choices(text: str) -> None:
    with pytest.raises(UserError):
        parse_choice(text)


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    save(tmp_path / "s.json", table())
    assert load(tmp_path / "s.json", INVENTORY, "a" * 64) == table()
    assert table().damage(MODULES[2].address, parse_choice("w3g64")) == 3
    assert table().damage(MODULES[2].address, parse_choice("keep")) == 0
    with pytest.raises(UserError, match=r"no damage of .* in w2g64; they have w3g64, 0.5"):
        table().damage(MODULES[2].address, parse_choice("w2g64"))


@pytest.mark.parametrize("damage", ["NaN", "Infinity", "-1.0", "true", '"0.5"', "null"])
def test_what_is_no_damage_is_refused(tmp_path: Path, damage: str) -> None:
    save(tmp_path / "s.json", table())
    text = (tmp_path / "s.json").read_text().replace('"w3g64": 2.0', f'"w3g64": {damage}')
    unsealed = re.sub(rf',\s*"\w+": \d+,\s*"{KEY}": "[0-9a-f]+"', "", text)
    (tmp_path / "s.json").write_text(unsealed)  # by hand, as tables may be
    with pytest.raises(
        UserError,
        match=r"s\.json.*(k_proj: w3g64: .* finite and at least 0|which is no number|Input should be a valid number)",
    ):
        load(tmp_path / "s.json", INVENTORY)


def test_another_models_scores_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "s.json", table())
    with pytest.raises(UserError, match=r"identity a{12}…, the model here has b{12}…"):
        load(tmp_path / "s.json", INVENTORY, "b" * 64)
    with pytest.raises(UserError, match=r"lacks 1 modules, first .*v_proj"):
        load(tmp_path / "s.json", decoder(*MODULES, linear(1, "v")))
    with pytest.raises(UserError, match=r"unknown modules: .*up_proj"):
        load(tmp_path / "s.json", decoder(*MODULES[:2]))
    (tmp_path / "s.json").write_text(json.dumps({"schema_version": 1, "modules": {}}))
    with pytest.raises(UserError, match="is no table of sensitivities"):
        load(tmp_path / "s.json", INVENTORY)


def test_choices_are_written_in_one_way() -> None:
    scores = {m.address: {"0.50": 1.0} for m in MODULES}
    with pytest.raises(ValueError, match=r"'0\.50' must be written '0\.5'"):
        table(scores=scores)


def test_one_table_for_each_target() -> None:
    with pytest.raises(UserError, match="two tables of all, by fisher and fisher; give one for each target"):
        combine([table(), table("all", 10)], {})


def test_targets_add_up() -> None:
    both = combine([table("backtracking"), table("all", 10)], {"backtracking": 2, "all": 0.5})
    assert both.target == "2 backtracking + 0.5 all"
    assert both.damage(MODULES[1].address, Choice(format=parse_choice("w3g64").format)) == 2 * 2 + 0.5 * 20
    assert combine([table(), table("x")], {"all": 1}) == table()


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"x": 1.0}, "no scores for x; there are all"), ({"all": -1.0}, "all: weights"), ({"all": 0.0}, "all are 0")],
)
def test_weights_that_say_nothing_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        combine([table()], weights)


def test_tables_of_different_scorers_are_not_added() -> None:
    with pytest.raises(UserError, match="different scorers"):
        combine([table(), table("x", scorer="rtn")], {"all": 1, "x": 1})
