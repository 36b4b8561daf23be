"""A run: what is checked before any work, its jobs, and what is made of them in the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mixprec.checkpoint.target import check_space
from mixprec.compress import updates
from mixprec.core import artifacts, events, locks, publish
from mixprec.core.memory import limited
from mixprec.pipeline import memory, own
from mixprec.pipeline.cards import write_cards
from mixprec.pipeline.checks import Checked, checked
from mixprec.pipeline.executors.base import Executor, Here
from mixprec.pipeline.executors.choice import executor
from mixprec.pipeline.executors.placement import Placement
from mixprec.pipeline.expected import expected
from mixprec.pipeline.jobs import jobs_of
from mixprec.pipeline.reckoning import candidate_bytes
from mixprec.pipeline.scheduling import carry_out
from mixprec.pipeline.summary import summary
from mixprec.pipeline.work import Work
from mixprec.recipe import calibrates_on_own
from mixprec.report.html import write_report


class Run(Work):
    """One recipe's run in one folder: checked, done job by job, put together."""

    _found: Checked | None = None
    _expected: Sequence[tuple[str, float | None]] = ()
    #: Bytes of memory that the process may have; None: no limit.
    limit: int | None = None

    def check(self, where: str = "", known: Sequence[str] = (), *, here: bool = True) -> None:
        """Everything that can be wrong is looked at before any work; ``here``: this machine does it.

        Raises UserError with all problems of the recipe ``where``, those ``known`` before (recipe.read) among them.
        """
        found = checked(self.recipe, self.data, known=known, planned=False)
        done = all((self.out / "variants" / name / "benchmarks.json").is_file() for name in self.recipe.all_variants)
        if done:  # nothing is generated any more
            found.lacking = [told for told in found.lacking if not told.startswith("evaluate.")]
        found.require(where, here=here)
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

    def run(self, placement: Placement | None = None) -> dict[str, Any]:
        """All jobs, by default one after another in this process; returns the summary.

        Raises UserError as ``check`` does, where another process is at work in the folder, for links in it that would
        be written, where memory runs out, and for jobs that failed, once all others are done.
        """
        if self._found is None:
            self.check(here=placement is None)
        with locks.folder(self.out):
            for name in self.recipe.all_variants:
                publish.refuse_links(self.folder(name) / "checkpoint")
            doing = Here(self.do) if placement is None else executor(placement, self)
            with (
                events.logged(self.out, recipe=self.name, stages=self._to_come(doing)),
                memory.advised(self.recipe, self._found, self.limit),
                limited(self.limit),
            ):
                self.tell_moved()
                self.benchmarks  # noqa: B018 (what is wrong with them is told before any work)
                artifacts.write_text(self.out / "recipe.yaml", self.text)
                carry_out(self.recipe, doing)
                return self._put_together()

    def _to_come(self, doing: Executor) -> Sequence[tuple[str, float | None]]:
        """What the log will tell of, and how long each may take: stages, or jobs where these are all that is heard."""
        if doing.tells:
            return self._expected
        known = dict(self._expected)
        return [(job.name, known.get(job.name)) for job in jobs_of(self.recipe, doing.slots)]

    def _put_together(self) -> dict[str, Any]:
        """The summary and the report, of stages that are done, in the recipe's order."""
        done, evaluator, names = self.prepared, self.evaluator, list(self.recipe.all_variants)
        rows = {name: self.row(name) for name in names}
        write_cards(self, {name: self.plan(name) for name in names}, rows, evaluator.described if evaluator else None)
        shifts = {name: self.shifted(name) for name in self.compared} if self.recipe.shift else {}
        stamps = {"distillation": done.learned, "traces": done.written}
        made_from = {name: each for name, each in stamps.items() if each} | self._commit
        if done.learned:
            made_from["student"] = self.base.identity
        result = summary(self, done.importance, rows, evaluator, self.benchmarks) | {
            "shifts": {name: each for name, each in shifts.items() if each is not None},
            "agreement": self.agreed.get("importance"),
            **own.begun(self),
            "provenance": artifacts.provenance(
                model=self.model.identity,
                importance=done.stamp,
                recipe=artifacts.fingerprint(self.text),
                **made_from,
            ),
        }
        artifacts.write_json(self.out / "summary.json", result)
        write_report(self.out)
        return result

    @property
    def _commit(self) -> dict[str, Any]:
        """Of a model on the hub: the revision that the recipe names, and the commit that it stood for."""
        return {key: self.base.origin[key] for key in ("revision", "commit")} if self.base.commit else {}
