"""Every variant compared with the original."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from torch import Tensor

from mixprec import recipe
from mixprec.core import artifacts
from mixprec.evaluate import fidelity, metrics, passages
from mixprec.models.head import Head
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
        encoder = run.original.encoder
        limit = min(self.spec.max_tokens or run.original.context, run.original.context)
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
        self.head = Head.of(run.original.model).apart()
        self.reference = self._reference()
        # From here on only the original's head is needed: its body's memory is for the variants.
        del run.__dict__["original"]
        gc.collect()

    def _reference(self) -> list[Tensor]:
        path = self.folder / "reference.safetensors"

        def make() -> None:
            states = fidelity.hidden_states(self.run.original, self.all, "original")
            artifacts.save_tensors(path, {f"{i:05d}": state.cpu() for i, state in enumerate(states)})

        self.run.stages.do("reference", self.stamp, [path], make)
        tensors, _ = artifacts.load_tensors(path)
        return [tensors[name] for name in sorted(tensors)]

    def evaluate(self, name: str, where: str, stamp: str, path: Path) -> dict[str, Any]:
        """The metrics of the model in ``where``, for the summary: over traces at the top, then text, behaviours."""

        def make() -> None:
            notes: tuple[str, ...] = ()
            if where == self.run.recipe.model.id:
                found = fidelity.compare(self.all, self.reference, self.head, self.reference, self.head)
            else:
                loaded = self.run.load(where)
                notes = loaded.notes
                hidden = fidelity.hidden_states(loaded, self.all, f"evaluate {name}")
                found = fidelity.compare(self.all, hidden, Head.of(loaded.model), self.reference, self.head)
            artifacts.write_json(path, metrics.evaluate_all(self.on_traces, self.on_text, found, notes))

        self.run.stages.do(f"evaluate/{name}", [self.stamp, stamp], [path], make)
        result = artifacts.read_json(path)
        main = result["traces"] or result["text"]
        return {**main, "text": result["text"], "behaviours": result["behaviours"]}
