"""What other quantizers write themselves, read by inspect and diff. Slow: importing them takes minutes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mixprec.checkpoint.compare import diff
from mixprec.checkpoint.formats import FORMATS
from mixprec.checkpoint.opening import open_checkpoint
from mixprec.cli import app
from mixprec.compress.stream import compress
from mixprec.contrib.peers import client
from mixprec.contrib.peers.engine import Peer
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.plan.schema import Plan

MakeSource = Callable[..., Path]
Planner = Callable[..., Plan]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("peer", "container", "settings"),
    [
        ("gptqmodel", "gptq", {}),
        ("gptqmodel", "gptq", {"act_order": True}),
        ("llmcompressor", "compressed-tensors", {}),  # its GPTQ reorders no more columns on disk
    ],
    ids=["gptqmodel", "gptqmodel-reordered", "llmcompressor"],
)
def test_what_peers_write_is_read(
    source: MakeSource, planner: Planner, tmp_path: Path, peer: str, container: str, settings: dict[str, Any]
) -> None:
    """Packed as they save it, and beside it the values that the peer's own arithmetic has."""
    reason = client.missing(peer)
    if reason:
        pytest.skip(reason)
    folder = source(dtype=torch.float16)
    plan = planner(folder, "w3g32", method="gptq", **{"1_attn": "w4g32", "last_down": "keep"})
    request = Peer(peer, settings).request(plan, decoder_of(load_config(str(folder))))
    (tmp_path / "plan").write_text(request.pop("plan_text"))
    tokens = torch.randint(2, 300, (32, 64), generator=torch.Generator().manual_seed(0))
    job = {
        "peer": peer,
        "model": folder,
        "out": tmp_path / "values",
        "packed": tmp_path / "packed",
        "plan": tmp_path / "plan",
        "calibration": client.write_tokens(tmp_path / "tokens.safetensors", tokens),
        "settings": settings,
        **request,
    }
    client.run_peer({key: str(value) if isinstance(value, Path) else value for key, value in job.items()})
    theirs, values = open_checkpoint(tmp_path / "packed"), open_checkpoint(tmp_path / "values")
    assert theirs.container == container
    assert {a: str(layout.format) for a, layout in theirs.layouts.items()} == {
        address: str(format) for address, format in plan.formats.items()
    }
    reordered = [module.address for module in theirs.inventory.linears if theirs.order(module) is not None]
    assert bool(reordered) == bool(settings)
    for address, found in diff(values, theirs).items():
        assert found.error < 1e-3, address  # its values are rounded to float16
    compress(Model(folder), planner(folder, "w3g32"), tmp_path / "ours", format=FORMATS[container])
    run = CliRunner().invoke
    shown = run(app, ["inspect", str(tmp_path / "packed")])
    assert shown.exit_code == 0, shown.output
    assert all(word in shown.output for word in (container, "w3g32", "w4g32", "dense", "checksums: none"))
    shown = run(app, ["diff", str(tmp_path / "ours"), str(tmp_path / "packed"), "--worst", "20"])
    assert shown.exit_code == 0, shown.output
    assert "1_q" in shown.output and "w4g32" in shown.output
