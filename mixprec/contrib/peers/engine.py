"""Another quantizer in the place of mixprec's own methods: a plan goes in, a ``dense`` checkpoint comes out.

The plan is written in the peer's syntax (``contrib/export``). The peer gets the same tokens as mixprec's methods. What
it made is read back as values, so that it is evaluated, compared and reported like everything else.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixprec.calibration.data import Calibration
from mixprec.checkpoint.base import Finish
from mixprec.checkpoint.dense import DENSE
from mixprec.checkpoint.modelcard import Told
from mixprec.checkpoint.publish import complete
from mixprec.checkpoint.shards import write_config
from mixprec.checkpoint.target import check_space, check_target
from mixprec.compress.module import KEPT, ModuleReport, OnModule, measure
from mixprec.contrib.export import TARGETS
from mixprec.contrib.peers import client
from mixprec.core import artifacts, locks, publish
from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder
from mixprec.models.model import Model
from mixprec.models.modelfiles import INDEX
from mixprec.models.source import Source, open_source
from mixprec.numerics.formats import Keep
from mixprec.plan.methods import METHODS as RECORDS
from mixprec.plan.methods import Method, needing_inputs
from mixprec.plan.schema import Plan, Treatment, check_modules
from mixprec.recipe.engines import METHODS


@dataclass(frozen=True)
class Peer:
    """A quantizer of this name, with settings of its own (docs/peers.md); what isn't named stays as the peer has it."""

    name: str
    settings: Mapping[str, Any]

    def needs_inputs(self, method: Method) -> bool:
        """Whether it looks at calibration data for plans with this method."""
        return self.name == "autoround" or bool(needing_inputs([method]))

    def request(self, plan: Plan, inventory: Decoder) -> dict[str, Any]:
        """What of its job comes from the plan: method, and the plan's text or one sparsity for all modules.

        Raises UserError for a method that it doesn't have, and for formats that it can't hold.
        """
        if plan.method not in METHODS[self.name]:
            known = ", ".join(METHODS[self.name])
            raise UserError(f"engine: {self.name} has no method {plan.method}; it has {known}; choose another engine")
        if RECORDS[plan.method].prunes:
            return {"method": plan.method, "sparsity": _one_sparsity(plan, self.name)}
        text = TARGETS[self.name](plan, inventory, plan.method)
        return {"method": "autoround" if self.name == "autoround" else plan.method, "plan_text": text}

    def check(self, plan: Plan, inventory: Decoder) -> None:
        """Raises UserError now for what ``compress`` would refuse: its environment or the plan."""
        client.key(self.name)
        if plan.changed:
            self.request(plan, inventory)

    @property
    def identity(self) -> list[Any]:
        """What results depend on besides model, plan and calibration: the pins of its environment, and settings.

        Raises PeerMissing where it has no environment.
        """
        return [self.name, client.key(self.name), dict(self.settings)]


def _one_sparsity(plan: Plan, name: str) -> dict[str, Any]:
    found = set(plan.treatments.values())
    only = next(iter(found))
    if len(found) > 1 or only.sparsity is None or not isinstance(only.format, Keep):
        raise UserError(f"engine: {name} prunes all modules alike and quantizes none; give all of them one sparsity")
    sparsity = only.sparsity
    return {"ratio": sparsity.fraction, "pattern": str(sparsity) if sparsity.pattern else None}


def compress(
    peer: Peer,
    model: Model,
    plan: Plan,
    out: Path,
    *,
    calibration: Calibration | None = None,
    on_module: OnModule | None = None,
) -> dict[str, ModuleReport]:
    """Write the checkpoint ``out``: ``model`` as ``peer`` compresses it under ``plan``, in the source's types.

    A checkpoint like those of compress/stream.py, with mixprec.json; what the peer printed lies beside it in
    ``peer.log``. Returns address -> report in the plan's order; of the errors only that of the weights is known.

    Raises UserError for a plan that the peer can't carry out, calibration data that is missing or weighted, an
    environment that isn't there, and where the peer fails.
    """
    out = Path(os.path.realpath(out))  # a link to a folder elsewhere stays
    opened = model.original
    source, config, inventory = opened.source, opened.shapes, opened.inventory
    check_modules(plan, inventory, f"plan for {plan.model}")
    check_target(out, source.folder)
    check_space(out, DENSE.bytes(plan, inventory, config))
    request = peer.request(plan, inventory)
    _check_calibration(peer, plan, calibration)
    card = artifacts.provenance(
        source=model.origin | {"identity": model.identity},
        plan=plan.model_dump(mode="json"),
        calibration=calibration.described | {"digest": calibration.digest} if calibration else None,
    )
    with locks.target(out), publish.atomic_path(out) as made, tempfile.TemporaryDirectory() as name:
        work = Path(name)
        job: dict[str, Any] = {"peer": peer.name, "model": str(source.folder), "out": str(made), "dtype": model.dtype}
        beside = [each.relative_to(source.folder).as_posix() for each in source.side_files()]
        job["files"] = [*source.shards, *([INDEX] if source.sharded else []), *beside]
        job |= {"settings": dict(peer.settings), "threads": torch.get_num_threads(), **request}
        if "plan_text" in job:
            job["plan"] = str(work / "plan")
            artifacts.write_text(work / "plan", job.pop("plan_text"))
        if calibration:
            job["calibration"] = str(client.write_tokens(work / "tokens.safetensors", calibration.tokens))
        result = client.run_peer(job, log=out.with_name("peer.log"))
        # Neither times nor memory: the same inputs give the same bytes.
        card["engine"] = {key: result[key] for key in ("peer", "method", "versions", "settings")}
        finished = Finish(source, (), made, plan, inventory, config)
        write_config(finished, {})  # a head of its own is no tied one
        reports = _reports(plan, source, open_source(made), job["method"], on_module)
        told = Told(calibration=calibration.described if calibration else None)
        complete(finished, DENSE, told, {**card, "checkpoint": {"format": "dense"}})
    return reports


def _check_calibration(peer: Peer, plan: Plan, calibration: Calibration | None) -> None:
    if not peer.needs_inputs(plan.method):
        return
    if calibration is None:
        raise UserError(
            f"engine: {peer.name} needs calibration data; give compress.calibration, "
            "for example {traces: bundled:attribution, samples: 16, tokens: 512}"
        )
    if calibration.weights is not None:
        raise UserError(
            f"engine: {peer.name} counts all calibration tokens alike; "
            "leave out the weights of compress.calibration, or use mixprec's own methods"
        )


def _reports(
    plan: Plan, source: Source, made: Source, method: str, on_module: OnModule | None
) -> dict[str, ModuleReport]:
    """The errors of weights, module by module, of two checkpoints with the same tensors."""
    reports = {}
    for address, treatment in plan.treatments.items():
        reports[address] = _report(address, treatment, source, made, method)
        if on_module:
            on_module(address, reports[address])
    return reports


def _report(address: str, treatment: Treatment, source: Source, made: Source, method: str) -> ModuleReport:
    if not treatment.changes:
        return KEPT
    before, after = (_weight(checkpoint, f"{address}.weight") for checkpoint in (source, made))
    return measure(address, before, after, None, ModuleReport(str(treatment.format), 0.0, method))


def _weight(checkpoint: Source, name: str) -> Tensor:
    with artifacts.open_tensors(checkpoint.folder / checkpoint.tensors[name].shard) as file:
        weight: Tensor = file.get_tensor(name)
    return weight
