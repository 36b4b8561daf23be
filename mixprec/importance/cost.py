"""What attribution costs, from the model's configuration alone, beside the algorithm that the paper's authors released.

The released code (GitHub psunlpgroup/Compression-Effects, compute_attpatching.py) goes forward and backward through
the whole prefix for every span, with every parameter's gradient and every linear module's output and its gradient
kept. Counted are matrix products, two operations per multiplication and addition, and of memory what lives through a
pass: no allocator's waste, no workspace of a kernel. Attention counts as full attention where windows slide.
"""

from __future__ import annotations

from typing import NamedTuple

from transformers import PretrainedConfig

from mixprec.core.devices import dtype_of
from mixprec.importance.engine import BATCH_TOKENS, CHUNK_TOKENS, HEAD_TOKENS
from mixprec.importance.paths import Path
from mixprec.importance.probing import why_not_by_shapes
from mixprec.models.maps import decoder_of

_BEHAVIOURS = 4
_FLOAT32 = 4


class Corpus(NamedTuple):
    """What costs depend on. tokens: of all traces, ``squares`` the sum of their squares; longest: of one trace.

    spans: number of windows. positions: computed in them. reach: sum over these of the tokens before their window.
    ends: sum over windows of the tokens up to their end, ``end_squares`` the sum of the squares.
    """

    traces: int
    tokens: int
    squares: int
    longest: int
    spans: int
    positions: int
    reach: int
    ends: int
    end_squares: int


#: The paper's 120 traces, four behaviours, preset paper, counted by SmolLM2's tokenizer (docs/importance.md).
PAPER_CORPUS = Corpus(120, 815_115, 21_252_554_053, 45_179, 2_593, 67_788, 275_911_169, 10_983_552, 94_979_795_640)


class Memory(NamedTuple):
    """Bytes. ``keys_values``: of one trace; ``gradients``: of parameters; ``activations``: those that autograd keeps
    and, of the released code, modules' outputs with their gradients; ``logits`` and what is as large."""

    weights: int
    keys_values: int
    gradients: int
    activations: int
    logits: int
    sums: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


class Shape(NamedTuple):
    """A decoder's sizes. ``linear``: weights of the linear modules in its blocks, ``active``: those that a token meets,
    of experts a share; ``outputs``: the sum of their output sizes; ``parameters``: all of them, tied ones once;
    ``query``, ``key``: outputs of one block's q and k."""

    layers: int
    hidden: int
    intermediate: int
    query: int
    key: int
    vocabulary: int
    linear: int
    outputs: int
    parameters: int
    active: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> Shape:
        """Read off a configuration. Raises UserError for an unsupported architecture."""
        decoder = decoder_of(config)
        sizes, linears = decoder.sizes, decoder.linears
        linear = sum(module.weights for module in linears)
        return cls(
            layers=decoder.layers,
            hidden=sizes.hidden,
            intermediate=sizes.intermediate,
            query=sizes.query,
            key=sizes.key,
            vocabulary=sizes.vocabulary,
            linear=linear,
            outputs=sum(module.out_features for module in linears),
            parameters=decoder.parameters,
            active=round(sum(module.weights * decoder.active(module) for module in linears)),
        )

    @property
    def head(self) -> int:
        """Operations of the head for one token."""
        return 2 * self.hidden * self.vocabulary

    @property
    def pair(self) -> int:
        """Operations of attention for one query and one key, all blocks: score and weighted sum."""
        return 4 * self.layers * self.query

    def forward(self, tokens: int, squares: int) -> int:
        """Operations of a forward pass without logits; ``squares``: of each trace's tokens, summed."""
        return 2 * self.active * tokens + self.pair * (squares + tokens) // 2

    def keys_values(self, tokens: int, itemsize: int) -> int:
        """Bytes of the keys and values of so many tokens."""
        return 2 * self.layers * self.key * tokens * itemsize

    def kept(self, itemsize: int, *, parameters: bool) -> int:
        """Bytes that autograd keeps for one position, for gradients of activations only or of ``parameters`` too.

        Two norms' inputs (and the last norm's) in float32; queries, keys, values and attention's output; what enters
        the activation function, what leaves it, and what it is multiplied with. For weights also every linear
        module's input.
        """
        norms = 2 * self.hidden * _FLOAT32
        elements = 2 * self.query + 2 * self.key + 3 * self.intermediate
        if parameters:
            elements += 2 * self.hidden + self.intermediate
            norms *= 2  # what the norm's weight is multiplied with
        return self.layers * (norms + elements * itemsize) + self.hidden * _FLOAT32


def forward_flops(shape: Shape, corpus: Corpus) -> int:
    """A plain forward pass over the corpus, logits of all tokens included."""
    return shape.forward(corpus.tokens, corpus.squares) + shape.head * corpus.tokens


def our_flops(shape: Shape, corpus: Corpus) -> int:
    """One pass over every trace without logits, then every span's positions forward and backward behind its prefix.

    Backward to activations takes two operations for two of a linear module, and six for four of attention to keys that
    need no gradient.
    """
    return shape.forward(corpus.tokens, corpus.squares) + _behind_prefixes(shape, corpus)


