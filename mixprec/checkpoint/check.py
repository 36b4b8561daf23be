"""Whether a runtime loads a plan in a checkpoint format: what it refuses and why, and the nearest plan that loads.

Nothing is read but the model's configuration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mixprec.checkpoint import holding, integers
from mixprec.checkpoint.loaders import Loader
from mixprec.checkpoint.runtimes import DEVICES, device_of, loader
from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder, Linear
from mixprec.numerics.formats import (
    KEEP,
    WHOLE_ROW,
    AffineFormat,
    AnyFormat,
    Drop,
    Format,
    GgmlFormat,
    GridFormat,
    Keep,
)
from mixprec.plan.methods import METHODS, Method
from mixprec.plan.schema import ModulePlan, Plan

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Target(NamedTuple):
    """Where a checkpoint shall be loaded. ``format``: of the checkpoint; ``version`` None: the newest that is known;
    ``device`` None: the one that the runtime is made for."""

    runtime: str
    format: str
    version: str | None = None
    device: str | None = None

    def __str__(self) -> str:
        device = device_of(self.runtime, self.device)
        return f"{self.runtime}{f' {self.version}' if self.version else ''} on {device}, {self.format}"


class Verdict(NamedTuple):
    """``refused``: address -> why; empty where the checkpoint loads. ``whole``: why nothing of it loads, or empty.
    ``nearest``: the nearest plan that loads, None where there is none or the plan itself does. ``needs``: what has to
    be there besides."""

    refused: dict[str, str]
    whole: str
    nearest: Plan | None
    needs: str = ""

    @property
    def loads(self) -> bool:
        """Whether the runtime loads it."""
        return not self.refused and not self.whole


def check(plan: Plan, inventory: Decoder, config: PretrainedConfig | None, target: Target) -> Verdict:
    """What the target makes of a plan.

    Raises UserError for an unknown runtime, version, device or format.
    """
    loads = loader(target.runtime, target.format, target.version, target.device)
    whole = loads.refuses or _too_old(loads, device_of(target.runtime, target.device))
    if whole:
        return Verdict({}, whole, None)
    if target.format in ("dense", "gguf"):  # what the format holds, its runtimes load
        return Verdict(holding.problems(target.format, plan, inventory, config), "", None, loads.needs)
    refused = _refusals(plan, inventory, config, target.format, loads)
    nearest = _nearest(plan, inventory, config, target.format, loads) if refused else None
    return Verdict(refused, "", nearest, loads.needs)


def require(plan: Plan, inventory: Decoder, config: PretrainedConfig | None, target: Target) -> None:
    """The target loads the plan.

    Raises UserError with what it refuses, why, and what would load.
    """
    verdict = check(plan, inventory, config, target)
    if not verdict.loads:
        lines = [f"{_some(addresses)}: {reason}" for reason, addresses in by_reason(verdict).items()]
        lines.append(advice(plan, verdict))
        raise UserError("\n  ".join([f"checkpoint.runtime: {target} does not load this plan", *lines]))


def by_reason(verdict: Verdict) -> dict[str, list[str]]:
    """Reason -> addresses."""
    found: dict[str, list[str]] = {verdict.whole: ["the checkpoint"]} if verdict.whole else {}
    for address, reason in verdict.refused.items():
        found.setdefault(reason, []).append(address)
    return found


def advice(plan: Plan, verdict: Verdict) -> str:
    """What would load instead."""
    if verdict.whole:
        return "choose another format or device"
    dense = "checkpoint.format: dense loads as it is"
    if verdict.nearest is None:
        return dense
    changed = differences(plan, verdict.nearest)
    parts = [f"{_some(addresses)} in {format}" for format, addresses in _grouped(changed).items()]
    return f"{dense}; packed, the nearest plan that loads has {', '.join(parts)}"


def differences(plan: Plan, other: Plan) -> dict[str, AnyFormat]:
    """Address -> its format in ``other``, where it is another one."""
    return {a: format for a, format in other.formats.items() if format != plan.formats[a]}


def _grouped(formats: Mapping[str, AnyFormat]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for address, format in formats.items():
        found.setdefault(str(format), []).append(address)
    return found


def _some(addresses: Sequence[str]) -> str:
    return f"{addresses[0]} and {len(addresses) - 1} more" if len(addresses) > 1 else addresses[0]


def _too_old(loads: Loader, device: str) -> str:
    capability = DEVICES[device]
    if capability is None or capability >= loads.capability:
        return ""
    return f"its kernels need compute capability {loads.capability / 10}, {device} has {capability / 10}"


def _refusals(
    plan: Plan, inventory: Decoder, config: PretrainedConfig | None, name: str, loads: Loader
) -> dict[str, str]:
    refused = holding.problems(name, plan, inventory, config)
    for module in inventory.planned(plan.modules):
        format = plan.formats[module.address]
        if isinstance(format, GridFormat) and module.address not in refused:
            reason = _refusal(module, format, loads)
            if reason:
                refused[module.address] = reason
    if loads.fused:
        for group in _fused(plan, inventory):
            found = list(dict.fromkeys(str(_scheme(module, plan)) for module in group))
            if len(found) > 1:
                names = _named(group, inventory.stopped)
                reason = f"{names}, and have {' and '.join(found)}; give them one format"
                for module in group:
                    refused.setdefault(module.address, reason)
    if loads.uniform:
        formats, _ = integers.by_format(plan, inventory) if not refused else ({}, [])
        for address in [address for addresses in list(formats.values())[1:] for address in addresses]:
            refused[address] = f"only one format for all packed modules; most are {next(iter(formats))}"
    return refused


def _fused(plan: Plan, inventory: Decoder) -> list[tuple[Linear, ...]]:
    """Linears that are one matrix there, without dropped ones; where that isn't known, all of a block may be."""
    known = [block.linears for block in inventory.blocks] if inventory.stopped else inventory.fused
    groups = (tuple(each for each in group if each.address not in plan.dropped) for group in known)
    return [group for group in groups if group]


