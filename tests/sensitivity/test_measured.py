from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scoring import Tiny, scored

from mixprec.evaluate import fidelity
from mixprec.evaluate.passages import Passage
from mixprec.models.head import Head
from mixprec.models.load import LoadedModel
from mixprec.models.model import Model
from mixprec.sensitivity import cells
from mixprec.sensitivity.sets import CONTROL, Cell
from mixprec.walk.restarts import Restarts


@pytest.fixture
def loaded(tiny: Tiny) -> LoadedModel:
    return Model(tiny.folder).load()


def test_no_change_is_exactly_zero(loaded: LoadedModel) -> None:
    for found in Restarts(loaded, [each.tokens for each in scored()]).measure({}):
        assert found.kl.tolist() == [0.0] * len(found.kl)
        assert found.agree.all()


def test_measured_is_what_a_whole_forward_pass_gives(tiny: Tiny, loaded: LoadedModel) -> None:
    passages = [Passage(each.tokens) for each in scored()]
    restarts = Restarts(loaded, [passage.tokens for passage in passages], stride=2)
    original = list(fidelity.hidden_states(loaded, passages, "original"))
    for addresses in ([tiny.addresses[3]], [tiny.addresses[13]], [tiny.addresses[2], tiny.addresses[9]]):
        weights = {address: tiny.candidates.weight(address, "w2g16") for address in addresses}
        measured = restarts.measure(weights)
        changed = Model(tiny.folder).load()
        for address, weight in weights.items():
            changed.linears[address].weight.data.copy_(weight)
        head = Head.of(loaded.model)
        whole = fidelity.compare(passages, fidelity.hidden_states(changed, passages, "changed"), head, original, head)
        for found, wanted, where in zip(measured, whole, restarts.positions, strict=True):
            torch.testing.assert_close(found.kl, wanted.kl[where], rtol=1e-3, atol=1e-7)
            torch.testing.assert_close(found.nll, wanted.nll[where], rtol=1e-4, atol=1e-5)
    restarts.measure({tiny.addresses[0]: torch.zeros(32, 32)})
    assert float(restarts.measure({})[0].kl.max()) == 0  # what was swapped is back in its place


def test_cells_go_on_behind_a_kill(
    tiny: Tiny, loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = scored()
    restarts = Restarts(loaded, [each.tokens for each in passages])
    wanted = [Cell(address, "w2g16", (address,)) for address in tiny.addresses[:4]]
    whole = cells.measure(wanted, tiny.candidates, restarts, passages, tmp_path / "once")
    kept, done = restarts.measure, []

    def counting(weights: Any) -> Any:
        done.extend(weights)
        return kept(weights)

    def dies_at_the_third(weights: Any) -> Any:
        found = counting(weights)
        if len(done) == 3:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(restarts, "measure", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        cells.measure(wanted, tiny.candidates, restarts, passages, tmp_path / "killed")
    monkeypatch.setattr(restarts, "measure", counting)
    file = tmp_path / "killed" / "0.jsonl"
    file.write_text(file.read_text()[:-40])  # the last line was being written
    assert cells.measure(wanted, tiny.candidates, restarts, passages, tmp_path / "killed") == whole
    assert done == [*tiny.addresses[:3], *tiny.addresses[1:4]]
    assert whole[CONTROL].mean("kl", "all") == 0
    assert set(whole) == {CONTROL, *wanted}
    # Other passages are other cells.
    one = Restarts(loaded, [passages[0].tokens])  # other passages are other cells
    assert cells.measure(wanted, tiny.candidates, one, passages[:1], tmp_path / "once") != whole


def test_targets_count_their_own_tokens(tiny: Tiny, loaded: LoadedModel, tmp_path: Path) -> None:
    passages = scored()
    restarts, address = Restarts(loaded, [each.tokens for each in passages]), tiny.addresses[5]
    found = cells.measure([Cell("it", "w2g16", (address,))], tiny.candidates, restarts, passages, tmp_path)
    kl = [each.kl for each in restarts.measure({address: tiny.candidates.weight(address, "w2g16")})]
    wanted = torch.cat([k[p.weights["backtracking"].bool()] for k, p in zip(kl, passages, strict=True)])
    result = found[Cell("it", "w2g16", (address,))]
    assert result.mean("kl", "backtracking") == pytest.approx(float(wanted.mean()))
    twice = torch.tensor([2.0, 0.0, 1.0])
    both = torch.cat([kl[0], kl[0], kl[2]])
    assert result.mean("kl", "all", twice) == pytest.approx(float(both.mean()))
    rows = [json.loads(line) for line in (tmp_path / "0.jsonl").read_text().splitlines()]
    assert [row["cell"]["name"] for row in rows] == ["no change", "it"]
