"""What the parts of stages take: passes, solves, measurements, and what is in memory meanwhile.

Times are operations over rates (``rates``). With those of the processor where the recipes' own times were taken
(recipes/README.md) estimates stay within a factor of two of these; other machines differ by more. Memory is weights,
states and logits, without an allocator's waste; a model that is read whole has its files mapped meanwhile, which counts
as the process's memory too.
"""

from __future__ import annotations

from functools import cached_property

from mixprec.importance.cost import Shape
from mixprec.models.decoder import Decoder, Linear
from mixprec.numerics.divergence import CHUNK
from mixprec.pipeline import traffic
from mixprec.pipeline.checks import Checked
from mixprec.pipeline.rates import CPU, Rates
from mixprec.pipeline.traffic import Traffic
from mixprec.pipeline.usage import Used, used
from mixprec.plan import bits
from mixprec.plan.methods import METHODS, guidable, needing_inputs, using_inputs
from mixprec.plan.schema import Plan
from mixprec.recipe import Recipe
from mixprec.tune.blockoptions import TuneBlocks
from mixprec.walk.options import numbers_inside

#: ``auto`` may be either: the one that takes more.
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 4}
#: Python with its libraries.
PYTHON_BYTES = 550_000_000
#: Products with the Hessian that a round of descent takes.
_ROUND_PRODUCTS = 5
#: Forward passes that a step of tuning takes: one, two back, and rounding.
_STEP_PASSES = 4
#: Numbers in float32 for each token and word of a chunk whose predictions are compared: log-probabilities of both
#: models, their difference, and probabilities (numerics/divergence.py).
_COMPARED = 4
#: The same where a loss of them goes back: their gradients too, and draws or what is kept for the way back.
_DIFFERENTIATED = 7
#: Tokens of a chunk where gradients start at hidden states (walk/losses.py).
_LOSS_TOKENS = 64


def candidate_bytes(chosen: Recipe, inventory: Decoder) -> int:
    """What all modules take in all formats that are solved for, as codes and grids."""
    formats = [treatment.format for treatment in chosen.candidates().values()]
    modules = (*inventory.linears, *scored_outside(chosen, inventory))
    return sum(bits.storage(module, format).bytes for format in formats for module in modules)


def scored_outside(chosen: Recipe, inventory: Decoder) -> list[Linear]:
    """The matrices outside the blocks that are scored."""
    names = chosen.sensitivity.outside if chosen.sensitivity is not None else ()
    return list(dict.fromkeys(inventory.outside_named[name] for name in names))


