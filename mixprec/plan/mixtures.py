"""llama.cpp's fixed mixtures as allocations: which modules its quantizer gives more bits, whatever the model.

Read off ``llama_tensor_get_type`` of llama.cpp's quantizer (src/llama-quant.cpp, October 2025) for dense decoders: the
k-quant mixtures Q2_K_S to Q6_K, without an importance matrix. Its types have scales of their own; here only their
number of bits counts, and is given in the formats of a budget's candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mixprec.models.decoder import Decoder, Linear
from mixprec.numerics.formats import Drop, Keep
from mixprec.plan.sensitivity import Choice

#: Mixture -> bits of the modules without a rule; from small to large.
MIXTURES: Mapping[str, int] = {
    "Q2_K_S": 2,
    "Q2_K": 2,
    "Q3_K_S": 3,
    "Q3_K_M": 3,
    "Q3_K_L": 3,
    "Q4_K_S": 4,
    "Q4_K_M": 4,
    "Q5_K_S": 5,
    "Q5_K_M": 5,
    "Q6_K": 6,
}


def bits_of(mixture: str, module: Linear, inventory: Decoder) -> int:
    """Bits of a module's codes in one of MIXTURES."""
    if not module.layer:
        return 6 if module == inventory.outside[-1] else MIXTURES[mixture]  # the head, tied or not, and an embedding
    kind, index, layers = module.kind, module.layer - 1, inventory.layers
    shared, base = _sharing(inventory), MIXTURES[mixture]
    found = base
    if mixture == "Q2_K":
        found = {"v": 4 if shared >= 4 else 3, "o": 3, "down": 3}.get(kind, base)
    elif mixture == "Q2_K_S":
        found = 4 if (kind == "v" and shared >= 4) or (kind == "down" and index < layers // 8) else base
    elif mixture == "Q3_K_M":
        first = {"v": 2, "down": layers // 16}.get(kind, 0)
        found = (5 if index < first else 4) if kind in ("v", "o", "down") else base
    elif mixture == "Q3_K_L":
        found = 5 if kind in ("v", "o", "down") else base
    elif mixture == "Q4_K_S":
        found = 5 if index < {"v": 4, "down": layers // 8}.get(kind, 0) else base
    elif mixture in ("Q4_K_M", "Q5_K_M"):
        found = 6 if kind in ("v", "down") and _more(index, layers) else base
    # Of 80 layers whose heads share v, that is so small that it always gets 5.
    return 5 if kind == "v" and layers == 80 and shared > 1 and found in (3, 4) else found


def _more(index: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    return index < layers // 8 or index >= 7 * layers // 8 or (index - layers // 8) % 3 == 2


def _sharing(inventory: Decoder) -> int:
    """How many heads of q share one of v."""
    rows = {module.kind: module.out_features for module in inventory.blocks[0].linears}
    return rows["q"] // rows["v"]


def chosen(
    mixture: str, parts: Sequence[tuple[Sequence[Linear], Sequence[Choice]]], inventory: Decoder
) -> list[int] | None:
    """For each part (its modules, its choices) the first choice with the mixture's bits; None: one has none.

    Modules that are tied get the most that one of them gets; a pinned part has one choice.
    """
    found = []
    for modules, choices in parts:
        wanted = max(bits_of(mixture, module, inventory) for module in modules)
        indices = [0] if len(choices) == 1 else [n for n, choice in enumerate(choices) if _bits(choice) == wanted]
        if not indices:
            return None
        found.append(indices[0])
    return found


def _bits(choice: Choice) -> float | None:
    return None if choice.sparsity is not None or isinstance(choice.format, Keep | Drop) else choice.format.bits
