"""Other quantizers in a recipe: what is refused before any work, what a failure leaves, and real ones at work."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file

from mixprec import pipeline, recipe
from mixprec.calibration.data import Calibration
from mixprec.checkpoint import integrity
from mixprec.contrib.peers import client, engine
from mixprec.contrib.peers.engine import Peer
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import Plan

VARIANTS: dict[str, dict[str, Any]] = {
    "ours": {"plan": {"default": "w3g16", "method": "rtn", "rules": [{"match": "last_mlp", "format": "keep"}]}},
    "theirs": {
        "plan": {"default": "w3g16", "method": "rtn", "rules": [{"match": "last_mlp", "format": "keep"}]},
        "engine": "llmcompressor",
    },
    "gptq": {"plan": {"default": "w3g16", "method": "gptq"}, "engine": "llmcompressor"},
    "pruned": {"plan": {"default": "keep", "sparsity": 0.5, "method": "sparsegpt"}, "engine": "llmcompressor"},
}


def plan_of(checkpoint: Path, **spec: Any) -> Plan:
    inventory = decoder_of(load_config(str(checkpoint)))
    return build_plan(PlanSpec.model_validate(spec), inventory, str(checkpoint), "rtn", None, None)


def fake_environment(folder: Path, name: str) -> None:
    """An environment that has an interpreter and no peer in it."""
    (folder / name / "bin").mkdir(parents=True)
    (folder / name / "bin" / "python").symlink_to(sys.executable)
    (folder / name / ".mixprec-peer").write_text("key\n", encoding="utf-8")


def write_recipe(folder: Path, checkpoint: Path, variants: dict[str, Any], **compress: Any) -> Path:
    text = folder / "text.txt"
    text.write_text(tiny.TEXT, encoding="utf-8")
    traces = tiny.write_traces(folder / "traces.jsonl")
    calibration = {"traces": str(traces), "samples": 4, "tokens": 16}
    made = {
        "model": {"id": str(checkpoint)},
        "compress": {"method": "rtn", "calibration": calibration, **compress},
        "variants": variants,
        "evaluate": {"text": str(text), "text_tokens": 32},
    }
    path = folder / "peers.yaml"
    path.write_text(yaml.safe_dump(made), encoding="utf-8")
    return path


def test_a_recipe_names_engine_and_method_that_go_together(tmp_path: Path, tiny_checkpoint: Path) -> None:
    variants = {"one": {"plan": {"default": "w3g16", "method": "anyk"}, "engine": "gptqmodel"}}
    path = write_recipe(tmp_path, tiny_checkpoint, variants)
    with pytest.raises(UserError, match="variant one: engine gptqmodel has no method anyk; it has rtn, gptq, gptaq"):
        recipe.load(path)
    variants = {"one": {"plan": {"default": "w3g16"}, "engine": "autoround"}}
    path = write_recipe(tmp_path, tiny_checkpoint, variants, calibration=None)
    with pytest.raises(UserError, match="engine autoround looks at the inputs of linears; add compress"):
        recipe.load(path)
    path = write_recipe(tmp_path, tiny_checkpoint, VARIANTS)
    with pytest.raises(UserError, match="variant gptq: what engine llmcompressor makes is written dense"):
        recipe.load(path, ["checkpoint.format=gptq"])
    with pytest.raises(UserError, match="engine"):
        recipe.load(write_recipe(tmp_path, tiny_checkpoint, {"one": {"plan": {"default": "w3"}, "engine": "magic"}}))


def test_a_missing_environment_is_told_before_any_work(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXPREC_PEERS", str(tmp_path / "none"))
    path = write_recipe(tmp_path, tiny_checkpoint, VARIANTS)
    with pytest.raises(UserError, match=r"run: bash benchmarks/peers/build.sh llmcompressor"):
        pipeline.Run(recipe.load(path), path.read_text(), "peers", tmp_path / "run", None).run()
    assert not (tmp_path / "run" / "variants").exists()


def test_a_peer_that_fails_leaves_its_words_and_no_checkpoint(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter is real, and has no packages."""
    monkeypatch.setenv("MIXPREC_PEERS", str(tmp_path / "peers"))
    fake_environment(tmp_path / "peers", "modelopt")
    out = tmp_path / "out" / "checkpoint"
    with pytest.raises(UserError, match=r"(?s)modelopt rtn failed:.*No module named 'torch'"):
        engine.compress(Peer("modelopt", {}), Model(tiny_checkpoint), plan_of(tiny_checkpoint, default="w4g16"), out)
    assert [path.name for path in out.parent.iterdir()] == ["peer.log"]
    assert "No module named 'torch'" in (out.parent / "peer.log").read_text(encoding="utf-8")


