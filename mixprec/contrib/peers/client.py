"""Calls quantizers that live in environments of their own: ``run_peer(job)`` runs runner/run.py there."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mixprec.core.errors import UserError

RUNNER = Path(__file__).resolve().parent / "runner" / "run.py"
ROOT = Path(__file__).resolve().parents[3]
PEERS = ("llmcompressor", "gptqmodel", "autoround", "modelopt")

#: Settings that make the peers' GPTQ one algorithm: columns in their own order, the same damping, no search for grids.
#: A job without settings uses each peer's own: docs/peers.md lists them.
MATCHED: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("llmcompressor", "gptq"): {"damp": 0.01, "act_order": None},
    ("gptqmodel", "gptq"): {"damp": 0.01, "act_order": False, "act_group_aware": False, "mse": 0.0},
    ("gptqmodel", "gptaq"): {"damp": 0.01, "act_order": False, "act_group_aware": False, "mse": 0.0},
    ("llmcompressor", "sparsegpt"): {"damp": 0.01},
}


class PeerMissing(UserError):
    """The peer's environment is not there; the message has the command that makes it."""


class PeerFailed(UserError):
    """The peer ended with an error; the message has the end of what it said."""


def folder() -> Path:
    """Where the environments lie: ``$MIXPREC_PEERS``, else .peers in the repository."""
    return Path(os.environ.get("MIXPREC_PEERS") or ROOT / ".peers")


def missing(peer: str) -> str | None:
    """Why a peer can't be run, with the command that mends it; None where it can."""
    home = folder() / peer
    if (home / "bin" / "python").is_file() and (home / ".mixprec-peer").is_file():
        return None
    return f"{peer} has no environment in {folder()}; run: bash benchmarks/peers/build.sh {peer}"


def key(peer: str) -> str:
    """What a peer's environment was made from, as one word; raises PeerMissing where it has none."""
    reason = missing(peer)
    if reason:
        raise PeerMissing(reason)
    return (folder() / peer / ".mixprec-peer").read_text(encoding="utf-8").strip()


def write_tokens(path: Path, tokens: torch.Tensor) -> Path:
    """Write calibration tokens (sequences, tokens) for ``calibration`` of a job."""
    save_file({"tokens": tokens.long().contiguous()}, path)
    return path


def run_peer(job: Mapping[str, Any], log: Path | None = None, timeout: float | None = None) -> dict[str, Any]:
    """Run a job (run.py says which keys it has) and return its result; the checkpoint is in ``job["out"]``.

    ``log`` gets all that the peer prints. Raises PeerMissing without an environment, PeerFailed where it fails.
    """
    reason = missing(job["peer"])
    if reason:
        raise PeerMissing(reason)
    with tempfile.TemporaryDirectory() as work:
        result, request = Path(work) / "result.json", Path(work) / "job.json"
        request.write_text(json.dumps({**_absolute(job), "result": str(result)}), encoding="utf-8")
        said = Path(log or Path(work) / "log.txt").absolute()
        with said.open("w", encoding="utf-8") as stream, contextlib.suppress(subprocess.TimeoutExpired):
            command = [str(folder().absolute() / job["peer"] / "bin" / "python"), str(RUNNER), str(request)]
            # In a folder of its own, as GPTQModel writes logs to where it is started.
            subprocess.run(
                command, cwd=work, env=_environment(), stdout=stream, stderr=stream, check=False, timeout=timeout
            )
        if not result.is_file():
            end = "\n".join(said.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
            raise PeerFailed(f"{job['peer']} {job['method']} failed:\n{end}")
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def _absolute(job: Mapping[str, Any]) -> dict[str, Any]:
    paths = ("model", "out", "packed", "calibration", "plan", "imatrix")
    return {key: str(Path(value).absolute()) if key in paths and value else value for key, value in job.items()}


def _environment() -> dict[str, str]:
    """This process's environment less what would lead another interpreter to our packages."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "OMP_"))}
