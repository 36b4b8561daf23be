"""What fine-tuning changed in each input channel of a model, from its base's files and its own (QuantLRM).

Weights are compared one by one, in the type that the fine-tuned model stores them in: a weight did not change where
both are the same number there. The file has, for each module, what numerics.updates makes of its |ΔW|.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from mixprec.compress.options import UpdatesFile
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder, Linear
from mixprec.models.model import Model
from mixprec.models.tensors import check_finite, take
from mixprec.numerics import updates
from mixprec.numerics.updates import ENDS, ChannelSums

#: Raised when a file comes out otherwise from the same weights (tests/test_stage_rules.py).
RULES: Final = 1
#: ‖ΔW‖² over ‖base‖² + ‖W‖² from which two models have nothing to do with one another: it is 1 on average then.
_STRANGERS: Final = 0.5
_NONE: Final = "take the checkpoint that it was fine-tuned from"


def check(base: Model, model: Model, *, files: bool = True) -> None:
    """``base`` can be what ``model`` was fine-tuned from, by shapes and, where ``files`` are looked at, vocabulary;
    reads no weights.

    Raises UserError naming both, and what differs.
    """
    where = f"fine_tuned_from: {base.id} is not the base of {model.id}"
    ours, theirs = (
        {m.address: (m.out_features, m.in_features) for m in each.decoder.linears} for each in (model, base)
    )
    only = next((address for address in [*ours, *theirs] if (address in ours) != (address in theirs)), None)
    if only is not None:
        raise UserError(f"{where}: {only} is in one of them only; {_NONE}")
    other = next((address for address in ours if ours[address] != theirs[address]), None)
    if other is not None:
        sizes = " and ".join(f"{rows} × {columns}" for rows, columns in (theirs[other], ours[other]))
        raise UserError(f"{where}: {other} has {sizes} weights; {_NONE}")
    if files and base.encoder.vocabulary != model.encoder.vocabulary:
        raise UserError(f"{where}: their vocabularies differ; {_NONE}")


def make(base: Model, model: Model, path: Path, advance: Callable[[int], None] = lambda _: None) -> UpdatesFile:
    """Compare the files of ``base`` and ``model`` and write ``path``. ``advance`` is told of each module, three times.

    Raises UserError as ``check``; where no weight, or nearly every one, has changed beyond recognition; and for broken
    files and weights that are NaN or infinite.
    """
    check(base, model)
    linears, sizes = model.decoder.linears, {"moved": 0.0, "both": 0.0}

    def moved() -> Iterator[Tensor]:
        sizes.update(moved=0.0, both=0.0)
        for module in linears:
            update, both = _update(base, model, module)
            sizes["moved"] += float(update.square().sum(dtype=torch.float64))
            sizes["both"] += both
            yield update
            advance(1)

    try:
        of = updates.extent(moved)
    except ValueError:
        raise UserError(f"fine_tuned_from: {base.id} and {model.id} have the same weights; {_NONE}") from None
    if sizes["moved"] > _STRANGERS * sizes["both"]:
        raise UserError(
            f"fine_tuned_from: {base.id} is not the base of {model.id}: their weights have nothing in common; {_NONE}"
        )
    tensors = {}
    for module in linears:
        found = updates.channel_sums(_update(base, model, module)[0], of)
        tensors[f"{module.address}|mapped"], tensors[f"{module.address}|zeros"] = found.mapped, found.zeros
        advance(1)
    rows = {module.address: module.out_features for module in linears}
    told = {"identity": model.identity, "base": base.identity, "ends": ENDS, "extent": of._asdict(), "rows": rows}
    artifacts.save_tensors(path, tensors, {"updates": told})
    return UpdatesFile(path=str(path), sha256=artifacts.sha256_file(path))


def _update(base: Model, model: Model, module: Linear) -> tuple[Tensor, float]:
    """|ΔW| (out, in) of a module, float32, and ‖base‖² + ‖W‖²."""
    own, other = (_weight(each, module.weight_name) for each in (model, base))
    other = other.to(own.dtype).float()
    both = sum(float(each.square().sum(dtype=torch.float64)) for each in (own.float(), other))
    return (own.float() - other).abs(), both


def _weight(model: Model, name: str) -> Tensor:
    source = model.original.source
    path = source.folder / source.tensors[name].shard
    with artifacts.open_tensors(path) as file:
        found = take(file, name, source.tensors[name])
    check_finite(f"{path}: {name}", found)
    return found


def channels(file: UpdatesFile, addresses: Iterable[str]) -> Tensor:
    """Importance (in,), float32, of the input channels that modules share.

    Raises UserError for a file that was changed since, and modules that are not in it.
    """
    tensors, told = _load(file.path, file.sha256)
    wanted = list(addresses)
    missing = next((address for address in wanted if address not in told["rows"]), None)
    if missing is not None:
        raise UserError(f"{file.path}: has no updates of {missing}; it was made for another model")
    return updates.importance(
        ChannelSums(tensors[f"{address}|mapped"], tensors[f"{address}|zeros"], told["rows"][address])
        for address in wanted
    ).float()


def require(file: UpdatesFile, identity: str, inventory: Decoder) -> None:
    """The file is of the model with this ``identity`` and its modules. Raises UserError where it isn't."""
    _, told = _load(file.path, file.sha256)
    if told["identity"] != identity or told["rows"].keys() != {m.address for m in inventory.linears}:
        raise UserError(f"{file.path}: updates of another model; make them for this one, from its base")


@functools.lru_cache(maxsize=2)
def _load(path: str, sha256: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not Path(path).is_file() or artifacts.sha256_file(Path(path)) != sha256:
        raise UserError(f"{path}: is not the file of updates that was made; make it again")
    tensors, notes = artifacts.load_tensors(Path(path))
    return tensors, notes["updates"]


def shared(file: UpdatesFile | None, group: Iterable[Linear]) -> Tensor | None:
    """Importance of a group's input channels, where there is a file."""
    return None if file is None else channels(file, (module.address for module in group))
