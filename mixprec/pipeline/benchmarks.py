"""What ``mixprec run`` does on benchmarks: one result per variant, in benchmarks.json, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixprec.core import artifacts
from mixprec.core.stages import Stages
from mixprec.evaluate import bench
from mixprec.evaluate.benchmarks import digest
from mixprec.evaluate.engines.base import Engine
from mixprec.evaluate.engines.make import make
from mixprec.evaluate.engines.serverspec import ServerSpec
from mixprec.evaluate.likelihood import run as likelihoods
from mixprec.evaluate.scoring import RULES
from mixprec.evaluate.spec import OF_LIKELIHOOD, ProtocolSpec
from mixprec.models.decoder import Decoder
from mixprec.models.labels import select
from mixprec.models.model import Model
from mixprec.numerics.formats import CodebookFormat, Format
from mixprec.plan.methods import METHODS
from mixprec.plan.schema import Plan


class Benchmarks:
    """The benchmarks of one recipe, their questions read once. ``servers``: variant -> who answers in its place."""

    def __init__(
        self,
        protocol: ProtocolSpec,
        servers: Mapping[str, ServerSpec],
        model: Model,
        stages: Stages,
        data: Path | None,
    ) -> None:
        self.protocol = protocol
        self.servers = servers
        self.model = model
        self.stages = stages
        self.questions = bench.load_questions(protocol, data, stages.run / "evaluation", model.device)

    def row(self, name: str, model: Model, stamp: str, folder: Path, labels: Mapping[str, Any]) -> dict[str, Any]:
        """What a variant's row of the summary says of benchmarks; arguments as of ``evaluate``."""
        if self.protocol.protocol == "likelihood":
            return {"likelihood": likelihoods.brief(self.likelihood(name, model, stamp, folder, labels))}
        return {"benchmarks": bench.brief(self.evaluate(name, model, stamp, folder, labels))}

    def likelihood(
        self, name: str, model: Model, stamp: str, folder: Path, labels: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Measure a variant's answers into ``folder``/likelihood.json; ``stamp``: fingerprint of its checkpoint."""
        asked, path = self.protocol, folder / "likelihood.json"
        identity = artifacts.fingerprint(stamp, self.model.dtype)
        rows = {key: digest(found) for key, found in self.questions.items()}
        after = [] if asked.after is None else [likelihoods.origin_of(asked, key) for key in self.questions]
        template = [asked.template] if asked.template else []
        inputs = [identity, rows, asked.prompts, asked.stub, asked.limit, after, dict(labels), *template]

        def run() -> None:
            where = folder / "likelihood" / artifacts.fingerprint(*inputs[:4], after, *template)[:12]
            found = likelihoods.run(model.load, self.questions, asked, identity, where, f"likelihood {name}")
            model.release()
            artifacts.write_json(path, {"labels": {"variant": name, **labels}, **found})

        self.stages.do(f"likelihood/{name}", likelihoods.RULES, inputs, [path], run)
        return artifacts.read_versioned(path)

    def evaluate(self, name: str, model: Model, stamp: str, folder: Path, labels: Mapping[str, Any]) -> dict[str, Any]:
        """Run a variant's benchmarks into ``folder``/benchmarks.json; ``stamp``: fingerprint of its checkpoint.

        Generations lie in a folder named after what they were made from: those of an earlier plan or protocol stay.
        """
        path, server = folder / "benchmarks.json", self.servers.get(name)
        identity = artifacts.fingerprint(stamp, f"server:{server.model}" if server else self.model.dtype)
        rows = {key: digest(found) for key, found in self.questions.items()}
        left = {"seeds", "limit", "engine", "think_tags", *OF_LIKELIHOOD, *self.protocol.unsaid}
        made_from = artifacts.fingerprint(identity, rows, self.protocol.model_dump(exclude=left))

        def run() -> None:
            found = bench.run(
                lambda: self._engine(name, model),
                self.questions,
                self.protocol,
                identity,
                folder / "generations" / made_from[:12],
                f"benchmarks {name}",
            )
            model.release()
            artifacts.write_json(path, {"labels": {"variant": name, **labels}, **found})

        asked = self.protocol
        engine = "server" if server else asked.engine.kind
        inputs: list[Any] = [made_from, asked.seeds, asked.limit, engine, dict(labels)]
        inputs += [asked.think_tags] if asked.think_tags else []
        self.stages.do(f"benchmarks/{name}", RULES, inputs, [path], run)
        return artifacts.read_versioned(path)

    def _engine(self, name: str, model: Model) -> Engine:
        if name not in self.servers:
            return make(self.protocol.engine, model)
        from mixprec.evaluate.engines.openai import OpenAIEngine  # an HTTP client, which other runs don't need

        return OpenAIEngine(self.servers[name].server, place=f"evaluate.servers.{name}.url")


def baseline_of(changed: Mapping[str, int]) -> str:
    """The variant that others are compared with: the first that changes no module, else the first."""
    return next((name for name, count in changed.items() if count == 0), next(iter(changed)))


def labels_of(plan: Plan, inventory: Decoder, description: str) -> dict[str, Any]:
    """What tables say of a variant, from its plan: model, size, method, sparsity, what is kept, what alone changed."""
    changed = plan.changed
    parameters = sum(module.in_features * module.out_features for module in inventory.linears)
    parameters += sum(inventory.other.values())
    names = {module.address: module.label for module in inventory.matrices}
    kept = [names[address] for address in plan.modules if address not in changed]
    few = 0 < len(changed) <= len(inventory.linears) // 2
    return {
        "model": plan.model.rpartition("/")[2],
        "parameters": _size(parameters),
        "compression": _compression(plan, inventory),
        "sparsity": _sparsity(plan, inventory),
        "kept": "" if few or not changed else _kept(kept, inventory),
        "component": ", ".join(names[address] for address in changed) if few and len(changed) <= 3 else "",
        "description": description,
    }


def _size(parameters: int) -> str:
    for unit, scale in (("B", 1e9), ("M", 1e6)):
        if parameters >= scale:
            value = parameters / scale
            return f"{value:.0f}{unit}" if value >= 10 else f"{value:.1f}".removesuffix(".0") + unit
    return f"{parameters:,}"


def _compression(plan: Plan, inventory: Decoder) -> str:
    """``3-bit AWQ``, as the paper writes it; empty for the original, several joined by +."""
    found: dict[tuple[str, bool], None] = {}
    for address in plan.changed:
        treatment = plan.treatments[address]
        name = METHODS[treatment.method].title
        if isinstance(treatment.format, CodebookFormat):
            name = f"{treatment.format.bits}-bit ANY{treatment.format.bits}"
        elif isinstance(treatment.format, Format):
            name = f"{treatment.format.bits}-bit {name}"
        found[name, treatment.sparsity is not None] = None
    share = _sparsity(plan, inventory)
    names = [f"{share} {name}" if sparse else name for name, sparse in found]
    return " + ".join(names) if len(names) <= 3 else f"{len(names)} formats"


def _sparsity(plan: Plan, inventory: Decoder) -> str:
    """The pattern that all pruned modules share, or the mean share of zeros over the weights of the pruned ones."""
    sparse = {a: found for a in plan.changed if (found := plan.treatments[a].sparsity) is not None}
    patterns = {str(found) for found in sparse.values() if found.pattern}
    if len(patterns) == 1 and all(found.pattern for found in sparse.values()):
        return patterns.pop()
    sizes = {module.address: module.weights for module in inventory.matrices}
    total = sum(sizes[address] for address in sparse)
    zeros = sum(sizes[address] * found.fraction for address, found in sparse.items())
    return f"{100 * zeros / total:.0f}%" if total else "0%"


def _kept(kept: list[str], inventory: Decoder) -> str:
    if sorted(kept) == sorted(module.label for module in select(inventory.linears, "last_mlp")):
        return "Final-layer MLP"
    return ", ".join(kept) if len(kept) <= 3 else f"{len(kept)} modules"
