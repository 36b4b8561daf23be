"""The attribute stage: spans of traces and a model in, importance of every linear module out.

Folder: ``traces/*.safetensors`` (statistics, one file per trace: what a killed run continues from),
``steering.safetensors``, ``importance.json`` and one ``importance_<preset>.json`` for each preset compared. What is
beyond linear modules lies in the same files with ``_beyond`` in their names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mixprec.core import artifacts, processes
from mixprec.core.errors import UserError
from mixprec.core.progress import bar
from mixprec.importance import artifact, bootstrap, passes, paths, scores, statistics
from mixprec.importance.engine import Layout
from mixprec.importance.options import RESAMPLES, AttributionOptions, Preset
from mixprec.models.labels import label_of, parse_address
from mixprec.models.load import LoadedModel
from mixprec.models.weights import outputs_of
from mixprec.traces.spans import AnnotatedTrace
from mixprec.traces.store import BEHAVIOURS
from mixprec.walk.blocks import Blocks, Live


class _Reduction(NamedTuple):
    """What artifacts depend on besides the traces' statistics."""

    options: Mapping[str, AttributionOptions]
    skipped: Mapping[str, Counter[str]]
    identity: str
    limit: int
    resamples: int
    path: paths.Path


def attribute(
    loaded: LoadedModel,
    traces: Sequence[AnnotatedTrace],
    out: Path,
    *,
    presets: Sequence[Preset],
    identity: str,
    max_tokens: int | None = None,
    resamples: int = RESAMPLES,
    beyond_linear: bool = False,
) -> dict[str, Any]:
    """Compute importance under every preset in one pass over the traces; the first preset is the main one.

    ``identity`` names the model in the fingerprints. Traces longer than ``max_tokens`` (default: the model's
    context) are cut there, and the spans behind are counted as skipped. Intervals come from so many bootstrap
    ``resamples`` of the traces; 0 gives none. ``beyond_linear``: embeddings, norms and logits too, in files of their
    own. Returns the main importance artifact, whose provenance says which path the model takes (paths.py).
    Under ``accelerate launch`` all processes call it, share the traces, and the main one writes the artifacts.
    Raises UserError where no trace has a span of a scored behaviour, and for a streamed model whose spans can't be
    packed.
    """
    path = paths.path_of(loaded if isinstance(loaded, Blocks) else Live(loaded.model)).path
    options: dict[str, AttributionOptions] = {preset: AttributionOptions.of(preset) for preset in presets}
    layouts = {"": Layout.of_linears(loaded.linears)}
    if beyond_linear:
        layouts["_beyond"] = Layout.of_outputs(outputs_of(loaded.model))
    limit = min(max_tokens or loaded.context, loaded.context)
    files = {suffix: statistics.paths(out / f"traces{suffix}", len(traces)) for suffix in layouts}
    tasks, skipped = passes.plan(loaded, traces, list(zip(*files.values(), strict=True)), options, limit, identity)
    passes.run(loaded, list(layouts.values()), options, tasks)
    if processes.is_main():
        reduction = _Reduction(options, skipped, identity, limit, resamples, path)
        for suffix, layout in layouts.items():
            _reduce(out, suffix, layout, files[suffix], reduction)
    processes.wait()
    return artifacts.read_object(out / "importance.json")


def _reduce(out: Path, suffix: str, layout: Layout, files: Sequence[Path], reduction: _Reduction) -> None:
    """Write the artifacts of one layout from its statistics; ``suffix`` marks their names."""
    artifacts_by_preset = {}
    first, *compared = reduction.options
    for preset, options in reduction.options.items():
        result, means = scores.score(files, preset, layout.slices, options)
        if not means.spans.sum():
            raise UserError(
                f"no span of {', '.join(BEHAVIOURS)} in {len(files)} traces (skipped: "
                f"{dict(reduction.skipped[preset])}); annotate them with "
                "mixprec annotate, or raise max_tokens where spans lie beyond it"
            )
        with bar(f"intervals, {preset}", len(layout.slices), "modules") as advance:
            spread = bootstrap.intervals(
                files, preset, layout.slices, options, result.importance, reduction.resamples, advance
            )
        artifacts_by_preset[preset] = _artifact(preset, options, layout, result, means, spread, len(files)) | {
            "resamples": reduction.resamples,
            "skipped": dict(sorted(reduction.skipped[preset].items())),
            "cut_traces": reduction.skipped["cut"]["cut"],
            "provenance": artifacts.provenance(
                model=reduction.identity, max_tokens=reduction.limit, attribution=reduction.path
            ),
        }
        if preset == first:
            vectors = {
                f"{behaviour}/{name}": result.steering[row, where].float()
                for row, behaviour in enumerate(BEHAVIOURS)
                for name, where in layout.slices.items()
            }
            metadata = {"preset": preset, "model": reduction.identity}
            artifacts.save_tensors(out / f"steering{suffix}.safetensors", vectors, metadata)
    main = artifacts_by_preset[first]
    for preset in compared:
        artifacts.write_json(out / f"importance{suffix}_{preset}.json", artifacts_by_preset[preset])
        main |= {"compared_preset": preset, "comparison": artifact.compare(main, artifacts_by_preset[preset])}
    artifacts.write_json(out / f"importance{suffix}.json", main)


def _artifact(
    preset: str,
    options: AttributionOptions,
    layout: Layout,
    result: scores.Scores,
    means: scores.Means,
    spread: Sequence[Mapping[str, Any]],
    traces: int,
) -> dict[str, Any]:
    return {
        "schema_version": artifacts.SCHEMA_VERSION,
        "preset": preset,
        "options": options.model_dump(),
        "traces": traces,
        "modules": [_module_row(address) for address in layout.slices],
        "behaviours": {
            behaviour: {
                "traces": int(means.traces_with[row]),
                "spans": int(means.spans[row]),
                "tokens": int(means.positions[row]),
                "scores": result.importance[row].tolist(),
                **spread[row],
            }
            for row, behaviour in enumerate(BEHAVIOURS)
        },
    }


def _module_row(address: str) -> dict[str, Any]:
    layer, kind = parse_address(address)
    return {"address": address, "label": label_of(address), "layer": layer, "kind": kind}
