"""What a run writes for its report alone: the bits of every layer and kind, and the KL of single tokens.

A report reads a run's folder and nothing else: neither the model's configuration nor its tokenizer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mixprec.core import artifacts
from mixprec.evaluate.passages import Passage
from mixprec.models.decoder import Decoder, Linear
from mixprec.numerics.divergence import TokenFidelity
from mixprec.numerics.formats import KEEP
from mixprec.plan import bits
from mixprec.plan.schema import Plan

#: Held-out traces whose tokens a report shows one by one, and tokens of each.
TRACES, TOKENS = 12, 2048


def layout(plan: Plan, decoder: Decoder) -> dict[str, Any]:
    """Bits per weight of each cell of (layer, kind) under ``plan``; layer 0 has the embedding and the head.

    All experts of a layer and kind are in one cell. ``formats`` counts its modules. What the plan doesn't name is kept.
    """
    stored = bits.account(plan, decoder).modules
    cells: dict[tuple[int, str], list[Linear]] = {}
    for matrix in decoder.matrices:
        cells.setdefault((matrix.layer, matrix.kind), []).append(matrix)
    return {
        "schema_version": artifacts.SCHEMA_VERSION,
        "layers": decoder.layers,
        "tied": decoder.tied,
        "cells": [
            {"layer": layer, "kind": kind, **_cell(plan, stored, members)} for (layer, kind), members in cells.items()
        ],
    }


def _cell(plan: Plan, stored: dict[str, bits.Storage], members: Sequence[Linear]) -> dict[str, Any]:
    known = [stored.get(member.address) or bits.storage(member, KEEP) for member in members]
    weights = sum(each.weights for each in known)
    formats = Counter(_treated(plan, member) for member in members)
    return {"weights": weights, "bits": sum(each.bits for each in known) / weights, "formats": dict(formats)}


def _treated(plan: Plan, member: Linear) -> str:
    """A module's format, and how much of it becomes zero."""
    if member.address not in plan.modules:
        return str(KEEP)
    line = plan.modules[member.address]
    return str(line.format) if line.sparsity is None else f"{line.format}, sparsity {line.sparsity}"


def tokens(passages: Sequence[Passage], results: Sequence[TokenFidelity]) -> dict[str, Any]:
    """KL in nats of the first tokens of the first traces, each with the characters [start, end) that it stands for.

    ``of``: traces that there are. Tokens that stand for no character are left out.
    """
    rows = []
    for passage, result in list(zip(passages, results, strict=True))[:TRACES]:
        # The first token is predicted by nothing.
        pairs = zip(passage.offsets[1:], result.kl.tolist(), strict=True)
        found = [[start, end, float(f"{kl:.4g}")] for (start, end), kl in pairs if end > start]
        rows.append({"tokens": found[:TOKENS], "of": len(found)})
    return {"schema_version": artifacts.SCHEMA_VERSION, "of": len(passages), "traces": rows}
