"""What a recipe will take, stage by stage, by arithmetic: CPU seconds, memory, disk and what goes to it and comes from
it, and what they are spent on.

Times are operations over rates. The rates are those of one core of a 2-core AMD EPYC with float32 and bfloat16 products
in hardware, where the recipes' own times (recipes/README.md) were taken; the estimates stay within a factor of two of
these. Other processors differ by more. Memory is weights, states and logits, without an allocator's waste.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from mixprec.importance.cost import Corpus, Shape, generic_flops, generic_memory, our_flops, our_memory
from mixprec.importance.probing import why_not_by_shapes
from mixprec.models import conversion
from mixprec.models.decoder import Decoder, Linear
from mixprec.numerics.formats import Drop
from mixprec.pipeline import traffic
from mixprec.pipeline.checks import Checked
from mixprec.pipeline.traffic import Traffic
from mixprec.pipeline.usage import Used, used
from mixprec.plan import bits
from mixprec.plan.methods import METHODS, Pace, guidable, needing_inputs, using_inputs
from mixprec.plan.schema import Plan, Treatment
from mixprec.recipe import Recipe
from mixprec.report.formatting import plural
from mixprec.sensitivity.sets import cells_of
from mixprec.sensitivity.spec import GRADIENT, TOGETHER
from mixprec.tune.blockoptions import TuneBlocks
from mixprec.tune.options import TuneSpec
from mixprec.walk.options import numbers_inside

#: Operations a second of matrix products.
RATES = {"float32": 1.0e11, "bfloat16": 1.9e11, "float16": 1.0e11, "auto": 1.0e11}
#: ``auto`` may be either: the one that takes more.
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 4}
#: Python with its libraries; files of a finished run beside checkpoints and tensors.
_PYTHON_BYTES, _PAGES_BYTES = 600_000_000, 10_000_000
#: Importing, reading files and drawing the report.
_AROUND_SECONDS = 25.0
#: Seconds of a solve that goes column by column: for each column, and for each weight.
_COLUMN_SECONDS, _COLUMN_WEIGHT_SECONDS = 1.2e-4, 1.2e-7
#: Products with the Hessian that a round of descent takes.
_ROUND_PRODUCTS = 5
#: Forward passes that a step of tuning takes: one, two back, and rounding.
_STEP_PASSES = 4
#: Bytes beside each weight of a block that is tuned: what it was, its position, gradients, and the best so far.
_TUNED_BYTES = 24
#: Bytes of a checkpoint that are read, written and hashed in a second.
_DISK_RATE = 4.0e8
#: Seconds of a step of decoding for each parameter, and for each parameter and row.
_STEP_SECONDS, _ROW_SECONDS = 8.0e-10, 1.2e-10
#: Samples that guidance takes through the model at once.
_GUIDED_TOGETHER = 8
#: Tokens whose logits are in memory at once, in float32, with those of the original beside them.
_LOGIT_TOKENS = 1024


#: Tokens of a benchmark's question on average, its answers included.
_QUESTION = 300


class Stage(NamedTuple):
    """``work``: what is done, in words. ``seconds`` of one core; None where that isn't known (a GPU, another engine).
    ``memory``: bytes; ``disk``: bytes that stay there; ``traffic``: those that are read and written."""

    name: str
    work: str
    seconds: float | None
    memory: int
    disk: int = 0
    traffic: Traffic = Traffic()


@conversion.without_converting()
def stages(chosen: Recipe, found: Checked) -> list[Stage]:
    """The recipe's stages in their order, each as if none were done."""
    assert found.config is not None
    assert found.inventory is not None
    reckoning = _Reckoning(chosen, found, Shape.of(found.config), found.inventory)
    known, listed = chosen.model.device == "cpu", list(reckoning.all())
    if listed and found.model is not None and found.model.here is not None and found.model.commit is None:
        # Files that no commit names are hashed, once for all stages.
        listed[0] = listed[0]._replace(traffic=listed[0].traffic + Traffic(reckoning.stored.all))
    return [each if known else each._replace(seconds=None) for each in listed]


def total(listed: list[Stage]) -> Stage:
    """All stages: times and disk add up, memory is the largest; with what a run takes besides."""
    times = [each.seconds for each in listed]
    seconds = None if None in times else sum(time for time in times if time is not None) + _AROUND_SECONDS
    memory = max((each.memory for each in listed), default=_PYTHON_BYTES)
    traffic = sum((each.traffic for each in listed), Traffic(0, _PAGES_BYTES))
    return Stage("sum", "", seconds, memory, sum(each.disk for each in listed) + _PAGES_BYTES, traffic)


