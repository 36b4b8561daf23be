"""import_traces: traces and annotations that other programs wrote."""

from __future__ import annotations

import functools
from pathlib import Path

from mixprec.api.checking import AnyModel, model_of
from mixprec.core import artifacts
from mixprec.core.arguments import typed
from mixprec.core.errors import UserError
from mixprec.evaluate.engines import templates
from mixprec.results.spans import Imported
from mixprec.traces import foreign, spans, store
from mixprec.traces.store import Trace


@typed()
def import_traces(
    source: str | Path,
    out: str | Path,
    *,
    traces: str | Path | None = None,
    by: str | None = None,
    text_key: str | None = None,
    model: AnyModel | None = None,
) -> Imported:
    """Read Label Studio's export (JSON, JSON-MIN) or inspect_ai's log (.eval, .json); writes ``out``.

    Label Studio: spans. ``traces``: those that were labelled, where tasks don't hold them whole; ``by``: the annotator
    who counts, where tasks have several; ``text_key``: the key of a task's data that was labelled. inspect_ai: traces,
    annotated where a sample's metadata, or a score's, has ``annotated``. ``model``: prompts are written in its chat
    template.

    Raises UserError for other files, and for labels that are not of the text that stands there.
    """
    known = store.load(str(traces)) if traces is not None else []
    template = None
    if model is not None:
        filling = model_of(model)
        templates.require(filling, "--model", "leave it out, and prompts are the messages' texts")
        template = functools.partial(templates.templated, filling.tokenizer)
    found = foreign.read(Path(source).expanduser(), foreign.Options(known, by, text_key, template))
    if not found.annotated and not found.traces:
        raise UserError(f"{source}: no trace in it; left out: {dict(found.left_out)}")
    path = Path(out)
    if found.annotated:
        spans.save_spans(path, found.annotated)
    else:
        artifacts.write_jsonl(path, map(_row, found.traces))
    return Imported(path, found.program, tuple(found.annotated), tuple(found.traces), dict(found.left_out), found.notes)


def _row(trace: Trace) -> dict[str, str]:
    row = {"id": store.local_id(trace.id, trace.dataset), "dataset": trace.dataset}
    row |= {"prompt": trace.prompt, "output": trace.output}
    return row | ({"annotated": trace.annotated} if trace.annotated is not None else {})
