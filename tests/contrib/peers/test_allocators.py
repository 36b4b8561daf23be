"""AutoScheme and auto_quantize as allocators: formats for all modules, within the budget; where they are installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from mixprec.contrib.peers import client
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of

CANDIDATES = [{"bits": bits, "group_size": 32, "symmetric": True} for bits in (2, 3, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["autoround", "modelopt"])
def test_every_module_gets_a_candidate_within_the_budget(peer: str, tmp_path: Path) -> None:
    reason = client.missing(peer)
    if reason:
        pytest.skip(reason)
    # AutoRound wants sides that are multiples of 32.
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    checkpoint = tiny.write_checkpoint(tmp_path / "model", head_dim=16, **shape)
    ids = torch.randint(2, 300, (4, 64), generator=torch.Generator().manual_seed(0))
    budgets = [2.5, 3.25]
    found = client.run_peer(
        {
            "peer": peer,
            "method": "allocate",
            "model": str(checkpoint),
            "out": str(tmp_path / "none"),
            "calibration": str(client.write_tokens(tmp_path / "tokens.safetensors", ids)),
            "budgets": budgets,
            "candidates": CANDIDATES,
        }
    )
    inventory = decoder_of(load_config(str(checkpoint)))
    assert not (tmp_path / "none").exists()
    for budget in budgets:
        plan = found["plans"][str(budget)]
        assert plan.keys() == {module.address for module in inventory.linears}
        assert set(plan.values()) <= {2, 3, 4}
        bits = sum(module.weights * plan[module.address] for module in inventory.linears)
        whole = sum(module.weights for module in inventory.linears)
        assert 0.9 * budget < bits / whole <= budget
    assert len(found["seconds_each"]) == 2 and found["peak_rss_bytes"] > 0
