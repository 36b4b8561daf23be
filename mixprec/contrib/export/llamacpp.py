"""llama.cpp: lines of ``llama-quantize --tensor-type-file``, the nearest ggml type for the bits of each module.

ggml types bring their own groups (of 16 or 32, scaled once more in blocks of 256): of an integer format, only the bits
count.
A line is a regular expression over GGUF's names of tensors, an equals sign and a type.
"""

from __future__ import annotations

import gguf

from mixprec.contrib.export.support import Support, check_inside, gathered
from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder
from mixprec.numerics.formats import KEEP, Format, GgmlFormat, Keep
from mixprec.plan.patterns import regexes
from mixprec.plan.schema import ModulePlan, Plan

#: Bits -> type whose rows are divided into blocks of 256.
K_TYPES = {2: "q2_k", 3: "q3_k", 4: "q4_k", 5: "q5_k", 6: "q6_k", 7: "q8_0", 8: "q8_0"}
#: Bits -> types with blocks of 32, symmetric and asymmetric: for rows that 256 does not divide.
PLAIN_TYPES = {4: ("q4_0", "q4_1"), 5: ("q5_0", "q5_1"), 6: ("q8_0", "q8_0"), 7: ("q8_0", "q8_0"), 8: ("q8_0", "q8_0")}
KEPT_TYPE = "f16"
_K_BLOCK, _BLOCK = 256, 32

_ALL = frozenset(range(2, 9))
SUPPORT = Support("llama.cpp", _ALL, _ALL, ragged=True)


def export(plan: Plan, inventory: Decoder, method: str) -> str:
    """The plan as lines for ``llama-quantize --tensor-type-file``; ``method`` has no counterpart there.

    Raises UserError where a row can't be divided into a type's blocks.
    """
    check_inside(plan, inventory, SUPPORT.target)
    formats = _gathered(plan, inventory)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, inventory.layers)
    columns = {module.address: module.in_features for module in inventory.linears}
    lines: dict[str, list[str]] = {}
    problems = []
    for format, addresses in formats.items():
        for address in addresses:
            kind = tensor_type(format, columns[address])
            if kind is None:
                problems.append(f"{address}: {format}: {_why(format, columns[address])}")
                continue
            name = names.get_name(address)
            if name is None:  # such as one expert of those that llama.cpp keeps in one tensor
                problems.append(
                    f"{address}: llama.cpp has no tensor for this matrix alone; write the file itself, with "
                    "checkpoint.format gguf"
                )
                continue
            lines.setdefault(kind, []).append(f"{name}.weight")
    if problems:
        more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    return "".join(f"{pattern}={kind}\n" for kind, tensors in lines.items() for pattern in regexes(tensors))


def _gathered(plan: Plan, inventory: Decoder) -> dict[Format | GgmlFormat | Keep, list[str]]:
    """Format -> addresses, those of ggml's own types, which only this target holds, in front."""
    own: dict[Format | GgmlFormat | Keep, list[str]] = {}
    for address, format in plan.formats.items():
        if isinstance(format, GgmlFormat):
            own.setdefault(format, []).append(address)
    given = {address for addresses in own.values() for address in addresses}
    methods = plan.methods - {"ggml"}
    modules = {
        address: ModulePlan(format=KEEP) if address in given else module for address, module in plan.modules.items()
    }
    method = methods.pop() if len(methods) == 1 else plan.method
    others = gathered(Plan(model=plan.model, method=method, modules=modules), inventory, SUPPORT)
    rest = {format: [a for a in addresses if a not in given] for format, addresses in others.items()}
    return own | {format: addresses for format, addresses in rest.items() if addresses}


def tensor_type(format: Format | GgmlFormat | Keep, columns: int) -> str | None:
    """The ggml type nearest to ``format`` for rows of ``columns`` weights; None where there is none."""
    if isinstance(format, Keep):
        return KEPT_TYPE
    if isinstance(format, GgmlFormat):
        return format.name
    kind = K_TYPES[format.bits]
    if columns % _K_BLOCK and kind != "q8_0":
        kind = PLAIN_TYPES.get(format.bits, ("", ""))[0 if format.symmetric else 1]
    return kind if kind and columns % _BLOCK == 0 else None


def _why(format: Format | GgmlFormat | Keep, columns: int) -> str:
    if columns % _BLOCK:
        return f"llama.cpp's types want rows of a multiple of {_BLOCK} weights, these have {columns}; keep them"
    return (
        f"llama.cpp's types of 2 and 3 bits want rows of a multiple of {_K_BLOCK} weights, these have {columns}; "
        "give them 4 bits or more, or keep them"
    )
