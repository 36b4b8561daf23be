"""What attribution costs for a model, mixprec's way and the released code's."""

from __future__ import annotations

from collections.abc import Sequence

from mixprec.importance.cost import PAPER_CORPUS, Cost, Memory
from mixprec.report.formatting import ABSENT, integer, significant, size
from mixprec.report.tables import Cell, Column, Table

_WORDS = {"keys_values": "keys and values", "gradients": "gradients of weights"}


def cost_table(costs: Sequence[Cost]) -> Table:
    """Two columns for each model: memory for one trace, and operations for the paper's corpus."""
    columns = [Column("", numeric=False)]
    names = [cost.model.rpartition("/")[2] if len(costs) > 1 else "" for cost in costs]
    columns += [Column(how, name) for name in names for how in ("mixprec", "released code")]
    memories = [memory for cost in costs for memory in (cost.ours, cost.released)]
    rows = [
        [
            Cell(_WORDS.get(part, part)),
            *(Cell(size(getattr(memory, part)) if getattr(memory, part) else ABSENT) for memory in memories),
        ]
        for part in Memory._fields
    ]
    rows.append([Cell("memory"), *(Cell(size(memory.total), strong=True) for memory in memories)])
    flops = [(each, cost.forward) for cost in costs for each in (cost.our_flops, cost.released_flops)]
    rows.append([Cell("FLOPs"), *(Cell(significant(each)) for each, _ in flops)])
    rows.append(
        [Cell("in forward passes"), *(Cell(significant(each / forward), strong=True) for each, forward in flops)]
    )
    return Table(columns, rows)


def about(cost: Cost) -> str:
    """What the table's numbers mean."""
    corpus = PAPER_CORPUS
    return (
        f"Memory while a trace of {integer(cost.tokens)} tokens is attributed in {cost.dtype}; operations for the "
        f"paper's {corpus.traces} traces at full length ({integer(corpus.tokens)} tokens, {integer(corpus.spans)} "
        "spans), as FLOPs and in plain forward passes over them. From the configuration alone: no kernel's workspace, "
        f"no allocator's waste.{_of_path(cost)}"
    )


def _of_path(cost: Cost) -> str:
    """What is said of spans that aren't packed."""
    if not cost.why:
        return ""
    return (
        f" Its spans can't be packed ({cost.why}): each goes by itself behind a copy of the cache. A model that only "
        "continues by single tokens runs each span's prefix anew, and one that can't be continued runs it with "
        "gradients; that is seen when it runs. Keys and values are counted for every block, other states are not."
    )
