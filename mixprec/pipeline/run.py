"""The order of the stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mixprec.checkpoint.target import check_space
from mixprec.compress import updates
from mixprec.core import artifacts, events, locks, publish
from mixprec.core.memory import limited
from mixprec.evaluate.engines import templates
from mixprec.pipeline import damage, loadable, memory, own
from mixprec.pipeline.agreement import agree
from mixprec.pipeline.benchmarks import Benchmarks
from mixprec.pipeline.cards import write_cards
from mixprec.pipeline.checks import Checked, checked
from mixprec.pipeline.context import Context
from mixprec.pipeline.evaluation import Evaluator
from mixprec.pipeline.expected import expected
from mixprec.pipeline.importance import importance
from mixprec.pipeline.plans import plan_of
from mixprec.pipeline.reckoning import candidate_bytes
from mixprec.pipeline.summary import summary
from mixprec.pipeline.variants import peer_of, variant
from mixprec.plan.schema import Plan
from mixprec.recipe import calibrates_on_own
from mixprec.report.html import write_report


class Run(Context):
    """One recipe's run in one folder."""

    _found: Checked | None = None
    _expected: Sequence[tuple[str, float | None]] = ()
    #: Bytes of memory that the process may have; None: no limit.
    limit: int | None = None

    def check(self, where: str = "", known: Sequence[str] = ()) -> None:
        """Everything that can be wrong is looked at before any work.

        Raises UserError with all problems of the recipe ``where``, those ``known`` before (recipe.read) among them.
        """
        found = checked(self.recipe, self.data, known=known, planned=False)
        done = all((self.out / "variants" / name / "benchmarks.json").is_file() for name in self.recipe.all_variants)
        if done:  # nothing is generated any more
            found.lacking = [told for told in found.lacking if not told.startswith("evaluate.")]
        found.require(where, here=True)
        with found.trying():
            own.prepared(self)
        if self.recipe.compress.fine_tuned_from is not None:
            with found.trying("compress"):
                updates.check(self.recipe.compress.fine_tuned_from.as_model(), self.model)
        if not calibrates_on_own(self.recipe):
            self._read_calibration(found)
        with found.trying():
            check_space(self.out, self._space(found))
        found.problems += memory.refuse(self.recipe, found, self.limit)
        found.require(where)
        self._found, self._expected = found, expected(self.recipe, found)

    def _read_calibration(self, found: Checked) -> None:
        """Whether there are enough samples."""
        if self.recipe.calibrates:
            with found.trying():
                self.calibration  # noqa: B018 (read now)
        for spec in self.recipe.tunings:
            with found.trying():
                self.lessons(spec)

    def _space(self, found: Checked) -> int:
        """Bytes that checkpoints and candidates will take which are not there yet, as far as it is known."""
        written, plans = self.recipe.checkpoint.written, found.plans.items()
        missing = [
            plan
            for name, plan in plans
            if plan and plan.changed and not (self.out / "variants" / name / "checkpoint").is_dir()
        ]
        solved = (self.out / "sensitivity" / "candidates").is_dir()
        candidates = 0 if solved else candidate_bytes(self.recipe, self.model.decoder)
        return candidates + sum(written.bytes(plan, self.model.decoder, self.model.config) for plan in missing)

    def run(self) -> dict[str, Any]:
        """All stages; returns the summary.

        Raises UserError as ``check`` does, where another process is at work in the folder, for links in it that
        would be written, and where memory runs out.
        """
        if self._found is None:
            self.check()
        with locks.folder(self.out):
            for name in self.recipe.all_variants:
                publish.refuse_links(self.out / "variants" / name / "checkpoint")
            with (
                events.logged(self.out, recipe=self.name, stages=self._expected),
                memory.advised(self.recipe, self._found, self.limit),
                limited(self.limit),
            ):
                return self._run()

    def _run(self) -> dict[str, Any]:
        self.tell_moved()
        benchmarks = self._benchmarks()
        artifacts.write_text(self.out / "recipe.yaml", self.text)
        learned = own.learn(self)
        written = own.generate(self, self.model, self.own_traces, "generate") if self.recipe.generate else None
        found, stamp = importance(self)
        agreed = agree(self, stamp)
        scored = damage.score(self, found, stamp)
        if self.recipe.ablation is not None:
            with events.stage("ablation"):
                damage.ablate(self, self.out / "ablation", found)
        plans = {name: plan_of(self, name, each.plan, found, scored) for name, each in self.recipe.all_variants.items()}
        self._check(plans)
        spec = self.recipe.evaluate
        evaluator = Evaluator(self) if spec and (spec.traces or spec.text) and plans else None
        self.model.release()  # from here on its memory is for the variants
        rows = {name: variant(self, name, plan, evaluator, benchmarks) for name, plan in plans.items()}
        write_cards(self, plans, rows, evaluator.described if evaluator else None)
        shifted = own.shift(self, found, plans)
        stamps = {"distillation": learned, "traces": written}
        made_from = {name: each for name, each in stamps.items() if each} | self._commit
        if learned:
            made_from["student"] = self.base.identity
        result = summary(self, found, rows, evaluator, benchmarks) | {
            "shifts": shifted,
            "agreement": agreed.get("importance"),
            "provenance": artifacts.provenance(
                model=self.model.identity, importance=stamp, recipe=artifacts.fingerprint(self.text), **made_from
            ),
        }
        artifacts.write_json(self.out / "summary.json", result)
        write_report(self.out)
        return result

    @property
    def _commit(self) -> dict[str, Any]:
        """Of a model on the hub: the revision that the recipe names, and the commit that it stood for."""
        return {key: self.base.origin[key] for key in ("revision", "commit")} if self.base.commit else {}

    def _benchmarks(self) -> Benchmarks | None:
        """Questions and the chat template are read first: what is wrong with them is told before any work."""
        spec = self.recipe.evaluate
        if spec is None or not spec.benchmarks or not self.recipe.all_variants:
            return None
        if spec.prompts == "chat":
            templates.require(self.model, "evaluate.prompts: chat", "write prompts: paper in evaluate", spec.template)
        return Benchmarks(spec.asking, self.model, self.stages, self.data)

    def _check(self, plans: dict[str, Plan]) -> None:
        """Raises UserError for plans that their checkpoint, its runtime or another quantizer can't hold."""
        for name, plan in plans.items():
            loadable.check_variant(self.recipe, name, plan, self.model.decoder, self.model.config)
            if peer := peer_of(self, name):
                peer.check(plan, self.model.decoder)
