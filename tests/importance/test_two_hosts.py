"""Two hosts: network namespaces with an address each and a cable between them, torchrun in both.

Needs root and ip (iproute2); the namespaces have names of their own and go at the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import write_traces

from mixprec.traces import spans, store

pytestmark = pytest.mark.slow
RESULTS = ("importance.json", "importance_released.json", "steering.safetensors")
PORT = "29517"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[dict[str, str]]:
    """Name of a namespace -> its address."""
    if shutil.which("ip") is None:
        pytest.skip("ip is not installed: apt install iproute2")
    names = [f"mixprec-{os.getpid()}-{number}" for number in (1, 2)]
    found = dict(zip(names, ("192.0.2.1", "192.0.2.2"), strict=True))
    made: list[str] = []
    try:
        try:
            for name in names:
                ip("netns", "add", name)
                made.append(name)
            ip("link", "add", "wire", "netns", names[0], "type", "veth", "peer", "name", "wire", "netns", names[1])
            for name, address in found.items():
                ip("-n", name, "addr", "add", f"{address}/24", "dev", "wire")
                ip("-n", name, "link", "set", "wire", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as problem:
            pytest.skip(f"network namespaces can't be made here ({problem.stderr.strip()}); run it as root")
        yield found
    finally:
        for name in made:
            ip("netns", "del", name)


@pytest.fixture(scope="module")
def asked(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("spans")
    write_traces(folder / "traces.jsonl")
    annotated = [spans.char_spans(trace, "paper") for trace in store.load(str(folder / "traces.jsonl"))]
    spans.save_spans(folder / "spans.jsonl", annotated)
    return ["attribute", str(folder / "spans.jsonl"), "--model", str(tiny_checkpoint), "--compare", "released"]


def launch(hosts: dict[str, str], words: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """torchrun with one process on each host; how each launcher ended."""
    running, master = [], next(iter(hosts.values()))
    for number, name in enumerate(hosts):
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        command += ["--nproc-per-node", "1", "--node-rank", str(number), "--master-addr", master, "--master-port", PORT]
        variables = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "wire", "ACCELERATE_USE_CPU": "true"}
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [*command, "-m", "mixprec", *words], env=variables, stdout=pipe, stderr=pipe, text=True
        )
        running.append(process)
    told = [process.communicate(timeout=1800) for process in running]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *each)
        for process, each in zip(running, told, strict=True)
    ]


def test_two_hosts_attribute_what_one_does(hosts: dict[str, str], asked: list[str], tmp_path: Path) -> None:
    alone = subprocess.run(
        [sys.executable, "-m", "mixprec", *asked, "--out", str(tmp_path / "one")],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    first, second = launch(hosts, [*asked, "--out", str(tmp_path / "two")])
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "Most important modules" in first.stdout and "Most important modules" not in second.stdout
    for name in RESULTS:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
