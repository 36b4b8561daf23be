"""The attribute stage: spans of traces and a model in, importance of every linear module out.

Folder: ``traces/*.safetensors`` (statistics, one file per trace: what a killed run continues from),
``steering.safetensors``, ``importance.json`` and one ``importance_<preset>.json`` for each preset compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

from mixprec import artifacts, modules
from mixprec.errors import UserError
from mixprec.importance import scores, statistics
from mixprec.importance.engine import Layout, run_trace
from mixprec.importance.options import AttributionOptions, Preset
from mixprec.importance.windows import Work, plan_work
from mixprec.models import LoadedModel
from mixprec.progress import bar
from mixprec.traces.spans import AnnotatedTrace, token_spans
from mixprec.traces.store import BEHAVIOURS

_TOP = 10


def attribute(
    loaded: LoadedModel,
    traces: Sequence[AnnotatedTrace],
    out: Path,
    *,
    presets: Sequence[Preset],
    identity: str,
    max_tokens: int | None = None,
) -> dict[str, Any]:
    """Compute importance under every preset in one pass over the traces; the first preset is the main one.

    ``identity`` names the model in the fingerprints. Traces longer than ``max_tokens`` (default: the model's
    context) are cut there, and the spans behind are counted as skipped. Returns the main importance artifact.
    Raises UserError where no trace has a span of a scored behaviour.
    """
    options: dict[str, AttributionOptions] = {preset: AttributionOptions.of(preset) for preset in presets}
    layout = Layout.of_linears(loaded.linears)
    limit = min(max_tokens or loaded.context, loaded.context)
    paths = statistics.paths(out / "traces", len(traces))
    skipped = _run_traces(loaded, traces, paths, layout, options, limit, identity)
    artifacts_by_preset = {}
    for preset in presets:
        result, means = scores.score(paths, preset, layout.slices, options[preset])
        if not means.spans.sum():
            raise UserError(
                f"no span of {', '.join(BEHAVIOURS)} in {len(traces)} traces (skipped: {dict(skipped[preset])}); "
                "annotate them first: mixprec annotate --help"
            )
        artifacts_by_preset[preset] = _artifact(preset, options[preset], layout, result, means, len(traces)) | {
            "skipped": dict(sorted(skipped[preset].items())),
            "cut_traces": skipped["cut"]["cut"],
            "provenance": artifacts.provenance(model=identity, max_tokens=limit),
        }
        if preset == presets[0]:
            vectors = {
                f"{behaviour}/{name}": result.steering[row, where].float()
                for row, behaviour in enumerate(BEHAVIOURS)
                for name, where in layout.slices.items()
            }
            artifacts.save_tensors(out / "steering.safetensors", vectors, {"preset": preset, "model": identity})
    main = artifacts_by_preset[presets[0]]
    for preset in presets[1:]:
        artifacts.write_json(out / f"importance_{preset}.json", artifacts_by_preset[preset])
        main |= {"compared_preset": preset, "comparison": compare(main, artifacts_by_preset[preset])}
    artifacts.write_json(out / "importance.json", main)
    return main


def _run_traces(
    loaded: LoadedModel,
    traces: Sequence[AnnotatedTrace],
    paths: Sequence[Path],
    layout: Layout,
    options: Mapping[str, AttributionOptions],
    limit: int,
    identity: str,
) -> dict[str, Counter[str]]:
    """Make the statistics file of every trace that has none yet; returns skipped spans per preset, by reason."""
    skipped: dict[str, Counter[str]] = {name: Counter() for name in (*options, "cut")}
    settings = {name: option.model_dump() for name, option in options.items()}
    encoded = [_encode(loaded, trace, limit) for trace in traces]
    with bar("attribute", sum(len(ids) for ids, _, _ in encoded), "tokens") as advance:
        for trace, path, (ids, offsets, cut) in zip(traces, paths, encoded, strict=True):
            spans, missed = token_spans(trace.spans, offsets, limit)
            works = {name: plan_work(spans, BEHAVIOURS, len(ids), option) for name, option in options.items()}
            for name, work in works.items():
                skipped[name].update(trace.skipped)
                skipped[name].update(missed)
                skipped[name].update(work.skipped)
            skipped["cut"]["cut"] += cut
            stamp = artifacts.fingerprint(identity, settings, ids.tolist(), [list(span) for span in spans])
            if not statistics.is_done(path, stamp):
                _run_trace(loaded, layout, ids, works, options, path, stamp)
            advance(len(ids))
    return skipped


def _run_trace(
    loaded: LoadedModel,
    layout: Layout,
    ids: torch.Tensor,
    works: Mapping[str, Work],
    options: Mapping[str, AttributionOptions],
    path: Path,
    stamp: str,
) -> None:
    rows = torch.cat([torch.ones(1, len(ids)), *(work.rows for work in works.values())])
    windows = [window for work in works.values() for window in work.windows]
    result = run_trace(loaded.model, layout, ids, rows, windows)
    statistics.save(path, statistics.collect(works, options, result, len(ids)), stamp)


def _encode(loaded: LoadedModel, trace: AnnotatedTrace, limit: int) -> tuple[torch.Tensor, list[tuple[int, int]], int]:
    """Token ids (T,) cut at ``limit``, the character offsets of all tokens, and 1 if the trace was cut."""
    encoded = loaded.tokenizer(trace.trace.text, return_offsets_mapping=True, verbose=False)
    ids = encoded["input_ids"]
    if len(ids) < 2:
        raise UserError(f"trace {trace.trace.id}: {len(ids)} tokens; a trace needs at least two")
    return torch.tensor(ids[:limit]), encoded["offset_mapping"], int(len(ids) > limit)


def _artifact(
    preset: str,
    options: AttributionOptions,
    layout: Layout,
    result: scores.Scores,
    means: scores.Means,
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
            }
            for row, behaviour in enumerate(BEHAVIOURS)
        },
    }


def _module_row(address: str) -> dict[str, Any]:
    layer, kind = modules.parse_address(address)
    return {"address": address, "label": f"{layer}_{kind}", "layer": layer, "kind": kind}


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """How two importance artifacts rank the same modules: per behaviour Spearman's rho and the top ten's overlap."""
    result: dict[str, dict[str, float | None]] = {}
    for behaviour, one in first["behaviours"].items():
        one, other = one["scores"], second["behaviours"][behaviour]["scores"]
        if max(one) == 0 or max(other) == 0:
            result[behaviour] = {"spearman": None, "top10_overlap": None}
            continue
        best = [set(sorted(range(len(s)), key=lambda i: -s[i])[:_TOP]) for s in (one, other)]
        result[behaviour] = {
            "spearman": float(spearmanr(one, other).statistic),
            "top10_overlap": len(best[0] & best[1]),
        }
    return result
