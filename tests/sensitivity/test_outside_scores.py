"""Embedding and head scored: the KL of a whole forward pass with them changed, in one table with the blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from scoring import calibrating
from torch import Tensor

import mixprec as mp
from mixprec.compress.stream import compress
from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder
from mixprec.models.model import Model
from mixprec.plan import sensitivity as tables
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.results.scores import Scores
from mixprec.sensitivity.run import Subject, score
from mixprec.sensitivity.spec import SensitivitySpec

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
FORMATS = ("w2g16", "w4g16")
STRIDE = 2


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("source") / "model"
    return tiny.write_checkpoint(made, steps=30, tie_word_embeddings=request.param)


def subject(folder: Path, out: Path, *outside: str) -> Subject:
    return Subject(Model(folder), "gptq", calibrating(), out, outside=outside)


def asked(scorer: str = "measured", *outside: str) -> SensitivitySpec:
    keys = {"scorer": scorer, "formats": FORMATS, "samples": 3, "stride": STRIDE, "outside": outside}
    return SensitivitySpec.model_validate(keys)


def words(decoder: Decoder) -> list[str]:
    return ["embedding"] if decoder.tied else ["embedding", "head"]


@torch.no_grad()
def whole(folder: Path, address: str, weight: Tensor) -> float:
    """KL to the original with one matrix changed, by whole passes."""
    original, changed = (Model(folder).load().model for _ in range(2))
    changed.get_submodule(address).weight.data.copy_(weight)
    found = []
    for number, tokens in enumerate(calibrating().tokens[:3]):
        where = torch.arange(number % STRIDE, len(tokens) - 1, STRIDE)
        p, q = (model(tokens[None]).logits[0, where].double().log_softmax(-1) for model in (original, changed))
        found.append((p.exp() * (p - q)).sum(-1))
    return float(torch.cat(found).mean())


def test_measured_is_what_whole_passes_give(folder: Path, tmp_path: Path) -> None:
    decoder = Model(folder).decoder
    made = subject(folder, tmp_path, *words(decoder))
    candidates = made.candidates(asked().treatments("gptq"))
    table = score(made, asked("measured", *words(decoder)), candidates)["all"]
    assert set(table.scores) == {linear.address for linear in decoder.matrices}
    for linear in decoder.outside:
        for name in FORMATS:
            expected = whole(folder, linear.address, candidates.weight(linear.address, name))
            assert table.scores[linear.address][name] == pytest.approx(expected, rel=1e-3, abs=1e-8)
    assert table.scores[EMBEDDING]["w2g16"] > table.scores[EMBEDDING]["w4g16"] > 0
    tables.check(table, decoder, Model(folder).identity, "here")


def test_fisher_has_the_measured_rows_beside_its_own(folder: Path, tmp_path: Path) -> None:
    decoder = Model(folder).decoder
    measured = score(subject(folder, tmp_path / "m", "head"), asked("measured", "head"))["all"]
    fisher = score(subject(folder, tmp_path / "f", "head"), asked("fisher", "head"))["all"]
    plain = score(subject(folder, tmp_path / "p"), asked("fisher"))["all"]
    head = decoder.outside[-1].address
    assert fisher.scores[head] == measured.scores[head]
    assert {a: row for a, row in fisher.scores.items() if a != head} == plain.scores
    # Errors of weights are no nats: their table, which the same pass leaves, is of the blocks alone.
    other = tables.load(tmp_path / "f" / "weight_error.json", decoder)
    assert set(other.scores) == set(plain.scores)


def test_candidates_are_what_compression_makes_of_the_original(folder: Path, tmp_path: Path) -> None:
    decoder = Model(folder).decoder
    found = subject(folder, tmp_path / "scores", *words(decoder)).candidates(asked().treatments("gptq"))
    for name in words(decoder):
        spec = {"default": "keep", "method": "gptq", "rules": [{"match": name, "format": "w4g16"}]}
        plan = build_plan(PlanSpec.model_validate(spec), decoder, "tiny", "gptq")
        compress(Model(folder), plan, tmp_path / name, calibration=calibrating())
        (address,) = plan.changed
        stored = load_file(tmp_path / name / "model.safetensors")[f"{address}.weight"]
        assert (stored == found.weight(address, "w4g16")).float().mean() > 0.99  # micro-batches round sums otherwise


def test_stamps_without_them_are_those_of_before(folder: Path) -> None:
    assert "outside" not in asked().model_dump(mode="json")
    assert asked("fisher", "head").model_dump(mode="json")["outside"] == ["head"]


def test_what_is_no_kl_is_refused() -> None:
    with pytest.raises(ValidationError, match="measured in nats of KL, which imatrix is not"):
        asked("imatrix", "embedding")


def test_a_budget_spends_bytes_on_them(folder: Path, tmp_path: Path) -> None:
    model = mp.Model(folder)
    calibration = mp.calibrate(model, text=_text(tmp_path), samples=4, tokens=16)
    scores = mp.sensitivity(model, calibration, FORMATS, scorer="measured", samples=3, outside=words(model.decoder))
    rules = [{"match": words(model.decoder), "format": "w2g16"}]
    least = mp.plan(model, {"default": "w2g16", "rules": rules}).account.packed_bytes
    seen: set[str] = set()
    for size in range(least, model.decoder.parameters * 2, 6_000):
        plan = mp.plan(model, mp.Budget(bytes=size, scores=scores, outside=words(model.decoder)))
        assert list(plan.modules) == [linear.address for linear in model.decoder.matrices]
        assert plan.account.packed_bytes <= size
        seen.add(str(plan.modules[EMBEDDING].format))
    assert {"w2g16", "keep"} <= seen
    with pytest.raises(UserError, match="effective_bits counts the blocks' linears alone"):
        mp.plan(model, mp.Budget(effective_bits=4, scores=scores, outside=["embedding"]))
    left = {address: row for address, row in scores.main.scores.items() if address != EMBEDDING}
    blocks = Scores({"all": scores.main.model_copy(update={"scores": left})})
    with pytest.raises(UserError, match=r"have no damage of model\.embed_tokens"):
        mp.plan(model, mp.Budget(bytes=least, scores=blocks, outside=words(model.decoder)))


def _text(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text(tiny.TEXT * 5)
    return path
