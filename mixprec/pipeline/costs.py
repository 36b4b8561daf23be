"""What a recipe will take, stage by stage, by arithmetic: CPU seconds, memory, disk and what goes to it and comes from
it, and what they are spent on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from mixprec.core.devices import quickest_dtype
from mixprec.importance.cost import Corpus, Shape, generic_flops, generic_memory, our_flops, our_memory
from mixprec.importance.probing import why_not_by_shapes
from mixprec.models import conversion
from mixprec.numerics.formats import Drop
from mixprec.pipeline import owncosts, traffic
from mixprec.pipeline.checks import Checked
from mixprec.pipeline.rates import CPU, Rates
from mixprec.pipeline.reckoning import BYTES, PYTHON_BYTES, Reckoning
from mixprec.pipeline.stage import Stage, decoding
from mixprec.pipeline.traffic import Traffic
from mixprec.pipeline.usage import Used
from mixprec.plan.methods import Pace, guidable
from mixprec.plan.schema import Plan, Treatment
from mixprec.recipe import Recipe
from mixprec.report.formatting import plural
from mixprec.sensitivity.sets import cells_of
from mixprec.sensitivity.spec import GRADIENT, TOGETHER
from mixprec.tune.options import TuneSpec

#: Files of a finished run beside checkpoints and tensors.
_PAGES_BYTES = 10_000_000
#: Importing, reading files and drawing the report.
_AROUND_SECONDS = 25.0
#: Bytes beside each weight of a block that is tuned: what it was, its position, gradients, and the best so far.
_TUNED_BYTES = 24
#: Samples that guidance takes through the model at once.
_GUIDED_TOGETHER = 8


#: Tokens of a benchmark's question on average, its answers included.
_QUESTION = 300


@conversion.without_converting()
def stages(chosen: Recipe, found: Checked, rates: Rates | None = None) -> list[Stage]:
    """The recipe's stages in their order, each as if none were done. ``rates``: of what they run on, by default of a
    processor's core; how long they take on other devices isn't known then."""
    assert found.config is not None
    assert found.inventory is not None
    reckoning = _Stages(chosen, found, Shape.of(found.config), found.inventory, rates or CPU)
    known, listed = rates is not None or chosen.model.device == "cpu", list(reckoning.all())
    if listed and found.model is not None and found.model.here is not None and found.model.commit is None:
        # Files that no commit names are hashed, once for all stages.
        listed[0] = listed[0]._replace(traffic=listed[0].traffic + Traffic(reckoning.stored.all))
    return [each if known else each._replace(seconds=None) for each in listed]


def total(listed: list[Stage]) -> Stage:
    """All stages: times and disk add up, memory is the largest; with what a run takes besides."""
    times = [each.seconds for each in listed]
    seconds = None if None in times else sum(time for time in times if time is not None) + _AROUND_SECONDS
    memory = max((each.memory for each in listed), default=PYTHON_BYTES)
    traffic = sum((each.traffic for each in listed), Traffic(0, _PAGES_BYTES))
    disk = sum(each.disk for each in listed) + _PAGES_BYTES
    return Stage("sum", "", seconds, memory, disk, traffic, any(each.most for each in listed))


class _Stages(Reckoning):
    """The stages of a recipe, in their order."""

    def all(self) -> Iterator[Stage]:
        yield from owncosts.learning(self.chosen, self.used, self.shape, self.stored, self.rates)
        written = owncosts.writing(self.chosen, self.used, self.shape, self.stored, self.item, self.rates)
        if written is not None:
            yield written
        if self.chosen.importance is not None and "traces" in self.used:
            yield self._importance(self.used["traces"])
        if self.chosen.agreement is not None and "agreement" in self.used:
            yield self._importance(self.used["agreement"])._replace(name="agreement")
        yield from owncosts.updating(self.chosen, self.shape, self.stored, self.rates)
        yield from self._guidance()
        solved = self._solved()
        if solved:
            yield self._candidates(solved)
        if "sensitivity" in self.used:
            yield self._sensitivity(len(solved))._replace(most=self.used["sensitivity"].most)
        if self.chosen.ablation is not None:
            yield self._ablation()
        yield from self._exchanges()
        yield from self._compressions()
        if self._evaluated and self.chosen.all_variants:
            yield self._evaluation()
        yield from self._benchmarks()
        yield from self._shifts(written)

    def _shifts(self, written: Stage | None) -> Iterator[Stage]:
        """Each model's own traces, and their importance."""
        if self.chosen.shift is None or "traces" not in self.used:
            return
        for name in owncosts.compared(self.chosen, self.found.plans):
            scored = self._importance(self.used["traces"])
            parts = [scored] if written is None or self.chosen.shift.traces == "same" else [written, scored]
            yield owncosts.joined(f"shift {name}", parts)

    @property
    def _evaluated(self) -> list[Used]:
        return [self.used[key] for key in ("evaluate.traces", "evaluate.text") if key in self.used]

    def _written(self, name: str) -> int:
        """Bytes of a variant's files with weights; of the original none are written."""
        plan = self.found.plans.get(name)
        if plan is None:
            return self.shape.parameters * 2
        return self.found.file_bytes(self.chosen, name) if plan.changed else 0

    @property
    def _all_written(self) -> int:
        return sum(self._written(name) for name in self.chosen.all_variants)

    def _importance(self, traces: Used) -> Stage:
        spec = self.chosen.importance
        assert spec is not None
        spans = sum(traces.spans.values())
        positions = round(traces.inside) + 5 * spans
        mean = traces.tokens / max(traces.items, 1)
        corpus = Corpus(
            traces.items,
            traces.tokens,
            traces.squares,
            traces.longest,
            spans,
            positions,
            round(positions * mean / 2),
            0,
            0,
        )
        packed = why_not_by_shapes(self.found.config) is None
        memory = (
            our_memory(self.shape, traces.longest, self.item, len(spec.presets))
            if packed
            else generic_memory(self.shape, traces.longest, self.item, "cached", len(spec.presets))
        )
        work_done = our_flops(self.shape, corpus) if packed else generic_flops(self.shape, corpus, "cached")
        beside = memory.total - memory.weights
        held = PYTHON_BYTES + beside if spec.stream else self.loaded(beside)
        sums = (1 + 4 * len(spec.presets)) * self.shape.outputs * 4
        what = plural(spans, "span") if spans else "spans that are found then"
        work = f"{what} in {plural(traces.items, 'trace')} of {traces.tokens:,} tokens"
        passes = (
            2 * math.ceil(traces.items * (memory.total - memory.weights) / (spec.sweep_gb * 1e9)) if spec.stream else 1
        )
        files = self.stored.sweeps(passes, 2 * sums)
        return Stage("importance", work, work_done / self.rate, held, 2 * sums, files, traces.most)

    def _solved(self) -> list[Treatment]:
        """What every module is solved for, for sensitivity, ablation and exchanges; zeros cost nothing."""
        return [each for each in self.chosen.candidates().values() if not isinstance(each.format, Drop)]

    def _candidates(self, solved: list[Treatment]) -> Stage:
        linears = (*self.inventory.linears, *self.outside)
        seconds = self.gather() + sum(self.solve(module, each.method) for each in solved for module in linears)
        work = f"{plural(len(linears), 'module')} in {plural(len(solved), 'format')}"
        disk = self.candidate_bytes
        files = self.stored.sweeps(written=disk)
        return Stage("candidates", work, seconds, self.block_memory(), disk, files)

    def _guidance(self) -> Iterator[Stage]:
        """Gradients of the calibration samples, once for all: states up, and down again with gradients."""
        spec, tokens = self.chosen.compress.guided, self.used.get("compress.calibration")
        if spec is None or tokens is None or not guidable(self.chosen.methods):
            return
        draws = spec.draws if spec.loss == "fisher" else 1
        work = (2 + draws) * self.forward(tokens) + (1 + draws) * self.shape.head * tokens.tokens
        states = (
            min(tokens.items, _GUIDED_TOGETHER) * self.shape.layers * tokens.longest * self.shape.hidden * self.item
        )
        memory = self.block_memory() + min(states, int(self.chosen.compress.memory_gb * 1e9)) + self.logits
        disk = len(self.inventory.linears) * tokens.tokens * spec.groups * 4
        files = self.stored.sweeps(2 * math.ceil(tokens.items / _GUIDED_TOGETHER), disk)
        yield Stage("guidance", f"gradients on {tokens.tokens:,} tokens", work / self.rate, memory, disk, files)

    def _sensitivity(self, candidates: int) -> Stage:
        spec, scored = self.chosen.sensitivity, self.used["sensitivity"]
        assert spec is not None
        if spec.scorer == "measured":
            cells = candidates * (len(self.inventory.linears) + len(self.outside))
            work = f"{cells:,} measurements on {scored.tokens:,} tokens"
            seconds = self.measure(cells, scored, spec.stride)
            return Stage("sensitivity", work, seconds, self.whole_memory(scored), 0, self.choosing())
        work = f"{plural(candidates, 'format')} on {plural(scored.items, 'passage')} of {scored.tokens:,} tokens"
        if not spec.solves:
            work = f"experts on {plural(scored.items, 'passage')} of {scored.tokens:,} tokens"
            return Stage("sensitivity", work, self.forward(scored) / self.rate, self.block_memory())
        if spec.scorer not in GRADIENT:
            seconds = self.shape.linear * candidates * Pace().weight / self.rates.weight
            return Stage("sensitivity", work, seconds, self.block_memory(), 0, self.choosing())
        rows = (1 + len(spec.behaviours)) * spec.draws
        passes = 4 + 2 * rows + 1.5 * candidates + (spec.at != "original")
        memory = self.block_memory() + self.swept(scored, TOGETHER)
        seconds = passes * self.forward(scored) / self.rate
        if self.outside:
            memory = max(memory, self.whole_memory(scored))
            seconds += 2 * self.measure(candidates * len(self.outside), scored, spec.stride)
        # Up and down for a few passages together, and once more for errors.
        files = self.choosing(1 + 2 * math.ceil(scored.items / TOGETHER))
        return Stage("sensitivity", work, seconds, memory, 0, files)

    def _ablation(self) -> Stage:
        spec = self.chosen.ablation
        assert spec is not None
        cells, passages = len(cells_of(spec, self.inventory)) + 1, _joined(self._evaluated)
        work = f"{cells:,} measurements on {passages.tokens:,} tokens"
        seconds = self.measure(cells, passages, spec.stride)
        return Stage("ablation", work, seconds, self.whole_memory(passages), 0, self.choosing(), passages.most)

    def _exchanges(self) -> Iterator[Stage]:
        for name, variant in self.chosen.all_variants.items():
            exchange = variant.plan.budget.exchange if variant.plan.budget else None
            if exchange is None or "sensitivity" not in self.used:
                continue
            scored = self.used["sensitivity"]
            share = exchange.samples / max(scored.items, 1)
            each = (self.forward(scored) + 3 * self.shape.head * scored.tokens / exchange.stride) * share
            work = f"at most {exchange.proposals} plans on {round(scored.tokens * share):,} tokens"
            seconds = exchange.proposals * each / self.rate
            memory = self.assembled_memory(round(scored.tokens * share), scored, TOGETHER)
            yield Stage(f"exchange {name}", work, seconds, memory, 0, self.choosing(), scored.most)

    def _compressions(self) -> Iterator[Stage]:
        for name, variant in self.chosen.all_variants.items():
            plan = self.found.plans.get(name)
            method = variant.plan.method or self.chosen.compress.method
            if plan is not None and not plan.changed:
                continue
            engine = self.chosen.engine_of(variant)
            most = plural(len(plan.changed) if plan else len(self.inventory.linears), "module")
            work = f"{'' if plan else 'at most '}{most} by {method}"
            disk, tuned = self._written(name), self.chosen.tune_blocks_of(variant)
            seconds = None if engine != "mixprec" else self.compression(plan, method, tuned) + disk / self.rates.disk
            work += "" if engine == "mixprec" else f", {engine}"
            work += f", {plural(tuned.steps, 'step')} in each block" if tuned else ""
            memory = self.block_memory() + (_TUNED_BYTES * self.shape.linear // self.shape.layers if tuned else 0)
            spec = self.chosen.tune_of(variant)
            yield Stage(
                f"compress {name}", work, seconds, memory, disk, self._compressing(name, plan, disk, engine, spec)
            )
            if spec is not None:
                yield self._tuned(name, spec)

    def _compressing(self, name: str, plan: Plan | None, disk: int, engine: str, tuned: TuneSpec | None) -> Traffic:
        """What goes through files; of other quantizers what they read and leave."""
        if plan is None or engine != "mixprec":
            return self.stored.sweeps(written=disk)
        tokens = self.used.get("compress.calibration")
        states = 2 * (tokens.tokens if tokens else 0) * self.shape.hidden * self.item
        account = self.found.account(name)
        spilled = max(0, states - int(self.chosen.compress.memory_gb * 1e9))
        return traffic.compressing(plan, account, self.inventory, self.stored, disk, spilled, tuned=tuned is not None)

    def _tuned(self, name: str, spec: TuneSpec) -> Stage:
        """The original once, then three passes' worth of arithmetic a step, the head's too, and the checks."""
        calibration = spec.calibration or self.chosen.compress.calibration
        assert calibration is not None  # the recipe is checked for it
        samples, length = spec.samples or calibration.samples, calibration.tokens
        seen = samples * spec.epochs * (3 + 1) + spec.validation * (spec.epochs * spec.checks + 1) + samples
        each = self.shape.forward(length, length**2) + 2 * self.shape.head * length
        rate = self.rates.products[spec.dtype]
        here = spec.dtype == "auto" and self.chosen.model.device == "cpu"  # of GPUs that aren't here nobody knows
        item = BYTES[quickest_dtype("cpu") if here else spec.dtype]
        inside = length * spec.batch * self.shape.kept(item, parameters=True)
        limit = int(self.chosen.compress.memory_gb * 1e9)
        states = (samples + spec.validation) * length * self.shape.hidden * item
        # Of each weight its code, what it is on the way to its scale, and itself; the original's head beside all else.
        # Weights that lie in their files as they are computed with are held as long as one of a file is.
        filed = self.stored.all >= self.shape.parameters * item
        weights = self.shape.linear * (1 + (3 if filed else 2) * item)
        weights += (self.shape.parameters - self.shape.linear) * item
        head = self.shape.vocabulary * self.shape.hidden * item
        memory = PYTHON_BYTES + weights + head + self.distilled + min(inside, limit)
        work = f"{samples * spec.epochs:,} samples of {length} tokens, {spec.validation} for validation"
        files = self.stored.sweeps() + Traffic(states, states)
        return Stage(f"tune {name}", work, seen * each / rate, memory + min(states, limit), 0, files)

    def _evaluation(self) -> Stage:
        passages, models = _joined(self._evaluated), len(self.chosen.all_variants) + 1
        each = self.forward(passages) + 3 * self.shape.head * passages.tokens
        states = passages.tokens * self.shape.hidden * 4
        work = f"{models} models on {passages.tokens:,} tokens"
        # The original's states and head, a variant and its states of one passage, and what is compared.
        memory = self.loaded(states + self.head + passages.longest * self.shape.hidden * self.item + self.compared)
        files = self.stored.sweeps() + Traffic(states + self._all_written, states)
        return Stage("evaluation", work, models * each / self.rate, memory, states, files, passages.most)

    def _benchmarks(self) -> Iterator[Stage]:
        spec = self.chosen.evaluate
        if spec is None or not spec.benchmarks or not self.chosen.all_variants:
            return
        outputs, variants = sum(spec.outputs().values()), len(self.chosen.answering)
        for name in spec.servers:
            longest = outputs * spec.max_new_tokens
            work = f"{outputs:,} outputs, at most {longest:,} tokens, by a server"
            yield Stage(f"benchmarks {name}", work, None, PYTHON_BYTES, longest * 5, Traffic(0, longest * 5))
        if not variants:
            return
        if spec.protocol == "likelihood":
            tokens = outputs * _QUESTION
            seen = Used("evaluate", "", outputs, tokens, tokens * _QUESTION, _QUESTION, False)
            work = f"{outputs * variants:,} questions"
            yield Stage("likelihood", work, variants * self.forward(seen) / self.rate, self.loaded(self.compared))
            return
        tokens = outputs * spec.max_new_tokens * variants
        batch = spec.engine.batch
        seconds = decoding(tokens, self.shape.parameters, batch, self.rates)
        work = f"{outputs * variants:,} outputs, at most {tokens:,} tokens"
        files = self.stored.sweeps() + Traffic(self._all_written, tokens * 5)
        if spec.engine.kind != "transformers":
            yield Stage("benchmarks", work, None, PYTHON_BYTES + self.weights, tokens * 5, files)
            return
        cache = self.shape.keys_values(batch * spec.max_new_tokens, self.item)
        yield Stage("benchmarks", work, seconds, self.loaded(cache), tokens * 5, files, most=True)


def _joined(parts: list[Used]) -> Used:
    """Several sources as one."""
    return Used(
        "evaluate",
        "",
        sum(each.items for each in parts),
        sum(each.tokens for each in parts),
        sum(each.squares for each in parts),
        max((each.longest for each in parts), default=0),
        all(each.exact for each in parts),
        most=any(each.most for each in parts),
    )