def test_a_head_of_its_own_is_not_tied_in_what_a_peer_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer is not here; it copies config.json, which says that the head is the embedding."""

    def copied(job: Mapping[str, Any], log: Path) -> dict[str, Any]:
        shutil.copytree(job["model"], job["out"])
        return {"peer": "modelopt", "method": "rtn", "versions": {}, "settings": {}}

    source = tiny.write_checkpoint(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    monkeypatch.setattr(client, "run_peer", copied)
    engine.compress(Peer("modelopt", {}), Model(source), plan_of(source, default="w4g16"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_peer_ends_with_the_run_that_started_it(tmp_path: Path, tiny_checkpoint: Path, sent: signal.Signals) -> None:
    """The interpreter is a shell script that waits."""
    fake_environment(tmp_path / "peers", "modelopt")
    python, number = tmp_path / "peers" / "modelopt" / "bin" / "python", tmp_path / "number"
    python.unlink()
    python.write_text(f"#!/bin/sh\necho $$ > {number}.new; mv {number}.new {number}\nexec sleep 600\n")
    python.chmod(0o755)
    path = write_recipe(tmp_path, tiny_checkpoint, {"theirs": {"plan": {"default": "w4g16"}, "engine": "modelopt"}})
    process = subprocess.Popen(
        [sys.executable, "-m", "mixprec", "run", str(path), "--out", str(tmp_path / "run")],
        env=os.environ | {"MIXPREC_PEERS": str(tmp_path / "peers")},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A shell that starts tests in the background has its children ignore Ctrl-C.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not number.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; what is finished is kept: the same command continues" in errors
    assert not psutil.pid_exists(int(number.read_text()))


def test_what_a_peer_can_t_do_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    inventory = decoder_of(load_config(str(tiny_checkpoint)))
    peer = Peer("llmcompressor", {})
    with pytest.raises(UserError, match="engine: llmcompressor has no method gptaq; it has rtn, gptq, awq, sparsegpt"):
        peer.request(plan_of(tiny_checkpoint, default="w3g16", method="gptaq"), inventory)
    rules = [{"match": "1_q", "sparsity": 0.3}]
    uneven = plan_of(tiny_checkpoint, default="keep", sparsity=0.5, method="sparsegpt", rules=rules)
    with pytest.raises(UserError, match="prunes all modules alike"):
        peer.request(uneven, inventory)
    even = plan_of(tiny_checkpoint, default="keep", sparsity="2:4", method="sparsegpt")
    assert peer.request(even, inventory) == {"method": "sparsegpt", "sparsity": {"ratio": 0.5, "pattern": "2:4"}}
    gptq = plan_of(tiny_checkpoint, default="w3g16", method="gptq")
    with pytest.raises(UserError, match="engine: llmcompressor needs calibration data"):
        engine.compress(peer, Model(tiny_checkpoint), gptq, tmp_path / "out")
    weighted = Calibration(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4), {}, "digest")
    with pytest.raises(UserError, match="counts all calibration tokens alike"):
        engine.compress(peer, Model(tiny_checkpoint), gptq, tmp_path / "out", calibration=weighted)


@pytest.mark.slow
def test_llm_compressor_in_a_recipe(tmp_path: Path, tiny_checkpoint: Path) -> None:
    reason = client.missing("llmcompressor")
    if reason:
        pytest.skip(reason)
    path = write_recipe(tmp_path, tiny_checkpoint, VARIANTS)
    out = tmp_path / "run"
    run = pipeline.Run(recipe.load(path), path.read_text(), "peers", out, None)
    rows = run.run()["variants"]
    # Plain rounding is the same grid for both, but that mixprec's scales have 16 bits. A group's largest magnitude lies
    # half-way between two points, so that where it is negative it goes to either: up to one in 32 weights.
    ours, theirs = (
        load_file(out / "variants" / name / "checkpoint" / "model.safetensors") for name in ("ours", "theirs")
    )
    for name, weight in ours.items():
        same = torch.isclose(weight, theirs[name], rtol=2e-3, atol=1e-6)
        assert same.float().mean() > 1 - 1 / 32, name
    assert rows["theirs"]["kl_mean"] == pytest.approx(rows["ours"]["kl_mean"], rel=0.15)
    assert rows["theirs"]["quality"]["weight_error"] == pytest.approx(rows["ours"]["quality"]["weight_error"], rel=0.01)
    # It moves weights away from their nearest points.
    assert rows["gptq"]["quality"]["weight_error"] > 1.02 * rows["theirs"]["quality"]["weight_error"]
    assert rows["pruned"]["quality"]["zeros"] == pytest.approx(0.5, abs=0.02)
    card = json.loads((out / "variants" / "gptq" / "checkpoint" / "mixprec.json").read_text())
    assert card["engine"]["peer"] == "llmcompressor"
    assert integrity.verify(out / "variants" / "gptq" / "checkpoint")
    assert card["engine"]["versions"]["llmcompressor"]
    assert run.calibration is not None
    assert card["calibration"]["digest"] == run.calibration.digest
    stamps = {p.name: artifacts.sha256_file(p) for p in (out / "variants" / "gptq" / "checkpoint").iterdir()}
    again = pipeline.Run(recipe.load(path), path.read_text(), "peers", out, None).run()["variants"]
    assert again["gptq"] == rows["gptq"]
    assert stamps == {p.name: artifacts.sha256_file(p) for p in (out / "variants" / "gptq" / "checkpoint").iterdir()}
