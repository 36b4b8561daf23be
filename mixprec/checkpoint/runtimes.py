"""Looking up what a runtime loads (facts.py), by its version and where it works."""

from __future__ import annotations

import re
from typing import Final, Literal

from mixprec.checkpoint.facts import FACTS, RUNTIMES
from mixprec.checkpoint.loaders import Loader, Runtime, Where
from mixprec.core.errors import UserError

#: The names of facts.RUNTIMES.
RuntimeName = Literal["transformers", "vllm", "sglang", "llama.cpp", "mlx"]

#: Where a runtime works: a CPU, Apple's GPUs, or others by generation with CUDA's compute capability (tenfold).
DEVICES: Final[dict[str, int | None]] = {
    "cpu": None,
    "apple": None,
    "pascal": 60,
    "volta": 70,
    "turing": 75,
    "ampere": 80,
    "ada": 89,
    "hopper": 90,
    "blackwell": 100,
}
DeviceName = Literal["cpu", "apple", "pascal", "volta", "turing", "ampere", "ada", "hopper", "blackwell"]


def loader(runtime: str, format: str, version: str | None = None, device: str | None = None) -> Loader:
    """What ``runtime`` loads of a checkpoint ``format``; ``version`` None: the newest one that is known; ``device``
    None: the one that it is made for.

    Raises UserError for an unknown runtime, version or device.
    """
    device = device_of(runtime, device)
    where: Where = "cpu" if device == "cpu" else "apple" if device == "apple" else "cuda"
    wanted = None if version is None else _parsed(version)
    found = [
        fact
        for fact in FACTS
        if fact.runtime == runtime and fact.format == format and where in fact.where
        if wanted is None or fact.since <= wanted
    ]
    if not found:
        return Loader(refuses=f"nothing is known of {RUNTIMES[runtime].title} and {format} there")
    return max(found, key=lambda fact: fact.since).loads


def packed_for(runtime: str) -> str:
    """The format in which plans are packed for a runtime. Raises UserError for an unknown one."""
    return _known(runtime).format


def _known(runtime: str) -> Runtime:
    if runtime not in RUNTIMES:
        raise UserError(f"runtime: {runtime!r} is not one of {', '.join(RUNTIMES)}")
    return RUNTIMES[runtime]


def device_of(runtime: str, device: str | None) -> str:
    """``device``, or the one that ``runtime`` is made for. Raises UserError for an unknown one of either."""
    known = _known(runtime)
    if device is None:
        return known.device
    if device not in DEVICES:
        raise UserError(f"device: {device!r} is not one of {', '.join(DEVICES)}")
    return device


def _parsed(version: str) -> tuple[int, ...]:
    if not re.match(r"v?\d+(\.\d+)*", version):
        raise UserError(f"version: {version!r} is no version number such as 0.32")
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
