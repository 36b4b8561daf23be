"""Hub datasets: what the datasets package is asked for, and what becomes of its answer. No network."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny

from mixprec.core.errors import UserError

WORDS = tiny.tokenizer(bos=False)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Table:
    """As much of datasets.Dataset as is used."""

    def __init__(self, commit: str = COMMIT, **columns: list[Any]) -> None:
        self._columns = columns
        self.column_names = list(columns)
        # Where datasets 5 keeps what it loaded.
        self.cache_files = [{"filename": f"/cache/owner___name/default/0.0.0/{commit}/name-train.arrow"}]

    def __getitem__(self, column: str) -> list[Any]:
        return self._columns[column]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A datasets package whose load_dataset gives ``table`` and remembers what it was asked for."""
    fake = SimpleNamespace(table=Table(text=[f"Row {n} has {n * n} apples." for n in range(50)], id=[1] * 50))

    def load_dataset(path: str, name: str | None = None, **options: Any) -> Table:
        fake.asked = {"path": path, "name": name, **options}
        return fake.table

    fake.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return fake


def test_what_the_hub_is_asked_for(hub: Any, load: Any) -> None:
    load(dataset="owner/name", revision=COMMIT, samples=2, tokens=16)
    assert hub.asked == {
        "path": "owner/name",
        "name": None,
        "data_files": None,
        "split": "train",
        "revision": COMMIT,
        "keep_in_memory": False,
        "trust_remote_code": False,
    }
    part = {"name": "en", "split": "validation[:20]", "files": ["en/a.json.gz"], "column": "text"}
    load(dataset="owner/name", revision=COMMIT, samples=2, tokens=16, **part)
    assert (hub.asked["name"], hub.asked["split"]) == ("en", "validation[:20]")
    assert hub.asked["data_files"] == {"validation": ["en/a.json.gz"]}


def test_rows_are_joined_and_cut(hub: Any, load: Any) -> None:
    ids = WORDS("\n\n".join(hub.table["text"]))["input_ids"]
    expected = [tuple(ids[at : at + 16]) for at in range(0, len(ids) - 15, 16)]
    found = load(dataset="owner/name", revision=COMMIT, samples=len(expected), tokens=16)
    assert sorted(map(tuple, found.tokens.tolist())) == sorted(expected)
    [described] = found.described["sources"]
    assert (described["kind"], described["dataset"], described["revision"]) == ("dataset", "owner/name", COMMIT)
    assert (described["split"], described["column"], described["rows"]) == ("train", "text", 50)


def test_without_the_package(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # makes the import fail
    with pytest.raises(UserError, match=r"need the datasets package; run: pip install 'mixprec\[hub\]'"):
        load(dataset="owner/name", revision=COMMIT)


def test_a_dataset_that_cannot_be_loaded(hub: Any, load: Any) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nmore")

    hub.load_dataset = refuse
    with pytest.raises(UserError, match=r"dataset owner/name: revision 0123456789ab…, .*ConnectionError: no route\)"):
        load(dataset="owner/name", revision=COMMIT)


def test_a_folder_of_that_name(hub: Any, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    with pytest.raises(UserError, match="owner/name is a folder here, which goes before the hub's dataset"):
        load(dataset="owner/name", revision=COMMIT)
    assert not hasattr(hub, "asked")


def test_another_revision_from_the_cache(hub: Any, load: Any) -> None:
    """Without a network datasets 5 gives the revision that it loaded last, and only logs it."""
    hub.table = Table("f" * 40, text=["Some apples."] * 90)
    with pytest.raises(UserError, match=r"revision 0123456789ab… could not be fetched, and the cache .* another one"):
        load(dataset="owner/name", revision=COMMIT)


def test_columns(hub: Any, load: Any) -> None:
    with pytest.raises(UserError, match="column: 'body' is not there; there are text, id"):
        load(dataset="owner/name", revision=COMMIT, column="body")
    with pytest.raises(UserError, match="column: id holds int in row 0, no text"):
        load(dataset="owner/name", revision=COMMIT, column="id")
    hub.table = Table(text=["", "\n"])
    with pytest.raises(UserError, match="column: text is empty in split train"):
        load(dataset="owner/name", revision=COMMIT)


def test_parts_of_one_split_may_overlap(hub: Any, load: Any) -> None:
    one = {"dataset": "owner/name", "revision": COMMIT, "split": "train[:30]"}
    with pytest.raises(UserError, match="dataset owner/name has the content of dataset owner/name; give it once"):
        load(sources=[one, {**one, "split": "train[20:]"}], samples=2, tokens=8)
    load(sources=[one, {**one, "split": "validation"}], samples=2, tokens=8)