def _behind_prefixes(shape: Shape, corpus: Corpus) -> int:
    """Every span's positions forward and backward, what is before them being constant."""
    return (4 * shape.active + 2 * shape.head) * corpus.positions + shape.pair * corpus.reach * 5 // 2


def generic_flops(shape: Shape, corpus: Corpus, path: Path) -> int:
    """Where spans aren't packed (paths.py): a pass over every trace for its means, then each span by itself.

    ``cached``: the trace once more, into a cache that spans go behind in order; ``stepwise``: every span's prefix
    anew; ``whole``: forward and backward through all up to the span's end, weights without gradients.
    """
    means = shape.forward(corpus.tokens, corpus.squares)
    if path == "whole":
        linear = (4 * shape.active) * corpus.ends + 2 * shape.head * corpus.positions
        return means + linear + shape.pair * (corpus.end_squares + corpus.ends) // 2 * 7 // 2
    prefixes = means if path == "cached" else shape.forward(corpus.ends, corpus.end_squares)
    return means + prefixes + _behind_prefixes(shape, corpus)


def released_flops(shape: Shape, corpus: Corpus) -> int:
    """One forward pass per trace for the means; for every span forward and backward over all up to its end.

    Backward to weights and activations takes four operations for two of a linear module.
    """
    linear = 3 * (2 * shape.active + shape.head) * corpus.ends
    attention = shape.pair * (corpus.end_squares + corpus.ends) // 2 * 7 // 2
    return forward_flops(shape, corpus) + linear + attention


def our_memory(shape: Shape, tokens: int, itemsize: int, presets: int = 1) -> Memory:
    """While a trace of so many tokens is attributed."""
    chunk = CHUNK_TOKENS * (4 * shape.hidden + 3 * shape.intermediate) * itemsize
    return Memory(
        weights=shape.parameters * itemsize,
        keys_values=shape.keys_values(tokens, itemsize),
        gradients=0,
        activations=max(chunk, BATCH_TOKENS * shape.kept(itemsize, parameters=False)),
        logits=HEAD_TOKENS * shape.vocabulary * (itemsize + _FLOAT32),
        sums=(1 + presets * _BEHAVIOURS) * shape.outputs * _FLOAT32,
    )


def generic_memory(shape: Shape, tokens: int, itemsize: int, path: Path, presets: int = 1) -> Memory:
    """As ``our_memory`` where spans aren't packed: a trace goes through the model in one piece, and a span, taken to be
    as long as a packed batch, behind a copy of its cache. Keys and values are counted for every block; states of
    recurrences and convolutions, which don't grow with a trace, are not."""
    ours = our_memory(shape, tokens, itemsize, presets)
    piece = tokens * (4 * shape.hidden + 3 * shape.intermediate) * itemsize
    positions = tokens if path == "whole" else BATCH_TOKENS
    return ours._replace(
        keys_values=0 if path == "whole" else 2 * ours.keys_values,
        activations=max(piece, positions * shape.kept(itemsize, parameters=False)),
    )


def released_memory(shape: Shape, tokens: int, itemsize: int) -> Memory:
    """While a span that ends at so many tokens is attributed by the released code."""
    # Every output has a gradient; those of v, gate and up are kept by autograd anyway.
    outputs = (2 * shape.outputs - shape.layers * (shape.key + 2 * shape.intermediate)) * itemsize
    return Memory(
        weights=shape.parameters * itemsize,
        keys_values=0,  # part of what autograd keeps
        gradients=shape.parameters * itemsize,
        activations=tokens * (shape.kept(itemsize, parameters=True) + outputs),
        # Logits, their float32 copy, its log-softmax and gradient.
        logits=tokens * shape.vocabulary * (itemsize + 3 * _FLOAT32),
        sums=0,
    )


class Cost(NamedTuple):
    """Of one model: ``tokens`` of the trace that memory is for, and FLOPs of a corpus, on the ``path`` that its
    attribution takes as far as its configuration tells; ``why`` that isn't the packed one, where it isn't."""

    model: str
    dtype: str
    tokens: int
    ours: Memory
    released: Memory
    forward: int
    our_flops: int
    released_flops: int
    path: Path = "packed"
    why: str = ""


def cost(config: PretrainedConfig, dtype: str, tokens: int, presets: int = 1, corpus: Corpus = PAPER_CORPUS) -> Cost:
    """Memory for one trace of so many tokens, and FLOPs for a corpus.

    What isn't packed is taken for ``cached``: whether a model can be continued behind its cache is seen when it runs.
    Raises UserError for an unsupported architecture or dtype.
    """
    shape, itemsize = Shape.of(config), dtype_of(dtype).itemsize
    why = why_not_by_shapes(config)
    path: Path = "packed" if why is None else "cached"
    packed = path == "packed"
    return Cost(
        config.name_or_path,
        dtype,
        tokens,
        our_memory(shape, tokens, itemsize, presets)
        if packed
        else generic_memory(shape, tokens, itemsize, path, presets),
        released_memory(shape, tokens, itemsize),
        forward_flops(shape, corpus),
        our_flops(shape, corpus) if packed else generic_flops(shape, corpus, path),
        released_flops(shape, corpus),
        path,
        why or "",
    )
