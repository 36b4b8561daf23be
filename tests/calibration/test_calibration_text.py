"""Samples from text: exact windows, exact counts, never silently fewer."""

from __future__ import annotations

import copy
import hashlib
import random
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from mixprec.calibration import data, sources
from mixprec.calibration.spec import CalibrationSpec
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.models.encoding import Encoder
from mixprec.models.locate import BUNDLED
from mixprec.models.model import Model

WORDS = tiny.tokenizer(bos=False)
WITH_BOS = tiny.tokenizer(bos=True)


def rows(found: data.Calibration) -> list[tuple[int, ...]]:
    return [tuple(row) for row in found.tokens.tolist()]


def test_samples_are_windows_of_the_text(load: Any, text: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    found = load(tokenizer, text=str(text), samples=9, tokens=32, seed=5)
    assert found.tokens.shape == (9, 32) and found.tokens.dtype == torch.int64
    assert found.weights is None
    ids = WORDS(text.read_text())["input_ids"]
    front = [0] if tokenizer("a")["input_ids"][0] == 0 else []
    step = 32 - len(front)
    all_windows = [tuple(front + ids[at : at + step]) for at in range(0, len(ids) - step + 1, step)]
    assert set(rows(found)) <= set(all_windows)
    assert len(set(rows(found))) == 9  # none twice
    [described] = found.described["sources"]
    assert described["windows"] == len(all_windows)
    assert (described["used"], described["tokens"]) == (9, 9 * 32)
    assert described["tokens_read"] == len(ids)
    assert described["tokens_cut_off"] == len(ids) % step
    assert found.described["head"] == front
    # All of them, when all are asked for.
    everything = load(tokenizer, text=str(text), samples=len(all_windows), tokens=32)
    assert sorted(rows(everything)) == sorted(all_windows)


def test_more_samples_hold_the_fewer(load: Any, text: Path) -> None:
    few, many = (set(rows(load(text=str(text), samples=samples, tokens=16))) for samples in (5, 20))
    assert few < many


def test_same_seed_same_digest(load: Any, text: Path) -> None:
    first, again, other = (load(text=str(text), samples=6, tokens=32, seed=seed) for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert torch.equal(first.tokens, again.tokens)
    assert first.described == again.described
    assert first.digest == artifacts.fingerprint(first.tokens.tolist(), None)


def test_global_generators_do_not_matter(load: Any, text: Path) -> None:
    digests = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        digests.add(load(text=str(text), samples=6, tokens=32).digest)
    assert len(digests) == 1


def test_one_character_changes_the_provenance(load: Any, text: Path) -> None:
    spec = {"text": "data:text.txt", "samples": 3, "tokens": 16}
    before = load(**spec)
    content = text.read_text()
    used = WORDS.decode(before.tokens[0]).strip()[3:13]
    text.write_text(content.replace(used, used[:-1] + "#"))
    after = load(**spec)
    assert before.described["sources"][0]["sha256"] == hashlib.sha256(content.encode()).hexdigest()
    assert before.described["sources"][0]["sha256"] != after.described["sources"][0]["sha256"]
    assert before.digest != after.digest


def test_provenance_knows_no_folders(load: Any, text: Path) -> None:
    names = [
        load(text=name, samples=1, tokens=16).described["sources"][0]["name"] for name in ("data:text.txt", str(text))
    ]
    assert names == ["data:text.txt", "text.txt"]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(4, 40), st.integers(0, 5))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_shares_of_a_mix(tmp_path: Path, load: Any, shares: list[int], samples: int, seed: int) -> None:
    mix = []
    for number, share in enumerate(shares):
        path = tmp_path / f"{number}.txt"
        letter = "abcd"[number]
        path.write_text("".join(f"{letter}{word} " for word in range(800)))
        mix.append({"text": str(path), "share": share})
    try:
        found = load(sources=mix, samples=samples, tokens=8, seed=seed)
    except UserError as problem:
        assert "none of them is left for text" in str(problem)
        assert samples * min(shares) < sum(shares)
        return
    used = [source["used"] for source in found.described["sources"]]
    assert sum(used) == samples == len(found.tokens) == len(set(rows(found)))
    for count, share in zip(used, shares, strict=True):
        assert abs(count - samples * share / sum(shares)) < 1
    # What was described is what is there.
    text = [WORDS.decode(row) for row in found.tokens]
    assert used == [sum(letter in part for part in text) for letter in "abcd"[: len(shares)]]


@pytest.mark.parametrize("content", ["", " \n\t\n"])
def test_empty_texts(tmp_path: Path, load: Any, content: str) -> None:
    (tmp_path / "empty.txt").write_text(content)
    with pytest.raises(UserError, match=r"calibration: text data:empty\.txt: .*empty\.txt is empty"):
        load(text="data:empty.txt")


def test_too_few_windows(load: Any, text: Path) -> None:
    available = load(text=str(text), samples=1, tokens=32).described["sources"][0]["windows"]
    with pytest.raises(UserError) as caught:
        load(text="data:text.txt", samples=available + 1, tokens=32)
    message = str(caught.value)
    assert (
        f"text data:text.txt: {len(WORDS(text.read_text())['input_ids'])} tokens give {available} samples of 32"
        in message
    )
    assert f"{available + 1} are asked for; lower samples or tokens, or add sources" in message
    (text.parent / "short.txt").write_text("apple")
    with pytest.raises(UserError, match="give 0 samples of 32; 1 are asked for"):
        load(text="data:short.txt", samples=1, tokens=32)


def test_samples_longer_than_the_context(load: Any, text: Path) -> None:
    with pytest.raises(UserError, match=r"calibration\.tokens: 257 is more than the model's context of 256; lower it"):
        load(text=str(text), tokens=257, context=256)


def test_no_room_behind_the_head(load: Any, text: Path) -> None:
    words = copy.deepcopy(WITH_BOS)
    words.backend_tokenizer.post_processor = tiny.processors.TemplateProcessing(
        single="<s> <s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert Encoder(words, len(words)).head == (0, 0)
    assert load(words, text=str(text), tokens=8, samples=2).tokens[:, :2].tolist() == [[0, 0], [0, 0]]
    with pytest.raises(UserError, match="leaves no room behind the 2 tokens that every text begins with"):
        load(words, text=str(text), tokens=2)


def test_missing_files(load: Any) -> None:
    with pytest.raises(UserError, match=r"gone\.txt does not exist"):
        load(text="data:gone.txt")
    with pytest.raises(UserError, match=r"gone\.txt: can't be read"):
        load(text="gone.txt")


def test_what_evaluation_uses_under_another_name(tmp_path: Path, load: Any) -> None:
    folder = resources.files("mixprec.traces").joinpath("data")
    for name in ("held_out.txt", "held_out.jsonl"):
        (tmp_path / f"mine_{name}").write_bytes(folder.joinpath(name).read_bytes())
    with pytest.raises(UserError, match=r"text data:mine_held_out\.txt: the file is bundled:held_out; it is what"):
        load(text="data:mine_held_out.txt")
    with pytest.raises(UserError, match=r"traces data:mine_held_out\.jsonl: the file is bundled:held_out"):
        load(traces="data:mine_held_out.jsonl")


def test_the_same_source_twice(load: Any, text: Path) -> None:
    (text.parent / "copy.txt").write_bytes(text.read_bytes())
    with pytest.raises(UserError, match=r"text data:copy\.txt has the content of text data:text\.txt; give it once"):
        load(sources=[{"text": "data:text.txt"}, {"text": "data:copy.txt"}], samples=2, tokens=8)


def test_loops_are_left_out_and_counted(tmp_path: Path, load: Any) -> None:
    varied = "".join(f"Line {n} of {n * n}.\n" for n in range(60))
    (tmp_path / "loop.txt").write_text(varied + "I said so. " * 400)
    skipped = load(text="data:loop.txt", samples=4, tokens=64)
    [described] = skipped.described["sources"]
    assert 0 < described["windows_looping"] < described["windows"]
    assert all("Line" in WORDS.decode(row) for row in skipped.tokens)
    clean = described["windows"] - described["windows_looping"]
    with pytest.raises(UserError, match=rf"{described['windows_looping']} of them loops \(loops: keep takes them\)"):
        load(text="data:loop.txt", samples=clean + 1, tokens=64)
    kept = load(text="data:loop.txt", samples=clean + 1, tokens=64, loops="keep")
    assert kept.described["figures"]["looping_samples"] > 0 == skipped.described["figures"]["looping_samples"]
    assert any("repeat themselves" in line for line in data.warnings(kept, 4))


@given(st.text(alphabet="ab \nß", max_size=200), st.integers(1, 20))
def test_pieces_lose_nothing(text: str, size: int) -> None:
    pieces = list(sources._pieces(text, size))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= size for piece in pieces)
    for piece, following in pairwise(pieces):
        if "\n" in piece:
            assert piece.endswith("\n")
        elif " " in piece[1:]:
            assert following.startswith(" ")


def test_wikitext_in_samples_of_the_embedded_model(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = Model(BUNDLED).encoder
    path = shared_data / "calibration" / "wikitext2_tokenized_valid.txt"
    spec = CalibrationSpec.model_validate({"text": str(path), "samples": 32, "tokens": 512})
    found = data.load(spec, words, str, 8192)
    assert found.tokens.shape == (32, 512)
    [described] = found.described["sources"]
    assert (described["tokens_read"], described["windows"], described["windows_looping"]) == (273_868, 534, 0)
    assert described["sha256"].startswith("f0737ed3")
    assert found.digest.startswith("92e54766")  # the same windows in later versions and on other machines
    assert data.warnings(found, 1536, 576) == []
    # The text of a sample is text of the file.
    text = path.read_text(encoding="utf-8")
    assert words.decode(found.tokens[0]) in text
    # Tokenized in pieces it is what it is in one: they are cut at ends of lines.
    whole = sources.encode(text[:100_000], words)
    monkeypatch.setattr(sources, "_PIECE", 5_000)
    assert torch.equal(sources.encode(text[:100_000], words), whole)
