"""Two commands at once: the second is told who is at work, and in a cache it takes what the first one made."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import tiny

from mixprec import cli
from mixprec.checkpoint.formats import checkpoint_format
from mixprec.compress.stream import compress
from mixprec.core import locks
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import load_plan, save_plan


@pytest.fixture
def plan(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    inventory = decoder_of(load_config(str(tiny_checkpoint)))
    made = build_plan(PlanSpec(default="w4g16"), inventory, str(tiny_checkpoint), "rtn", None)
    save_plan(tmp_path / "plan.json", made)
    return tmp_path / "plan.json"


def mix(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mixprec", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("verb", "lock"),
    [
        (["run", "r.yaml", "--out", "out"], locks.folder),
        (["report", "out"], locks.folder),
        (["attribute", "spans.jsonl", "--model", "MODEL", "--out", "out"], locks.folder),
        (["shift", "a.json", "b.json", "--out", "out"], locks.folder),
        (["sensitivity", "--model", "MODEL", "--text", "t", "--format", "w4g16", "--out", "out"], locks.folder),
        (["ablate", "r.yaml", "--out", "out"], locks.folder),
        (["bench", "MODEL", "--out", "out"], locks.folder),
        (["trace", "prompts.jsonl", "--model", "MODEL", "--out", "out"], locks.target),
        (["compress", "plan.json", "--out", "out"], locks.target),
        (["convert", "packed", "--format", "compressed-tensors", "--out", "out"], locks.target),
    ],
    ids=lambda verb: verb[0] if isinstance(verb, list) else "",
)
def test_the_second_command_ends_with_exit_code_2(
    verb: list[str],
    lock: Callable[..., AbstractContextManager[None]],
    tiny_checkpoint: Path,
    plan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    traces = tiny.write_traces(tmp_path / "traces.jsonl")
    tiny.write_recipe(tmp_path / "r.yaml", tiny_checkpoint, traces)
    (tmp_path / "prompts.jsonl").write_text('{"id": "a", "prompt": "x"}\n')
    if verb[0] == "convert":
        chosen = load_plan(plan, decoder_of(load_config(str(tiny_checkpoint))))
        compress(Model(tiny_checkpoint), chosen, tmp_path / "packed", format=checkpoint_format("compressed-tensors"))
    before = None
    with lock(Path("out")):
        before = sorted(path.name for path in tmp_path.rglob("*"))
        assert mix(monkeypatch, *[str(tiny_checkpoint) if part == "MODEL" else part for part in verb]) == 2
        assert sorted(path.name for path in tmp_path.rglob("*")) == before
    told = capsys.readouterr().err
    assert re.search(rf"error: .*out: process {os.getpid()} on .* \(since .*\) is at work there; wait", told), told


def test_of_two_that_need_a_conversion_one_makes_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    inventory = decoder_of(load_config(str(tiny_checkpoint)))
    spec = PlanSpec.model_validate({"default": "keep", "rules": [{"match": "*_q", "format": "q8_0"}]})
    made = build_plan(spec, inventory, str(tiny_checkpoint), "ggml", None)
    compress(Model(tiny_checkpoint), made, tmp_path / "gguf", format=checkpoint_format("gguf"))
    file = next((tmp_path / "gguf").glob("*.gguf"))
    code = "from mixprec.core import progress; progress.speak(); import sys; "
    code += "from mixprec.models.model import Model; print(Model(sys.argv[1]).identity)"
    command = [sys.executable, "-c", code, str(file)]
    environment = os.environ | {"MIXPREC_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) for _ in range(3)]
    ended = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], ended
    assert len({out for out, _ in ended}) == 1
    assert "".join(errors for _, errors in ended).count("converting") == 1
    (folder,) = (tmp_path / "cache" / "models").iterdir()  # no lock, nothing half-made
    # A bit of the conversion that changes is noticed by the next process that takes it.
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-7] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert again.stdout == ended[0][0]
    assert "was changed or damaged since it was written; converted again" in " ".join(again.stderr.split())


def test_a_limit_on_the_size_of_files(tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tiny_checkpoint, tiny.write_traces(tmp_path / "traces.jsonl"))
    command = [sys.executable, "-m", "mixprec", "run", str(recipe), "--out", str(tmp_path / "run")]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    assert re.search(r"error: .*: larger than its file system or the limit on file sizes \(ulimit -f\)", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_link_in_a_run_is_refused_before_anything_is_removed(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is linked: it may be another run's variant, with a checkpoint that mixprec made."""
    traces = tiny.write_traces(tmp_path / "traces.jsonl")
    keep = {"only": {"plan": {"default": "keep"}}}
    recipe = tiny.write_recipe(
        tmp_path / "r.yaml", tiny_checkpoint, traces, importance=None, traces=None, evaluate=None, variants=keep
    )
    precious = tmp_path / "precious"
    (precious / "checkpoint").mkdir(parents=True)
    for name in ("checkpoint/mixprec.json", "quality.json", "plan.json"):
        (precious / name).write_text(json.dumps({"mine": True}))
    before = {path: path.read_bytes() for path in precious.rglob("*") if path.is_file()}
    for link in ("variants/only", "variants", "variants/only/checkpoint"):
        out = tmp_path / link.replace("/", "_")
        (out / link).parent.mkdir(parents=True)
        (out / link).symlink_to(precious)
        assert mix(monkeypatch, "run", str(recipe), "--out", str(out)) == 2
        assert re.search(rf"{re.escape(link)}: is a link to .*precious; nothing behind a link", capsys.readouterr().err)
        assert not (out / "recipe.yaml").exists()
    assert before == {path: path.read_bytes() for path in precious.rglob("*") if path.is_file()}


def test_a_run_and_a_checkpoint_may_lie_behind_a_link(
    tiny_checkpoint: Path, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for _ in range(2):  # new, and replaced
        assert mix(monkeypatch, "compress", str(plan), "--out", str(tmp_path / "out")) == 0
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        (["plan", "n" * 300], "the name is too long"),
        (["plan", "r.yaml", "--variant", "uniform", "--out", "n" * 300], "the name is too long"),
        (["rank", "n" * 300], "too long"),
        (["rank", "circle"], "can't be read|circle"),
        (["annotate", "folder", "--out", "s.jsonl"], "folder"),
        (["evaluate", "MODEL", "--text", "n" * 300], "too long"),
        (["inspect", "n" * 300], "too long"),
        (["compress", "plan.json", "--out", "n" * 300], "too long"),
        (["compress", "plan.json", "--out", "r.yaml/x"], "r.yaml"),
        (["run", "r.yaml", "--out", "n" * 300], "too long"),
        (["run", "r.yaml", "--out", "r.yaml/x"], "r.yaml/x: can't be written"),
    ],
    ids=lambda verb: "-".join(verb)[:30] if isinstance(verb, list) else "",
)
def test_what_the_file_system_refuses_is_told_with_the_files_name(
    verb: list[str],
    message: str,
    tiny_checkpoint: Path,
    plan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_recipe(tmp_path / "r.yaml", tiny_checkpoint, tiny.write_traces(tmp_path / "traces.jsonl"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    assert mix(monkeypatch, *[str(tiny_checkpoint) if part == "MODEL" else part for part in verb]) == 2
    told = capsys.readouterr().err
    assert re.search(message, told), told
    assert "Traceback" not in told
    named = next(part for part in verb if part in ("folder", "circle", "r.yaml/x") or len(part) > 200)
    assert named in told.replace("\n", "")