def _named(fused: Sequence[Linear], stopped: str) -> str:
    """What runtimes make one matrix of, or may, in words."""
    if stopped:
        return f"layer {fused[0].layer}'s modules may be one matrix there, which is not known ({stopped})"
    if fused[0].expert is not None:
        return f"layer {fused[0].layer}'s experts are one matrix there"
    return f"{'/'.join(module.kind for module in fused)} are one matrix there"


def _refusal(module: Linear, format: GridFormat, loads: Loader) -> str | None:
    loads = loads.of(module)
    if loads.refuses:
        return f"{format}: {loads.refuses}"
    bits, kind = loads.bits(format)
    if format.bits not in bits:
        held = f"{', '.join(map(str, sorted(bits)))} bits {kind}" if bits else f"nothing {kind}"
        return f"{format}: it loads {held}"
    size = integers.effective(module, format).group_size
    groups = loads.groups.get(format.bits)
    if groups is not None and size not in groups:
        listed = ", ".join("whole rows" if g == WHOLE_ROW else str(g) for g in sorted(groups))
        return f"{format}: its kernels have groups of {listed}"
    if module.in_features % loads.multiple or module.out_features % loads.multiple:
        shape = f"{module.out_features} x {module.in_features}"
        return f"{format}: its kernels want multiples of {loads.multiple}, the matrix is {shape}"
    return None


def _scheme(module: Linear, plan: Plan) -> AnyFormat:
    format = plan.formats[module.address]
    return integers.effective(module, format) if isinstance(format, GridFormat) else format


def _nearest(plan: Plan, inventory: Decoder, config: PretrainedConfig | None, name: str, loads: Loader) -> Plan | None:
    """Every module's nearest format, then one for each fused group; None where that doesn't load either."""
    if any(found.sparsity is not None for found in plan.treatments.values()):
        return None
    formats = {
        m.address: _nearest_format(m, plan.formats[m.address], inventory, name, loads)
        for m in inventory.planned(plan.modules)
    }
    if loads.uniform:
        packed = Counter(str(format) for format in formats.values() if isinstance(format, Format))
        base = next((f for f in formats.values() if packed and str(f) == packed.most_common(1)[0][0]), KEEP)
        formats = {a: base if isinstance(f, Format) else f for a, f in formats.items()}
    if loads.fused:
        common = Counter(str(formats[m.address]) for group in _fused(plan, inventory) for m in group).most_common(1)[0][
            0
        ]
        for group in _fused(plan, inventory):
            chosen = _for_group([formats[module.address] for module in group], common)
            formats |= {module.address: chosen for module in group}
    changed = {
        address: line
        if line.format == formats[address]
        else _changed(line, formats[address], plan.treatments[address].method)
        for address, line in plan.modules.items()
    }
    found = plan.model_copy(update={"modules": changed})
    found = Plan.model_validate(found.model_dump(mode="json"))
    return None if _refusals(found, inventory, config, name, loads) else found


def _changed(line: ModulePlan, format: AnyFormat, method: Method) -> ModulePlan:
    packed = METHODS[method].packed
    another = {} if packed is None else {"method": packed}
    return line.model_copy(update={"format": format, "why": "nearest that loads", **another})


def _for_group(formats: Sequence[AnyFormat], common: str) -> AnyFormat:
    """The format that somebody asked for, which is not the plan's ``common`` one; of several the one with most bits."""
    asked = [format for format in formats if str(format) != common] if len({str(f) for f in formats}) > 1 else formats
    return max(asked, key=_width)


def _width(format: AnyFormat) -> tuple[int, int]:
    assert isinstance(format, GridFormat | Keep)  # _nearest_format leaves no other
    return (16, 0) if isinstance(format, Keep) else (format.bits, -format.group_size)


def _nearest_format(module: Linear, format: AnyFormat, inventory: Decoder, name: str, loads: Loader) -> AnyFormat:
    """The nearest format that format and runtime take: rather more bits than fewer, rather smaller groups than
    larger ones; or keep."""
    if isinstance(format, Keep | Drop):
        return format
    if isinstance(format, GgmlFormat):
        bits, group, symmetric = min(8, max(2, round(format.layout.code_bits / format.layout.block))), 32, True
    else:
        bits, group, symmetric = format.bits, format.group_size, getattr(format, "symmetric", True)
    if isinstance(format, AffineFormat) and not _refusal(module, format, loads):
        one = Plan.model_construct(model="", method="rtn", modules={module.address: ModulePlan(format=format)})
        if not holding.problems(name, one, inventory.alone(module), None):
            return format
    for candidate in _candidates(bits, group, [symmetric, not symmetric]):
        one = Plan.model_construct(model="", method="rtn", modules={module.address: ModulePlan(format=candidate)})
        alone = inventory.alone(module)
        if not _refusal(module, candidate, loads) and not holding.problems(name, one, alone, None):
            return candidate
    return KEEP


def _candidates(bits: int, group: int, symmetric: Iterable[bool]) -> list[Format]:
    smaller = [size for size in (128, 64, 32, 16) if group == WHOLE_ROW or size < group]
    larger = [size for size in (16, 32, 64, 128) if group != WHOLE_ROW and size > group]
    sizes = [group, *smaller, *larger, WHOLE_ROW]
    widths = [bits, *range(bits + 1, 9), *range(bits - 1, 1, -1)]
    return [Format(width, size, kind) for width in widths for kind in symmetric for size in sizes]
