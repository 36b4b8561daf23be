"""A process that has imported everything, and forks one child for each command: what a fault hits begins at once.

Run as a script it is that process; the others use ``Smithy``.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

Fault = Literal["none", "kill", "full"]
_KINDS: dict[Fault, int] = {"none": 0, "kill": 1, "full": 2}
_ROOT = Path(__file__).parents[2]


class Outcome(NamedTuple):
    """How a command ended: its exit ``code`` (negative: the signal), ``seconds``, what it ``told``, and the ``calls``
    that changed something in the folder, each as call and path."""

    code: int
    seconds: float
    told: str
    calls: list[str]


def buildable() -> bool:
    """Whether faults can be made here: Linux, and a compiler of C."""
    return sys.platform == "linux" and shutil.which("cc") is not None


class Smithy:
    """Runs mixprec's verbs in children of one process, with faults."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(
        self, command: Sequence[str], root: Path, fault: Fault = "none", at: int = 0, *,
        send: signal.Signals | None = None, after: float = 0.0,
    ) -> Outcome:  # fmt: skip
        """``fault`` strikes call number ``at`` (from 1) below ``root``; ``send`` is sent after so many seconds."""
        job = {
            "command": list(command),
            "root": str(root),
            "kind": _KINDS[fault],
            "at": at,
            "send": send,
            "after": after,
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that forks is gone"
        return Outcome(**json.loads(line))


@contextmanager
def smithy(**variables: str) -> Iterator[Smithy]:
    """A Smithy whose children have these ``variables`` in their environment."""
    with tempfile.TemporaryDirectory() as name:
        library = Path(name) / "shim.so"
        source = Path(__file__).with_name("shim.c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        environment = os.environ | {
            "LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **variables,
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), str(library)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        try:
            yield Smithy(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def _serve(library: Any) -> None:
    from mixprec.core import environment

    environment.settle()
    import torch  # noqa: F401

    import mixprec.cli  # noqa: F401

    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        replies.write(json.dumps(_outcome(library, json.loads(line))._asdict()) + "\n")
        replies.flush()


def _outcome(library: Any, job: dict[str, Any]) -> Outcome:
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as notes, tempfile.TemporaryFile() as modules:
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            _child(library, job, told.fileno(), notes.fileno(), modules.fileno())
        if job["send"] is not None:
            time.sleep(job["after"])
            os.kill(child, job["send"])
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seconds = time.monotonic() - start
        for file in (told, notes, modules):
            file.seek(0)
        _learn(modules.read().decode().split())
        return Outcome(code, seconds, told.read().decode(errors="replace"), notes.read().decode().splitlines())


def _learn(modules: Sequence[str]) -> None:
    """Import what a child has imported, so that the next one need not."""
    for name in modules:
        if name not in sys.modules:
            try:
                __import__(name)
            except Exception:  # made by hand there, or of another name
                sys.modules.setdefault(name, None)  # type: ignore[arg-type]
                sys.modules.pop(name)


def _child(library: Any, job: dict[str, Any], told: int, notes: int, modules: int) -> None:
    code = 1
    try:
        for number in (1, 2):
            os.dup2(told, number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
        sys.argv = ["mixprec", *job["command"]]
        from mixprec import cli

        library.faults_arm(job["root"].encode(), job["kind"], ctypes.c_long(job["at"]), notes)
        code = _ended(cli.main)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    except KeyboardInterrupt:  # behind its end
        pass
    finally:
        library.faults_arm(b"", 0, ctypes.c_long(0), -1)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.write(modules, "\n".join(sys.modules).encode())
        os._exit(code)


def _ended(call: Callable[[], None]) -> int:
    """Its exit code; 1 with a trace where it raises something."""
    try:
        call()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _serve(ctypes.CDLL(sys.argv[1]))
