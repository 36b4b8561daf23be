"""Every variant compared with the original."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from mixprec.core import artifacts
from mixprec.evaluate import RULES, fidelity, metrics
from mixprec.evaluate.passages import Material, gather, total_tokens
from mixprec.models.encoding import Encoder
from mixprec.models.head import Head
from mixprec.models.model import Model
from mixprec.pipeline import shown
from mixprec.pipeline.context import Context
from mixprec.traces.spans import AnnotatedTrace


def material(run: Context, encoder: Encoder, context: int) -> tuple[Material, str | None]:
    """What the recipe evaluates on, and the fingerprint of its traces' spans, if there are any."""
    spec, stamp = run.recipe.evaluate, None
    assert spec is not None  # the recipe's checks see to it
    traces: list[AnnotatedTrace] = []
    if spec.traces:
        traces, stamp = run.annotate(spec.traces, run.out / "evaluation" / "spans.jsonl", "annotate/evaluation")
    text = run.locate(spec.text) if spec.text else None
    limits = spec.model_dump(include={"max_tokens", "text_tokens", "text_passages"})
    return gather(traces, text, encoder, context, **limits), stamp


class Evaluator:
    """Compares variants with the original; its final hidden states are computed once, and it is read when a stage that
    is not done needs it."""

    def __init__(self, run: Context) -> None:
        self.run = run
        self.material, stamp = material(run, run.model.encoder, run.model.context)
        self.all = self.material.all
        parts = {"traces": self.material.on_traces, "text": self.material.on_text}
        self.described: dict[str, Any] = {
            **{name: {"passages": len(found), "tokens": total_tokens(found)} for name, found in parts.items()},
            "skipped": dict(sorted(self.material.skipped.items())),
        }
        texts = artifacts.fingerprint([passage.tokens.tolist() for passage in self.all])
        # By these two a report knows whether the numbers of two runs can be compared.
        self.described |= {"texts": artifacts.fingerprint(stamp, texts), "rules": RULES}
        self.stamp = artifacts.fingerprint(run.computing, stamp, texts)
        self.path = run.out / "evaluation" / "reference.safetensors"
        run.stages.do("reference", RULES, self.stamp, [self.path], self._make_reference)

    def _make_reference(self) -> None:
        states = fidelity.hidden_states(self.run.model.load(), self.all, "original")
        artifacts.save_tensors(self.path, {f"{i:05d}": state.cpu() for i, state in enumerate(states)})
        self.head  # noqa: B018 (taken while the model is there)

    @cached_property
    def head(self) -> Head:
        """The original's head; its body's memory is for the variants."""
        found = Head.of(self.run.model.load().model).apart()
        self.run.model.release()
        return found

    @cached_property
    def reference(self) -> list[Tensor]:
        """The original's final hidden states on every passage."""
        tensors, _ = artifacts.load_tensors(self.path)
        return [tensors[name] for name in sorted(tensors)]

    def evaluate(self, name: str, model: Model, stamp: str, path: Path) -> dict[str, Any]:
        """The metrics of ``model``, for the summary: over traces at the top, then text, behaviours."""

        def make() -> None:
            notes: tuple[str, ...] = ()
            if model is self.run.model:
                found = fidelity.compare(self.all, self.reference, self.head, self.reference, self.head)
            else:
                head, reference = self.head, self.reference  # first: taking the head reads the original whole
                loaded = model.load()
                notes = loaded.notes
                hidden = fidelity.hidden_states(loaded, self.all, f"evaluate {name}")
                found = fidelity.compare(self.all, hidden, Head.of(loaded.model), reference, head)
            artifacts.write_json(path, metrics.evaluate_all(self.material, found, notes))
            traces = self.material.on_traces
            artifacts.write_text(single, json.dumps(shown.tokens(traces, found[: len(traces)])) + "\n")

        single = path.with_name("tokens.json")
        self.run.stages.do(f"evaluate/{name}", RULES, [self.stamp, stamp], [path, single], make)
        result = artifacts.read_json(path)
        main = result["traces"] or result["text"]
        return {**main, "text": result["text"], "behaviours": result["behaviours"]}
