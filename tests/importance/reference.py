"""Independent references: full backpropagation over the whole prefix, one window at a time, and tiny decoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from mixprec.core import artifacts
from mixprec.importance import streaming
from mixprec.importance.engine import Job, Layout, run_trace
from mixprec.importance.outputs import accumulation_dtype
from mixprec.importance.statistics import TraceStatistics
from mixprec.importance.windows import Window
from mixprec.models.weights import linears_of

TINY = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 7, "head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0},
    "gemma3_text": {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
}


def tiny_model(architecture: str, dtype: torch.dtype = torch.float64) -> Any:
    """A random decoder of 3 layers, hidden size 32, 4 heads on 2 key/value heads, 61 words."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        architecture,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=61,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **TINY[architecture],
    )
    # Eager attention has a float32 softmax even in a float64 model; only soft-capping needs it.
    config._attn_implementation = "eager" if architecture == "gemma2" else "sdpa"
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    if dtype == torch.float64:
        _use_exact_norms(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        # Random initial weights are so small that attention hardly matters; make it matter.
        if parameter.dim() == 2:
            parameter.mul_(6.0)
    return model


class _ExactNorm(nn.Module):
    """RMSNorm in the input's own dtype: transformers' goes through float32, which would hide errors below 1e-7."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.eps = getattr(norm, "variance_epsilon", None) or norm.eps
        self.weight = nn.Parameter(norm.weight.data + float("Gemma" in type(norm).__name__))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def _use_exact_norms(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _ExactNorm(module))


def layout_of(model: nn.Module) -> Layout:
    """The layout of all linear modules."""
    return Layout.of_linears(linears_of(model))


class InMemory:
    """Gradients (W, D) of all windows."""

    def __init__(self, model: Any, layout: Layout, job: Job) -> None:
        self._layout = layout
        self.rows = torch.zeros(len(job.windows), layout.size, dtype=accumulation_dtype(model))

    def add(self, windows: Tensor, found: Mapping[str, Tensor]) -> None:
        for name, gradients in found.items():
            assert len(set(windows.tolist())) == len(windows)
            self.rows[windows, self._layout.slices[name]] += gradients


class Found(NamedTuple):
    """row_sums (R, D), and gradients (W, D), a row for each window."""

    row_sums: Tensor
    gradients: Tensor


def attributed(model: Any, layout: Layout, tokens: Tensor, rows: Tensor, windows: Any, **sizes: int) -> Found:
    """One trace through the engine."""
    job = Job(tokens, rows, windows)
    found = InMemory(model, layout, job)
    return Found(run_trace(model, layout, job, found, **sizes), found.rows)


def swept(loaded: streaming.StreamedModel, layout: Layout, jobs: list[Job], **sizes: int) -> list[Found]:
    """Traces through the streaming engine, together."""
    found = [InMemory(loaded.model, layout, job) for job in jobs]
    sums = streaming.run_traces(loaded, layout, jobs, found, **sizes)
    return [Found(row_sums, each.rows) for row_sums, each in zip(sums, found, strict=True)]


def save_statistics(path: Path, statistics: TraceStatistics, stamp: str) -> None:
    """A trace's statistics written at once, as a plain safetensors file."""
    tensors = {"activations": statistics.activations}
    for name, preset in statistics.presets.items():
        tensors |= {f"{name}/{field}": tensor for field, tensor in preset._asdict().items()}
    artifacts.save_tensors(path, tensors, {"tokens": statistics.tokens, "stamp": stamp})


def full_backpropagation(model: Any, layout: Layout, tokens: Tensor, window: Window) -> Tensor:
    """(D,) gradient of the window's mean cross-entropy, mean over its positions, through the whole prefix."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        if not output.requires_grad:
            output.requires_grad_()  # the embeddings, where the graph begins
        output.retain_grad()
        outputs[name] = output

    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: keep(name, output))
        for name, module in layout.modules.items()
    ]
    embedded = model.get_input_embeddings()(tokens[None, : window.end]).requires_grad_()
    scores = model(inputs_embeds=embedded).logits[0]
    for handle in handles:
        handle.remove()
    first = max(window.start, 1)
    F.cross_entropy(scores[first - 1 : window.end - 1], tokens[first : window.end]).backward()
    return torch.cat([outputs[name].grad[0, window.start : window.end].mean(0) for name in layout.modules])


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """Largest difference over the reference's largest value."""
    return float((ours - reference).abs().max() / reference.abs().max())


def outputs_of(model: Any, layout: Layout, tokens: Tensor) -> dict[str, Tensor]:
    """Every module's output (T, d_out) over the trace, from one plain forward pass."""
    outputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: outputs.__setitem__(name, output[0]))
        for name, module in layout.modules.items()
    ]
    with torch.no_grad():
        model(tokens[None])
    for handle in handles:
        handle.remove()
    return outputs


def naive_importance(
    model: Any, layout: Layout, traces: list[tuple[Tensor, list[Any]]], behaviours: tuple[str, ...], preset: str
) -> dict[str, dict[str, float]]:
    """behaviour -> module -> I by plain loops, written from the paper's formulas and from the released code.

    ``traces``: (tokens, spans) with half-open token spans.
    """
    paper = preset == "paper"
    every = [(tokens, spans, outputs_of(model, layout, tokens)) for tokens, spans in traces]
    sums: dict[str, dict[str, Tensor]] = {behaviour: {} for behaviour in behaviours}
    counts = dict.fromkeys(behaviours, 0)
    for _, spans, outputs in every:
        for behaviour in behaviours:
            rows = []
            for span in spans:
                if span.behaviour != behaviour:
                    continue
                first = span.start - 5
                rows += list(range(max(first, 0), span.end)) if paper else list(range(first, span.end - 1))
            if not rows:
                continue
            counts[behaviour] += 1
            for name, output in outputs.items():
                mean = output[rows].mean(0)  # negative rows wrap, as in the released code
                sums[behaviour][name] = sums[behaviour].get(name, 0) + mean
    importance: dict[str, dict[str, float]] = {}
    for behaviour in behaviours:
        vectors = {}
        for name in layout.modules:
            total = sums[behaviour][name] if paper else sum(sums[each][name] for each in behaviours)
            overall = torch.cat([outputs[name] for _, _, outputs in every]).mean(0)
            mean_of_means = torch.stack([outputs[name].mean(0) for _, _, outputs in every]).mean(0)
            vector = total / counts[behaviour] - mean_of_means
            vectors[name] = vector * overall.norm() / vector.norm()
        scores = dict.fromkeys(layout.modules, 0.0)
        number = 0
        for tokens, spans, _ in every:
            for span in spans:
                if span.behaviour != behaviour:
                    continue
                number += 1
                window = Window(0, max(span.start - 5, 0), span.end) if paper else Window(0, span.start, span.end - 1)
                gradient = full_backpropagation(model, layout, tokens, window)
                for name, where in layout.slices.items():
                    product = float(vectors[name] @ gradient[where])
                    scores[name] += product if paper else abs(product)
        divisor = counts[behaviour] if paper else number
        importance[behaviour] = {name: abs(score) / divisor for name, score in scores.items()}
    return importance
