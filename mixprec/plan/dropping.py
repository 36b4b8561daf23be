"""Routed experts that a plan drops: which ones may go, and what is left of model and plan without them.

A dropped expert is left out of the checkpoint, its row of the router too: the router chooses among those that stay as
if it had never known others, and weighs them as it always did (REAP, arXiv 2510.13999, does the same). transformers
has one number of experts for all layers of a model, so every layer drops as many.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder, Linear

#: Layer, 1-based -> the routed experts that stay, by the original's numbers, in order.
Kept = Mapping[int, tuple[int, ...]]

_NUMBER: Final = re.compile(r"(?<=\.experts\.)\d+(?=\.)")


def kept(dropped: Collection[str], inventory: Decoder) -> Kept:
    """The experts that stay where the linears with the addresses ``dropped`` go; empty where none goes."""
    if not dropped:
        return {}
    gone = {(each.layer, each.expert) for each in inventory.linears if each.address in dropped}
    return {
        layer: tuple(number for number in members if (layer, number) not in gone)
        for layer, members in inventory.experts.items()
    }


def check_dropped(dropped: Collection[str], inventory: Decoder, where: str) -> None:
    """What is dropped are whole routed experts, as many of each layer, and enough of them stay.

    Raises UserError naming ``where``, the modules and the remedy.
    """
    if not dropped:
        return
    others = [each for each in inventory.matrices if each.address in dropped and each.expert is None]
    if others:
        raise UserError(f"{where}: {others[0].label}: drop leaves out routed experts; this module is part of none")
    _check_whole(dropped, inventory, where)
    left = kept(dropped, inventory)
    _check_alike(left, inventory, where)
    numbers = next(iter(left.values()))
    if len(numbers) < least(inventory):
        raise UserError(
            f"{where}: {len(numbers)} of {len(inventory.experts[min(left)])} experts of each layer would stay, and a "
            f"token needs {least(inventory)} (it is sent to {inventory.chosen}); drop fewer"
        )


def _check_whole(dropped: Collection[str], inventory: Decoder, where: str) -> None:
    """An expert goes with all its matrices."""
    split: dict[tuple[int, int], tuple[list[str], list[str]]] = {}
    for each in inventory.linears:
        if each.expert is not None:
            split.setdefault((each.layer, each.expert), ([], []))[each.address in dropped].append(each.label)
    for (layer, number), (stay, go) in split.items():
        if stay and go:
            raise UserError(
                f"{where}: {', '.join(go)} dropped and {', '.join(stay)} not; an expert goes as a whole, "
                f"{layer}_*.e{number}"
            )


def _check_alike(left: Kept, inventory: Decoder, where: str) -> None:
    """Every layer keeps as many, and so does every group that a router chooses among."""
    counts = {layer: len(inventory.experts[layer]) - len(numbers) for layer, numbers in left.items()}
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[fewest] != counts[most]:
        raise UserError(
            f"{where}: layer {most} drops {counts[most]} experts, layer {fewest} {counts[fewest]}; a configuration has "
            "one number of experts for all layers: drop as many of each"
        )
    for layer, numbers in left.items():
        sizes = {len([each for each in members if each in numbers]) for members in groups_of(layer, inventory)}
        if len(sizes) > 1:
            raise UserError(
                f"{where}: layer {layer}'s router chooses among {inventory.expert_groups} groups of experts, which "
                f"must stay equal; drop as many of each group of {len(groups_of(layer, inventory)[0])} neighbours"
            )


def groups_of(layer: int, inventory: Decoder) -> list[tuple[int, ...]]:
    """Numbers of a layer's experts by the groups that its router chooses among first; one where it doesn't."""
    members = inventory.experts[layer]
    size = len(members) // inventory.expert_groups
    return [members[start : start + size] for start in range(0, len(members), size)]


def least(inventory: Decoder) -> int:
    """The fewest experts of a layer that can stay: as many as a token is sent to, in the groups chosen for it, each of
    which is judged by its best two."""
    groups, chosen = inventory.expert_groups, inventory.chosen
    if groups == 1:
        return chosen
    return groups * max(2, math.ceil(chosen / inventory.chosen_groups))


def without(inventory: Decoder, left: Kept) -> Iterator[tuple[str, str]]:
    """The address of each linear that stays, and its address in the model that has the experts ``left`` alone."""
    places = {layer: {number: str(place) for place, number in enumerate(numbers)} for layer, numbers in left.items()}
    for each in inventory.matrices:
        place = _place(each, places)
        if place is not None:
            yield each.address, _NUMBER.sub(place, each.address) if each.expert is not None else each.address


def _place(each: Linear, places: Mapping[int, Mapping[int, str]]) -> str | None:
    """An expert's new number, "" for what belongs to none; None for a dropped one."""
    return "" if each.expert is None else places[each.layer].get(each.expert)


def per_expert(inventory: Decoder) -> dict[str, int]:
    """Tensors beside the experts that have a row for each of them, such as a router's weight -> layer."""
    found = {}
    for block in inventory.blocks:
        for routed in {group.routed for group in block.groups if group.routed is not None}:
            above = f"{block.path}.{routed.rpartition('.')[0]}".rstrip(".")
            count = len(inventory.experts[block.layer])
            names = {linear.weight_name for linear in block.linears}
            for name, shape in inventory.shapes.items():
                inside = name.startswith(f"{above}.") and not name.startswith(f"{block.path}.{routed}.")
                if inside and name not in names and shape[:1] == (count,):
                    found[name] = block.layer
    return found


def left_out(dropped: Collection[str], inventory: Decoder) -> int:
    """Parameters that go with dropped experts beside their weights: biases, and rows of what chooses them."""
    left = kept(dropped, inventory)
    if not left:
        return 0
    biases = sum(math.prod(inventory.shapes.get(f"{address}.bias", (0,))) for address in dropped)
    rows = ((math.prod(inventory.shapes[name][1:]), layer) for name, layer in per_expert(inventory).items())
    return biases + sum(size * (len(inventory.experts[layer]) - len(left[layer])) for size, layer in rows)
