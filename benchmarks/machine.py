"""What the benchmarks share: facts about the machine, timing, peak memory, and the file that figures go to."""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def facts() -> dict[str, Any]:
    """The machine and what computes on it; nothing that changes from day to day."""
    import psutil
    import torch

    from mixprec.core import devices

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "quickest_dtype": devices.quickest_dtype("cpu"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


_PLACES = ("--data", "--json", "--work")


def write(path: str, script: str, figures: dict[str, Any], folders: Sequence[Path | None] = ()) -> None:
    """Write figures with the command that made them; of this machine's ``folders`` only the last name is in it."""
    names = {str(folder): folder.name for folder in folders if folder}
    command, skip = ["python", f"benchmarks/{Path(script).name}"], False
    for argument in sys.argv[1:]:
        if not skip and argument not in _PLACES:
            command.append(names.get(argument, argument))
        skip = argument in _PLACES
    command += ["--json", f"benchmarks/results/{Path(path).name}"]
    about = {"benchmark": Path(script).name, "command": " ".join(command), "machine": facts()}
    data = {**figures, "about": about}  # figures by their own names, as every reader expects them
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


def timed(call: Callable[[], Any]) -> float:
    """CPU seconds of a call: what other processes take does not count."""
    start = time.process_time()
    call()
    return time.process_time() - start


class Clock:
    """CPU seconds that functions take, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, holder: Any, function: str, name: str) -> None:
        """Time every call of ``holder.function`` from now on."""
        original = getattr(holder, function)

        def measured(*arguments: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return original(*arguments, **options)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start

        setattr(holder, function, measured)


class Peak:
    """Highest resident memory inside the block, in bytes, sampled every 5 ms."""

    def __enter__(self) -> Peak:
        import psutil

        self._process = psutil.Process()
        self.bytes = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(0.005):
            self.bytes = max(self.bytes, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
