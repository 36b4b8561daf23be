"""Saved predictions: exact where everything is kept, a lower bound that grows with what is kept, refused elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from typer.testing import CliRunner

from mixprec.cli import app
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.evaluate import fidelity, reference
from mixprec.evaluate.passages import Passage
from mixprec.models.head import Head
from mixprec.models.load import LoadedModel
from mixprec.numerics import divergence
from mixprec.numerics.divergence import TokenFidelity

ORIGINAL, OTHER = tiny.build(seed=1), tiny.build(seed=2)
VOCABULARY = ORIGINAL.model.config.vocab_size
PASSAGES = [Passage(torch.arange(5, 45)), Passage(torch.arange(60, 63))]


def states(loaded: LoadedModel) -> list[torch.Tensor]:
    return list(fidelity.hidden_states(loaded, PASSAGES, "test"))


def saved(folder: Path, kept: int) -> reference.Reference:
    path = folder / f"{kept}.safetensors"
    reference.save(path, PASSAGES, states(ORIGINAL), Head.of(ORIGINAL.model), "original", kept)
    return reference.load(path, PASSAGES)


def kl(against: reference.Reference, loaded: LoadedModel = OTHER) -> torch.Tensor:
    found = reference.compare(PASSAGES, states(loaded), Head.of(loaded.model), against)
    return torch.cat([each.kl for each in found])


def exact() -> list[TokenFidelity]:
    return fidelity.compare(PASSAGES, states(OTHER), Head.of(OTHER.model), states(ORIGINAL), Head.of(ORIGINAL.model))


@pytest.mark.parametrize("chunk", [3, 256])
def test_all_kept_is_the_whole_kl(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "CHUNK", chunk)
    found = reference.compare(PASSAGES, states(OTHER), Head.of(OTHER.model), saved(tmp_path, VOCABULARY))
    for one, other in zip(found, exact(), strict=True):
        assert torch.allclose(one.kl, other.kl, atol=1e-6)
        assert torch.allclose(one.nll, other.nll, atol=1e-9 if chunk == 256 else 1e-5)
        assert torch.equal(one.agree, other.agree)


def test_what_is_kept_is_accounted_exactly(tmp_path: Path) -> None:
    """Against probabilities in float64: the KL of the distributions with the tail as one token."""
    found = kl(saved(tmp_path, 7))
    expected = []
    for own, ref in zip(states(OTHER), states(ORIGINAL), strict=True):
        q = Head.of(OTHER.model)(own[:-1]).double().softmax(-1)
        p = Head.of(ORIGINAL.model)(ref[:-1]).double().softmax(-1)
        ids = p.topk(7).indices
        p, q = (torch.cat([x.gather(1, ids), 1 - x.gather(1, ids).sum(1, keepdim=True)], 1) for x in (p, q))
        expected.append((p * (p / q).log()).sum(1))
    assert torch.allclose(found, torch.cat(expected), atol=1e-5)


def test_more_kept_comes_closer_from_below(tmp_path: Path) -> None:
    whole = torch.cat([each.kl for each in exact()])
    means = [float(kl(saved(tmp_path, kept)).mean()) for kept in (1, 8, 64, VOCABULARY)]
    assert means == sorted(means)
    assert means[-1] == pytest.approx(float(whole.mean()), abs=1e-6)
    assert (kl(saved(tmp_path, 8)) <= whole + 1e-6).all()


def test_the_original_itself_has_none(tmp_path: Path) -> None:
    assert float(kl(saved(tmp_path, 4), ORIGINAL).max()) < 1e-6


def test_other_passages_and_files_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    path = tmp_path / "4.safetensors"
    with pytest.raises(UserError, match="made on 2 passages, these are 1"):
        reference.load(path, PASSAGES[:1])
    with pytest.raises(UserError, match=r"passage 2 has other tokens"):
        reference.load(path, [PASSAGES[0], Passage(torch.arange(61, 64))])
    other = tmp_path / "other.safetensors"
    artifacts.save_tensors(other, {"a": torch.zeros(1)})
    with pytest.raises(UserError, match="no predictions of a model"):
        reference.load(other, PASSAGES)
    wider = tiny.build(vocab_size=VOCABULARY + 8)
    with pytest.raises(UserError, match="they can't be compared"):
        kl(reference.load(path, PASSAGES), wider)


def test_the_verb_saves_and_reads(tiny_checkpoint: Path, tmp_path: Path) -> None:
    traces = tiny.write_traces(tmp_path / "traces.jsonl")
    common = ["evaluate", str(tiny_checkpoint), "--traces", str(traces)]
    file = str(tmp_path / "reference.safetensors")
    made = CliRunner().invoke(app, [*common, "--save-reference", file, "--kept", "16"])
    assert made.exception is None and "4 passages" in made.output
    read = CliRunner().invoke(app, [*common, "--reference", file, "--out", str(tmp_path / "result.json")])
    assert read.exception is None
    result = artifacts.read_json(tmp_path / "result.json")
    assert result["traces"]["kl_mean"] < 1e-6 and result["traces"]["top1_agreement"] == 1
    text = tmp_path / "text.txt"
    text.write_text(tiny.TEXT)
    wrong = CliRunner().invoke(app, ["evaluate", str(tiny_checkpoint), "--text", str(text), "--reference", file])
    assert "passages" in str(wrong.exception)


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    saved(tmp_path, 7)
    path = tmp_path / "7.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match="its values are not those that were written; make it again"):
        reference.load(path, PASSAGES)
