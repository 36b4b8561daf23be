"""A recipe checked by arithmetic, before any weight: everything that is wrong with it, at once.

``validate``, ``explain`` and ``run`` ask here. Of the model only the configuration is read, of the data the files.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mixprec import recipe
from mixprec.core.errors import UserError
from mixprec.models import conversion, locate
from mixprec.models.model import Model
from mixprec.pipeline import loadable
from mixprec.pipeline.checks import beside, data
from mixprec.pipeline.checks.amounts import Counting, Held, counting
from mixprec.pipeline.checks.findings import Findings
from mixprec.pipeline.checks.plans import Plans
from mixprec.plan import bits
from mixprec.plan.bits import Account
from mixprec.plan.relative import Importance
from mixprec.plan.schema import Plan
from mixprec.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from mixprec.models.decoder import Decoder


@dataclass
class Checked(Findings):
    """What was found, and what is known now. ``plans``: of every variant, None where it is known only when it runs;
    ``held``: key -> what the recipe's files hold; ``model``, and what it has: None where it isn't known."""

    plans: dict[str, Plan | None] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    counting: Counting = field(default_factory=Counting)
    model: Model | None = None

    #: Variant -> bytes of its files with weights, and what its plan comes to, where they were asked for.
    sizes: dict[str, int] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)

    def account(self, name: str) -> Account:
        """What the plan of a variant comes to that is known."""
        plan = self.plans[name]
        assert plan is not None
        assert self.model is not None
        if name not in self.accounts:
            self.accounts[name] = bits.account(plan, self.model.decoder)
        return self.accounts[name]

    def file_bytes(self, chosen: Recipe, name: str) -> int:
        """Bytes of the files with weights of a variant whose plan is known."""
        plan = self.plans[name]
        assert plan is not None
        assert self.model is not None
        if name not in self.sizes:
            self.sizes[name] = chosen.checkpoint.written.bytes(plan, self.model.decoder, self.model.config)
        return self.sizes[name]

    @property
    def inventory(self) -> Decoder | None:
        """The model's map."""
        return None if self.model is None else self.model.decoder

    @property
    def config(self) -> PretrainedConfig | None:
        """The model's configuration; transformers reads it now."""
        return None if self.model is None else self.model.config


@conversion.without_converting()
def checked(
    chosen: Recipe,
    option: Path | None = None,
    *,
    importance: Importance | None = None,
    tables: Sequence[Path] | None = None,
    known: Sequence[str] = (),
    planned: bool = True,
) -> Checked:
    """Look at everything that can be looked at without weights and network.

    ``option``: the data folder of the command line. ``importance``, ``tables``: what plans are made from, in the place
    of what stages would make. ``known``: problems that were found before (recipe.read). ``planned``: the model's
    weights may be missing.
    """
    found, model = Checked(problems=list(known)), chosen.model.as_model()
    with found.trying():
        model.decoder  # noqa: B018 (raises where it isn't known)
        found.model = model
    if found.model is not None:
        with found.trying():
            loadable.check_model(chosen, model, planned=planned)
        folder = model.here
        found.counting = counting(folder)
        if folder is None:
            found.unchecked.append(f"model.id: {_absent(chosen.model.id)}")
        if chosen.compress.fine_tuned_from is not None:
            from mixprec.compress import updates  # with torch

            with found.trying("compress"):
                updates.check(chosen.compress.fine_tuned_from.as_model(), model, files=False)
        beside.check(chosen, model, found)
    found.held = data.read(chosen, recipe.data_folder(chosen, option), found)
    context = None if found.model is None else found.model.context
    data.check_amounts(chosen, found.held, found.counting, context, found)
    if found.model is not None:
        found.plans = Plans(chosen, model, found, importance, tables).all()
    _check_machine(chosen, found)
    return found


def _absent(model: str) -> str:
    """Why a model's files can't be looked at."""
    if locate.unconverted(model) is not None:
        return f"the tokenizer of {model}, which is converted when it is first used; tokens are estimated"
    return f"the files of {model}, which are not on this machine: its weights and its tokenizer"


#: What engines and sources need besides mixprec: package -> how it is installed.
_VLLM = ("vllm", "pip install 'mixprec[vllm]' (in an environment of its own: vLLM pins its own torch)")
_RAG = ("sentence_transformers", "pip install 'mixprec[rag]'")


def _check_machine(chosen: Recipe, found: Findings) -> None:
    """Devices, other quantizers and packages that the recipe asks for."""
    if chosen.model.device not in ("cpu", "auto"):
        from mixprec.core.devices import check_device  # asks torch

        try:
            check_device(chosen.model.device)
        except UserError as problem:
            found.lacking.append(f"model.{problem}")
    for engine in dict.fromkeys(chosen.engine_of(variant) for variant in chosen.all_variants.values()):
        if engine != "mixprec":
            from mixprec.contrib.peers import client  # it needs torch

            if reason := client.missing(engine):
                found.lacking.append(f"engine: {reason}")
    if chosen.distill is not None:
        from mixprec.distill import run as distilling  # it needs torch

        with found.lacks():
            distilling.require()
    spec = chosen.evaluate
    if spec is None or not spec.benchmarks or not chosen.all_variants:
        return
    wanted = [("evaluate.engine.kind: vllm", *_VLLM)] if spec.engine.kind == "vllm" and chosen.answering else []
    if any(each.name == "musique_rag" for each in spec.benchmarks):
        wanted.append(("evaluate.benchmarks: musique_rag", *_RAG))
    for key, package, install in wanted:
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            found.lacking.append(f"{key}: the package {package} is not installed; run: {install}")
