"""Processes that know of one another, as torchrun starts them."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence


def launched(
    commands: Sequence[Sequence[object]], *, machines: int = 1, **variables: str
) -> list[subprocess.CompletedProcess[str]]:
    """One process of each command, with one thread, spread evenly over as many ``machines`` as they take this one for;
    how each ended. ``variables``: further ones of the environment; ``{rank}`` in them is the process's number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here, pipe, running = len(commands) // machines, subprocess.PIPE, []
    for rank, command in enumerate(commands):
        own = {"RANK": rank, "WORLD_SIZE": len(commands), "LOCAL_RANK": rank % here, "LOCAL_WORLD_SIZE": here}
        fixed = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        more = {name: value.format(rank=rank) for name, value in variables.items()}
        environment = os.environ | fixed | {name: str(value) for name, value in own.items()} | more
        words = [str(word) for word in command]
        running.append(subprocess.Popen(words, env=environment, stdout=pipe, stderr=pipe, text=True))
    told = [process.communicate(timeout=1800) for process in running]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *each)
        for process, each in zip(running, told, strict=True)
    ]
