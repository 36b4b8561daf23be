"""Models on the hub, from a cache as huggingface_hub lays it out, without network: one commit for all of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tiny
from huggingface_hub import constants

from mixprec.calibration import data
from mixprec.core import hub
from mixprec.core.errors import UserError
from mixprec.importance import streaming
from mixprec.models.config import load_config
from mixprec.models.locate import at_hand, fetch
from mixprec.models.model import Model
from mixprec.pipeline.run import Run
from mixprec.recipe import load

FIRST, SECOND = "1" * 40, "2" * 40
NAME = "owner/tiny"


class Cache:
    """A repository in the hub's cache; branches can be moved."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "models--owner--tiny"

    def put(self, commit: str, files: Path) -> None:
        """A snapshot: links to blobs."""
        for path in (path for path in files.rglob("*") if path.is_file()):
            blob = self.folder / "blobs" / f"{commit}-{path.name}"
            link = self.folder / "snapshots" / commit / path.relative_to(files)
            blob.parent.mkdir(parents=True, exist_ok=True)
            link.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, blob)
            link.symlink_to(blob)

    def point(self, name: str, commit: str) -> None:
        ref = self.folder / "refs" / name
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two commits of one model: other weights, and a tokenizer that puts BOS in front or not."""
    root = tmp_path_factory.mktemp("versions")
    return {
        commit: tiny.write_checkpoint(root / commit, seed=seed, bos=bool(seed))
        for seed, commit in enumerate((FIRST, SECOND))
    }


@pytest.fixture
def cache(tmp_path: Path, versions: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Cache:
    root = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    made = Cache(root)
    for commit, files in versions.items():
        made.put(commit, files)
    made.point("main", FIRST)
    made.point("dev", SECOND)
    hub.forget()
    return made


def test_a_branch_is_the_commit_that_was_fetched_last(cache: Cache) -> None:
    assert Model(NAME).commit == Model(NAME, revision="main").commit == Model(NAME, revision=FIRST).commit == FIRST
    assert Model(NAME, revision="dev").commit == SECOND
    assert Model(NAME).identity == f"{NAME}@{FIRST}"
    assert Model(NAME, revision="dev").identity == f"{NAME}@{SECOND}"
    assert Model(NAME, revision="dev").origin == {"model": NAME, "revision": "dev", "commit": SECOND}


def test_one_commit_for_all_of_a_run(cache: Cache) -> None:
    assert Model(NAME).commit == FIRST
    cache.point("main", SECOND)
    assert Model(NAME).commit == FIRST
    hub.forget()
    assert Model(NAME).commit == SECOND


@pytest.mark.parametrize(("revision", "commit"), [(None, FIRST), ("dev", SECOND), (SECOND, SECOND)])
def test_every_part_reads_the_revision_that_was_asked_for(
    cache: Cache, versions: dict[str, Path], revision: str | None, commit: str
) -> None:
    expected = Model(versions[commit]).load()
    loaded = Model(NAME, revision=revision).load()
    streamed = streaming.open_model(Model(NAME, revision=revision))
    for found in (loaded.encoder, streamed.encoder, Model(NAME, revision=revision).encoder):
        assert found.head == expected.encoder.head == (() if commit == FIRST else (0,))
    weights, wanted = loaded.model.state_dict(), expected.model.state_dict()
    assert all(weights[name].equal(tensor) for name, tensor in wanted.items())
    assert fetch(NAME, revision).name == commit
    assert at_hand(load_config(NAME, revision)) == fetch(NAME, revision)


def test_nothing_in_the_cache_and_no_network(cache: Cache) -> None:
    with pytest.raises(UserError, match=r"model\.id: owner/other: revision main: not in the hub's cache"):
        Model("owner/other").load()
    with pytest.raises(UserError, match=r"revision v9: not in the hub's cache .*give a local folder"):
        _ = Model(NAME, revision="v9").identity


def test_what_the_hub_refuses_is_not_taken_from_the_cache(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the hub's answer: there is none here."""

    def refuse(*_: Any, **__: Any) -> None:
        raise huggingface_hub.errors.RevisionNotFoundError.__new__(huggingface_hub.errors.RevisionNotFoundError)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(UserError, match=r"the hub has none that you may read \(RevisionNotFoundError\)"):
        _ = Model(NAME, revision="dev").identity


def test_a_revision_of_what_has_none(versions: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"model\.revision: 'main': .* lies on this machine and has no revisions"):
        Model(versions[FIRST], revision="main").load()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    traces = tiny.write_traces(tmp_path / "traces.jsonl")
    calibration = {"text": str(tmp_path / "text.txt"), "samples": 2, "tokens": 16}
    path = tiny.write_recipe(
        tmp_path / "recipe.yaml",
        Path(NAME),
        traces,
        importance={"preset": "paper", "resamples": 0},
        compress={"method": "gptq", "calibration": calibration},
        variants={"w4": {"plan": {"default": "w4g16"}}},
    )
    said = json.loads(path.read_text())
    said["model"]["revision"] = "dev"
    path.write_text(json.dumps(said))
    return path


@pytest.mark.slow
def test_a_run_says_which_commit_it_read_and_is_made_anew_where_the_branch_moved(
    cache: Cache, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, read = [], data.load

    def watched(spec: Any, encoder: Any, *rest: Any, **options: Any) -> Any:
        heads.append(encoder.head)
        return read(spec, encoder, *rest, **options)

    monkeypatch.setattr(data, "load", watched)

    def run() -> tuple[dict[str, Any], dict[str, Any], str]:
        found = Run(load(recipe), recipe.read_text(), "r", tmp_path / "run", None).run()
        card = json.loads((tmp_path / "run/variants/w4/checkpoint/mixprec.json").read_text())
        return found["provenance"], card["source"], capsys.readouterr().err

    provenance, source, said = run()
    assert heads == [(0,)]  # calibration reads the recipe's revision
    assert (provenance["revision"], provenance["commit"]) == ("dev", SECOND)
    assert (source["model"], source["revision"], source["commit"]) == (NAME, "dev", SECOND)
    assert "moved" not in said
    stages = {path.name: path.read_bytes() for path in (tmp_path / "run/.stages").iterdir()}
    assert "moved" not in run()[2]
    assert {path.name: path.read_bytes() for path in (tmp_path / "run/.stages").iterdir()} == stages
    cache.point("dev", FIRST)
    provenance, source, said = run()
    assert provenance["commit"] == source["commit"] == FIRST
    assert f"owner/tiny: dev moved from {SECOND[:12]} to {FIRST[:12]} since the last run" in " ".join(said.split())
    moved = {path.name: path.read_bytes() for path in (tmp_path / "run/.stages").iterdir()}
    assert all(moved[name] != before for name, before in stages.items() if not name.startswith("annotate"))
