"""How much faster two processes compress a model than one, each with one thread.

The first blocks of SmolLM2-135M by GPTQ in 3 bits; what is timed begins when all is loaded. Where other work shares the
machine, wall time says little: CPU time of one process over that of the busier one of two is what an idle machine with
two cores would come to, but for what processes wait for one another.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reliability import Rows

MODEL = "smollm2-135m-instruct"
#: Samples of 512 tokens, and blocks that are compressed: all figures, and --quick.
SIZES = {False: (64, 4), True: (16, 2)}
#: How much larger errors of what two processes solve may be.
_WORSE = 1.01


def measure(work: Path, rows: Rows, quick: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Figures; wrong is where what two processes come to is worse than what one does.

    Sums in another order differ in their last bits; one weight that falls to another code for it changes the inputs of
    all modules behind it, so codes drift apart, and are as good.
    """

    def run(name: str) -> dict[str, Any]:
        count = int(name.rpartition(" ")[2])
        told = _start(work / f"{count}{'quick' if quick else ''}", count, *SIZES[quick])
        found = {key: max(each[key] for each in told) for key in ("wall", "cpu")}
        return found | {"error": told[0]["error"]}

    label = f"compress{' quick' if quick else ''}, processes"
    one, two = rows.each([f"{label} 1", f"{label} 2"], run)
    same = _equal(*(work / f"{count}{'quick' if quick else ''}" / "out" for count in (1, 2)))
    figures = {
        "scaling_2proc_compress": one["wall"] / two["wall"],
        "scaling_2proc_compress_cpu": one["cpu"] / two["cpu"],
        "scaling_2proc_equal_weights": same,
        "scaling_2proc_error": two["error"] / one["error"],
    }
    worse = two["error"] / one["error"]
    return figures, {"scaling": f"errors are {worse:.4f} times those of one process"} if worse > _WORSE else {}


def _start(folder: Path, count: int, samples: int, blocks: int) -> list[dict[str, float]]:
    """So many processes on a fresh folder; what each says of its time."""
    from launching import launched  # of the tests, whose folder reliability.py adds to the path

    from mixprec.core import publish

    publish.remove(folder)
    folder.mkdir(parents=True)
    for ended in launched([[sys.executable, __file__, folder, samples, blocks]] * count, MKL_NUM_THREADS="1"):
        if ended.returncode:
            raise SystemExit(f"{folder}: a process failed: {ended.stderr}")
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(count)]


def _equal(first: Path, second: Path) -> float:
    """The share of weights that are equal to the bit."""
    from safetensors.torch import load_file

    one, two = (load_file(next(path.glob("*.safetensors"))) for path in (first, second))
    return sum(int((one[name] == two[name]).sum()) for name in one) / sum(each.numel() for each in one.values())


def _compress(folder: Path, samples: int, blocks: int) -> None:
    """What one of the processes does."""
    import torch

    import mixprec as mp
    from mixprec.calibration.data import Calibration
    from mixprec.compress import stream
    from mixprec.core import artifacts, processes

    device = processes.join("cpu")
    model = mp.Model(MODEL, device=device)
    rules = [{"match": f"model.layers.{number}.*", "format": "w3g64"} for number in range(blocks)]
    plan = mp.plan(model, {"default": "keep", "rules": rules, "method": "gptq"})
    # Any tokens take as long.
    ids = torch.randint(model.decoder.sizes.vocabulary, (samples, 512), generator=torch.Generator().manual_seed(0))
    calibration = Calibration(ids, None, {"random": samples}, artifacts.fingerprint(ids.tolist()))
    processes.wait()
    wall, cpu = time.perf_counter(), time.process_time()
    reports = stream.compress(model, plan.content, folder / "out", calibration=calibration)
    errors = [report.output_error for report in reports.values() if report.output_error is not None]
    told = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "error": sum(errors) / len(errors)}
    (folder / f"{processes.rank()}.json").write_text(json.dumps(told), encoding="utf-8")
    processes.leave()


if __name__ == "__main__":
    from mixprec.core import environment

    environment.settle()
    _compress(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