def candidate_bytes(chosen: Recipe, inventory: Decoder) -> int:
    """What all modules take in all formats that are solved for, as codes and grids."""
    formats = [treatment.format for treatment in chosen.candidates().values()]
    modules = (*inventory.linears, *scored_outside(chosen, inventory))
    return sum(bits.storage(module, format).bytes for format in formats for module in modules)


def scored_outside(chosen: Recipe, inventory: Decoder) -> list[Linear]:
    """The matrices outside the blocks that are scored."""
    names = chosen.sensitivity.outside if chosen.sensitivity is not None else ()
    return list(dict.fromkeys(inventory.outside_named[name] for name in names))


class _Reckoning:
    def __init__(self, chosen: Recipe, found: Checked, shape: Shape, inventory: Decoder) -> None:
        self.chosen, self.found, self.shape, self.inventory = chosen, found, shape, inventory
        self.used: dict[str, Used] = {each.key: each for each in used(chosen, found)}
        self.item, self.rate = _BYTES[chosen.model.dtype], RATES[chosen.model.dtype]
        self.weights = shape.parameters * self.item
        folder = None if found.model is None else found.model.here
        self.stored = traffic.stored(found.config, inventory, folder)
        self.logits = _LOGIT_TOKENS * shape.vocabulary * 8

    def all(self) -> Iterator[Stage]:
        if self.chosen.importance is not None and "traces" in self.used:
            yield self._importance(self.used["traces"])
        yield from self._guidance()
        solved = self._solved()
        if solved:
            yield self._candidates(solved)
        if self.chosen.sensitivity is not None:
            yield self._sensitivity(len(solved))
        if self.chosen.ablation is not None:
            yield self._ablation()
        yield from self._exchanges()
        yield from self._compressions()
        if self._evaluated and self.chosen.all_variants:
            yield self._evaluation()
        yield from self._benchmarks()

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

    def _forward(self, used: Used) -> float:
        """Operations of a pass through the blocks."""
        return self.shape.forward(used.tokens, used.squares)

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
        held = memory.total - (memory.weights if spec.stream else 0)
        sums = (1 + 4 * len(spec.presets)) * self.shape.outputs * 4
        what = plural(spans, "span") if spans else "a judge's spans"  # no more is known of those
        work = f"{what} in {plural(traces.items, 'trace')} of {traces.tokens:,} tokens"
        passes = (
            2 * math.ceil(traces.items * (memory.total - memory.weights) / (spec.sweep_gb * 1e9)) if spec.stream else 1
        )
        files = self.stored.sweeps(passes, 2 * sums)
        return Stage("importance", work, work_done / self.rate, held + _PYTHON_BYTES, 2 * sums, files)

    def _solved(self) -> list[Treatment]:
        """What every module is solved for, for sensitivity, ablation and exchanges; zeros cost nothing."""
        return [each for each in self.chosen.candidates().values() if not isinstance(each.format, Drop)]

    @property
    def _outside(self) -> list[Linear]:
        return scored_outside(self.chosen, self.inventory)

    def _candidates(self, solved: list[Treatment]) -> Stage:
        linears = (*self.inventory.linears, *self._outside)
        seconds = self._gather() + sum(self._one(module, each.method) for each in solved for module in linears)
        work = f"{plural(len(linears), 'module')} in {plural(len(solved), 'format')}"
        disk = self._candidate_bytes
        files = self.stored.sweeps(written=disk)
        return Stage("candidates", work, seconds, self._block_memory(), disk, files)

    @cached_property
    def _candidate_bytes(self) -> int:
        return candidate_bytes(self.chosen, self.inventory)

    def _choosing(self, sweeps: float = 1.0) -> Traffic:
        """Of passes over the model and all candidates."""
        return self.stored.sweeps(sweeps) + Traffic(round(sweeps * self._candidate_bytes))

    def _gather(self, states: int = 2) -> float:
        """Seconds of calibration passes and of the inputs' second moments."""
        tokens = self.used.get("compress.calibration")
        if tokens is None:
            return 0.0
        moments = sum(2 * group[0].in_features ** 2 * tokens.tokens for group in self.inventory.groups)
        return (states * self._forward(tokens) + moments) / self.rate

    def _guidance(self) -> Iterator[Stage]:
        """Gradients of the calibration samples, once for all: states up, and down again with gradients."""
        spec, tokens = self.chosen.compress.guided, self.used.get("compress.calibration")
        if spec is None or tokens is None or not guidable(self.chosen.methods):
            return
        draws = spec.draws if spec.loss == "fisher" else 1
        work = (2 + draws) * self._forward(tokens) + (1 + draws) * self.shape.head * tokens.tokens
        states = (
            min(tokens.items, _GUIDED_TOGETHER) * self.shape.layers * tokens.longest * self.shape.hidden * self.item
        )
        memory = self._block_memory() + min(states, int(self.chosen.compress.memory_gb * 1e9)) + self.logits
        disk = len(self.inventory.linears) * tokens.tokens * spec.groups * 4
        files = self.stored.sweeps(2 * math.ceil(tokens.items / _GUIDED_TOGETHER), disk)
        yield Stage("guidance", f"gradients on {tokens.tokens:,} tokens", work / self.rate, memory, disk, files)

    def _one(self, module: Linear, method: str) -> float:
        """Seconds of one solve, and of the second moments that it has for itself."""
        pace, spec, tokens = METHODS[method].pace, self.chosen.compress.guided, self.used.get("compress.calibration")
        own = spec.groups if spec and guidable([method]) else 0
        moments = own * 2 * module.in_features**2 * (tokens.tokens if tokens else 0) / self.rate
        loops = module.in_features * max(own, 1) * _COLUMN_SECONDS
        columns = loops + module.weights * _COLUMN_WEIGHT_SECONDS
        product = module.weights * module.in_features / self.rate
        rounds = self.chosen.compress.descent if METHODS[method].descends else 0
        solved = pace.columns * columns + pace.products * product + pace.weight * module.weights
        return moments + solved + rounds * (columns + _ROUND_PRODUCTS * 2 * product)

    def _block_memory(self) -> int:
        """A block at a time: its weights, the second moments, the calibration's states and what they leave inside."""
        tokens = self.used.get("compress.calibration")
        count, limit = (tokens.tokens if tokens else 0) * self.item, int(self.chosen.compress.memory_gb * 1e9)
        states = min(2 * count * self.shape.hidden, limit) + min(count * numbers_inside(self.inventory.sizes), limit)
        block = self.shape.linear // self.shape.layers * 4 * 3 + 4 * self.inventory.widest_input**2 * 3
        outside = sum(self.inventory.other.values()) * self.item
        return _PYTHON_BYTES + outside + block + states

    def _sensitivity(self, candidates: int) -> Stage:
        spec, scored = self.chosen.sensitivity, self.used["sensitivity"]
        assert spec is not None
        if spec.scorer == "measured":
            cells = candidates * (len(self.inventory.linears) + len(self._outside))
            work = f"{cells:,} measurements on {scored.tokens:,} tokens"
            seconds = self._measure(cells, scored, spec.stride)
            return Stage("sensitivity", work, seconds, self._whole_memory(scored), 0, self._choosing())
        work = f"{plural(candidates, 'format')} on {plural(scored.items, 'passage')} of {scored.tokens:,} tokens"
        if not spec.solves:
            work = f"experts on {plural(scored.items, 'passage')} of {scored.tokens:,} tokens"
            return Stage("sensitivity", work, self._forward(scored) / self.rate, self._block_memory())
        if spec.scorer not in GRADIENT:
            seconds = self.shape.linear * candidates * Pace().weight
            return Stage("sensitivity", work, seconds, self._block_memory(), 0, self._choosing())
        rows = (1 + len(spec.behaviours)) * spec.draws
        passes = 4 + 2 * rows + 1.5 * candidates + (spec.at != "original")
        memory = self._block_memory() + self.shape.layers * scored.longest * self.shape.hidden * 4 + self.logits
        seconds = passes * self._forward(scored) / self.rate
        if self._outside:
            memory = max(memory, self._whole_memory(scored))
            seconds += 2 * self._measure(candidates * len(self._outside), scored, spec.stride)
        # Up and down for a few passages together, and once more for errors.
        files = self._choosing(1 + 2 * math.ceil(scored.items / TOGETHER))
        return Stage("sensitivity", work, seconds, memory, 0, files)

    def _measure(self, cells: int, passages: Used, stride: int) -> float:
        """Seconds of restarts, half-way up on average, with the head on every so many-th token."""
        head = 3 * self.shape.head * passages.tokens / stride
        return cells * (self._forward(passages) / 2 + head) / self.rate

    def _whole_memory(self, passages: Used, models: int = 1) -> int:
        """A model, the states before each of its blocks, and logits."""
        states = self.shape.layers * passages.tokens * self.shape.hidden * self.item
        return _PYTHON_BYTES + models * self.weights + states + self.logits

    def _ablation(self) -> Stage:
        spec = self.chosen.ablation
        assert spec is not None
        cells, passages = len(cells_of(spec, self.inventory)) + 1, _joined(self._evaluated)
        work = f"{cells:,} measurements on {passages.tokens:,} tokens"
        seconds = self._measure(cells, passages, spec.stride)
        return Stage("ablation", work, seconds, self._whole_memory(passages), 0, self._choosing())

    def _exchanges(self) -> Iterator[Stage]:
        for name, variant in self.chosen.all_variants.items():
            exchange = variant.plan.budget.exchange if variant.plan.budget else None
            if exchange is None or "sensitivity" not in self.used:
                continue
            scored = self.used["sensitivity"]
            share = exchange.samples / max(scored.items, 1)
            each = (self._forward(scored) + 3 * self.shape.head * scored.tokens / exchange.stride) * share
            work = f"at most {exchange.proposals} plans on {round(scored.tokens * share):,} tokens"
            seconds = exchange.proposals * each / self.rate
            yield Stage(f"exchange {name}", work, seconds, self._whole_memory(scored), 0, self._choosing())

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
            seconds = None if engine != "mixprec" else self._compress(plan, method, tuned) + disk / _DISK_RATE
            work += "" if engine == "mixprec" else f", {engine}"
            work += f", {plural(tuned.steps, 'step')} in each block" if tuned else ""
            memory = self._block_memory() + (_TUNED_BYTES * self.shape.linear // self.shape.layers if tuned else 0)
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
        item, rate = _BYTES[spec.dtype], RATES[spec.dtype]
        inside = self.shape.layers * length * spec.batch * numbers_inside(self.inventory.sizes) * item
        limit = int(self.chosen.compress.memory_gb * 1e9)
        states = (samples + spec.validation) * length * self.shape.hidden * item
        memory = _PYTHON_BYTES + self.shape.parameters * (item + 2) + self.logits + min(inside, limit)
        work = f"{samples * spec.epochs:,} samples of {length} tokens, {spec.validation} for validation"
        files = self.stored.sweeps() + Traffic(states, states)
        return Stage(f"tune {name}", work, seen * each / rate, memory + min(states, limit), 0, files)

    def _compress(self, plan: Plan | None, method: str, tuned: TuneBlocks | None) -> float:
        methods = {method} if plan is None else plan.methods  # without a plan like one that changes all modules
        looks = needing_inputs(methods) if self.chosen.compress.calibration is None else using_inputs(methods)
        passes = 3 if tuned or any(METHODS[name].needs.original_states for name in methods) else 2
        chosen = {module.address: method for module in self.inventory.linears}
        if plan is not None:
            chosen = {address: plan.treatments[address].method for address in plan.changed}
        solves = sum(self._one(module, chosen[module.address]) for module in self.inventory.planned(chosen))
        return (self._gather(passes) if looks or tuned else 0.0) + solves + self._steps(tuned)

    def _steps(self, options: TuneBlocks | None) -> float:
        """Seconds of tuning blocks."""
        tokens = self.used.get("compress.calibration")
        if options is None or tokens is None:
            return 0.0
        seen = options.steps * options.batch / tokens.items
        return _STEP_PASSES * seen * self._forward(tokens) / RATES[options.dtype]

    def _evaluation(self) -> Stage:
        passages, models = _joined(self._evaluated), len(self.chosen.all_variants) + 1
        each = self._forward(passages) + 3 * self.shape.head * passages.tokens
        states = passages.tokens * self.shape.hidden * 4
        work = f"{models} models on {passages.tokens:,} tokens"
        memory = (
            self._whole_memory(passages, 2) - (self.shape.layers - 1) * passages.tokens * self.shape.hidden * self.item
        )
        files = self.stored.sweeps() + Traffic(states + self._all_written, states)
        return Stage("evaluation", work, models * each / self.rate, memory, states, files)

    def _benchmarks(self) -> Iterator[Stage]:
        spec = self.chosen.evaluate
        if spec is None or not spec.benchmarks or not self.chosen.all_variants:
            return
        outputs, variants = sum(spec.outputs().values()), len(self.chosen.all_variants)
        if spec.protocol == "likelihood":
            tokens = outputs * _QUESTION
            seen = Used("evaluate", "", outputs, tokens, tokens * _QUESTION, _QUESTION, False)
            work = f"{outputs * variants:,} questions"
            yield Stage("likelihood", work, variants * self._forward(seen) / self.rate, _PYTHON_BYTES + self.weights)
            return
        tokens = outputs * spec.max_new_tokens * variants
        batch = spec.engine.batch
        seconds = tokens * self.shape.parameters * (_STEP_SECONDS / batch + _ROW_SECONDS)
        work = f"{outputs * variants:,} outputs, at most {tokens:,} tokens"
        files = self.stored.sweeps() + Traffic(self._all_written, tokens * 5)
        if spec.engine.kind != "transformers":
            yield Stage("benchmarks", work, None, _PYTHON_BYTES + self.weights, tokens * 5, files)
            return
        cache = self.shape.keys_values(batch * spec.max_new_tokens, self.item)
        yield Stage("benchmarks", work, seconds, _PYTHON_BYTES + self.weights + cache, tokens * 5, files)


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
    )
