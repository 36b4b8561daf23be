"""Every variant compared with the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from mixprec import recipe
from mixprec.core import artifacts
from mixprec.evaluate import RULES, fidelity, metrics, passages
from mixprec.models.head import Head
from mixprec.models.model import Model
from mixprec.pipeline.context import Context
from mixprec.traces import spans


class Evaluator:
    """Compares variants with the original; its final hidden states are computed once."""

    def __init__(self, run: Context) -> None:
        assert run.recipe.evaluate is not None
        self.run = run
        self.spec = run.recipe.evaluate
        self.folder = run.out / "evaluation"
        traces: list[spans.AnnotatedTrace] = []
        stamp = None
        if self.spec.traces:
            traces, stamp = run.annotate(self.spec.traces, self.folder / "spans.jsonl", "annotate/evaluation")
        original = run.model.load()
        encoder = original.encoder
        limit = min(self.spec.max_tokens or original.context, original.context)
        self.on_traces, skipped = passages.from_traces(traces, encoder, limit)
        self.on_text = []
        if self.spec.text:
            source = recipe.locate(self.spec.text, run.data)
            length = min(self.spec.text_tokens, limit)
            self.on_text = passages.from_text(source, encoder, length, self.spec.text_passages)
        self.all = [*self.on_traces, *self.on_text]
        self.described = {
            "traces": {"passages": len(self.on_traces), "tokens": passages.total_tokens(self.on_traces)},
            "text": {"passages": len(self.on_text), "tokens": passages.total_tokens(self.on_text)},
            "skipped": dict(sorted(skipped.items())),
        }
        texts = artifacts.fingerprint([passage.tokens.tolist() for passage in self.all])
        self.stamp = artifacts.fingerprint(run.computing, stamp, texts)
        self.head = Head.of(original.model).apart()
        self.reference = self._reference()

    def _reference(self) -> list[Tensor]:
        path = self.folder / "reference.safetensors"

        def make() -> None:
            states = fidelity.hidden_states(self.run.model.load(), self.all, "original")
            artifacts.save_tensors(path, {f"{i:05d}": state.cpu() for i, state in enumerate(states)})

        self.run.stages.do("reference", RULES, self.stamp, [path], make)
        tensors, _ = artifacts.load_tensors(path)
        return [tensors[name] for name in sorted(tensors)]

    def evaluate(self, name: str, model: Model, stamp: str, path: Path) -> dict[str, Any]:
        """The metrics of ``model``, for the summary: over traces at the top, then text, behaviours."""

        def make() -> None:
            notes: tuple[str, ...] = ()
            if model is self.run.model:
                found = fidelity.compare(self.all, self.reference, self.head, self.reference, self.head)
            else:
                loaded = model.load()
                notes = loaded.notes
                hidden = fidelity.hidden_states(loaded, self.all, f"evaluate {name}")
                found = fidelity.compare(self.all, hidden, Head.of(loaded.model), self.reference, self.head)
            artifacts.write_json(path, metrics.evaluate_all(self.on_traces, self.on_text, found, notes))

        self.run.stages.do(f"evaluate/{name}", RULES, [self.stamp, stamp], [path], make)
        result = artifacts.read_json(path)
        main = result["traces"] or result["text"]
        return {**main, "text": result["text"], "behaviours": result["behaviours"]}