class Reckoning:
    """What parts of a recipe's stages take."""

    def __init__(self, chosen: Recipe, found: Checked, shape: Shape, inventory: Decoder, rates: Rates = CPU) -> None:
        self.rates = rates
        self.chosen, self.found, self.shape, self.inventory = chosen, found, shape, inventory
        self.used: dict[str, Used] = {each.key: each for each in used(chosen, found)}
        self.item, self.rate = BYTES[chosen.model.dtype], rates.products[chosen.model.dtype]
        self.weights = shape.parameters * self.item
        folder = None if found.model is None else found.model.here
        self.stored = traffic.stored(found.config, inventory, folder)
        self.logits = _DIFFERENTIATED * _LOSS_TOKENS * shape.vocabulary * 4
        self.distilled = _DIFFERENTIATED * CHUNK * shape.vocabulary * 4
        self.compared = _COMPARED * CHUNK * shape.vocabulary * 4
        self.head = shape.vocabulary * shape.hidden * self.item
        #: Files that are mapped while a model is read whole into another type than theirs.
        self.mapped = self.stored.all if self.stored.all < self.weights else 0

    def forward(self, used: Used) -> float:
        """Operations of a pass through the blocks."""
        return self.shape.forward(used.tokens, used.squares)

    @property
    def outside(self) -> list[Linear]:
        return scored_outside(self.chosen, self.inventory)

    @cached_property
    def candidate_bytes(self) -> int:
        return candidate_bytes(self.chosen, self.inventory)

    def choosing(self, sweeps: float = 1.0) -> Traffic:
        """Of passes over the model and all candidates."""
        return self.stored.sweeps(sweeps) + Traffic(round(sweeps * self.candidate_bytes))

    def gather(self, states: int = 2) -> float:
        """Seconds of calibration passes and of the inputs' second moments."""
        tokens = self.used.get("compress.calibration")
        if tokens is None:
            return 0.0
        groups, seen = self.inventory.groups, tokens.tokens
        moments = sum(2 * group[0].in_features ** 2 * seen * self.inventory.active(group[0]) for group in groups)
        return states * self.forward(tokens) / self.rate + float(moments) / (self.rates.moments or self.rate)

    def solve(self, module: Linear, method: str) -> float:
        """Seconds of one solve, and of the second moments that it has for itself."""
        pace, spec, tokens = METHODS[method].pace, self.chosen.compress.guided, self.used.get("compress.calibration")
        own = spec.groups if spec and guidable([method]) else 0
        moments = own * 2 * module.in_features**2 * (tokens.tokens if tokens else 0) / self.rate
        loops = module.in_features * max(own, 1) * self.rates.column
        columns = loops + module.weights * self.rates.column_weight
        product = module.weights * module.in_features / self.rate
        rounds = self.chosen.compress.descent if METHODS[method].descends else 0
        solved = pace.columns * columns + pace.products * product + pace.weight * module.weights / self.rates.weight
        return moments + solved + rounds * (columns + _ROUND_PRODUCTS * 2 * product)

    def block_memory(self, calibrated: bool = True) -> int:
        """A block at a time: its weights, the second moments, the calibration's states and what they leave inside."""
        tokens = self.used.get("compress.calibration")
        count, limit = (tokens.tokens if tokens else 0) * self.item, int(self.chosen.compress.memory_gb * 1e9)
        states = min(2 * count * self.shape.hidden, limit) + min(count * numbers_inside(self.inventory.sizes), limit)
        # What it was, what it becomes, and what is read ahead; second moments are in float32.
        block = self.shape.linear // self.shape.layers * self.item * 3 + 4 * self.inventory.widest_input**2 * 3
        outside = sum(self.inventory.other.values()) * self.item
        return PYTHON_BYTES + outside + block + (states if calibrated else 0)

    def measure(self, cells: int, passages: Used, stride: int) -> float:
        """Seconds of restarts, half-way up on average, with the head on every so many-th token."""
        head = 3 * self.shape.head * passages.tokens / stride
        return cells * (self.forward(passages) / 2 + head) / self.rate

    def loaded(self, beside: int) -> int:
        """A whole model, and then what is ``beside`` it; while it is read its files are mapped."""
        return PYTHON_BYTES + self.weights + max(self.mapped, beside)

    def states(self, tokens: int) -> int:
        """Hidden states before each block."""
        return self.shape.layers * tokens * self.shape.hidden * self.item

    def whole_memory(self, passages: Used) -> int:
        """A model whose modules change one by one: states before each block, those behind a change, comparisons."""
        return self.loaded(2 * self.states(passages.tokens) + self.compared)

    def swept(self, seen: Used, together: int) -> int:
        """States before each block of so many passages ``together``, and gradients of their losses at the top."""
        return self.states(min(together, seen.items) * seen.longest) + self.logits

    def assembled_memory(self, measured: int, seen: Used, together: int) -> int:
        """A model of other weights for all modules, its own kept, on so many tokens; then gradients at these weights,
        block by block, for passages that were ``seen``, so many ``together``."""
        swept = self.block_memory(calibrated=False) - PYTHON_BYTES + self.swept(seen, together)
        return self.loaded(self.shape.linear * self.item + 2 * self.states(measured) + max(self.compared, swept))

    def compression(self, plan: Plan | None, method: str, tuned: TuneBlocks | None) -> float:
        methods = {method} if plan is None else plan.methods  # without a plan like one that changes all modules
        looks = needing_inputs(methods) if self.chosen.compress.calibration is None else using_inputs(methods)
        passes = 3 if tuned or any(METHODS[name].needs.original_states for name in methods) else 2
        chosen = {module.address: method for module in self.inventory.linears}
        if plan is not None:
            chosen = {address: plan.treatments[address].method for address in plan.changed}
        solves = sum(self.solve(module, chosen[module.address]) for module in self.inventory.planned(chosen))
        return (self.gather(passes) if looks or tuned else 0.0) + solves + self.steps(tuned)

    def steps(self, options: TuneBlocks | None) -> float:
        """Seconds of tuning blocks."""
        tokens = self.used.get("compress.calibration")
        if options is None or tokens is None:
            return 0.0
        seen = options.steps * options.batch / tokens.items
        return _STEP_PASSES * seen * self.forward(tokens) / self.rates.products[options.dtype]
