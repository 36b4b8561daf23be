"""How good a model is: evaluate, bench."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixprec.api.annotating import annotate
from mixprec.api.arguments import checked, positive
from mixprec.api.checking import AnyModel, checkpoint_of, model_of
from mixprec.core import artifacts, locks
from mixprec.core.arguments import typed
from mixprec.core.errors import UserError
from mixprec.core.float64 import check_float64
from mixprec.core.progress import OnStep, telling
from mixprec.evaluate import against
from mixprec.evaluate import bench as running
from mixprec.evaluate.benchmarks import find
from mixprec.evaluate.engines import templates
from mixprec.evaluate.engines.base import Engine
from mixprec.evaluate.engines.make import make
from mixprec.evaluate.engines.openai import OpenAIEngine, Server
from mixprec.evaluate.likelihood import run as likelihoods
from mixprec.evaluate.passages import Material, gather
from mixprec.evaluate.reference import KEPT
from mixprec.evaluate.scoring import RULES
from mixprec.evaluate.spec import ProtocolSpec
from mixprec.models.model import Model
from mixprec.recipe import EvaluateSpec
from mixprec.results.benchmarks import BenchResult
from mixprec.results.checkpoint import Checkpoint
from mixprec.results.evaluation import Evaluation
from mixprec.results.likelihood import LikelihoodResult
from mixprec.results.spans import Spans


@typed()
def evaluate(
    checkpoint: Checkpoint | AnyModel,
    reference: AnyModel,
    *,
    traces: str | Path | Spans | None = None,
    text: str | Path | None = None,
    text_tokens: int = 512,
    preset: str = "paper",
    progress: OnStep | None = None,
) -> Evaluation:
    """Compare a compressed model with its original: perplexity, KL and agreement, over each behaviour's spans too.

    ``reference``: the original, or its predictions (a .safetensors of ``save_reference``). ``traces``: annotated ones,
    or bundled:held_out, by the span rule ``preset``; ``text``: a file, or bundled:held_out, in passages of
    ``text_tokens``. One of both models is in memory at a time.

    Raises UserError where nothing is given to evaluate on, or the two models' tokens differ.
    """
    saved = Path(reference) if not isinstance(reference, Model) and str(reference).endswith(".safetensors") else None
    original = None if saved else model_of(reference)
    model = checkpoint_of(checkpoint, original)
    check_float64(model.device, "evaluate")
    with telling(progress):
        model.check()  # the original comes first, and takes long
        material = _material(original or model, traces, text, text_tokens, preset)
        if saved:
            found = against.evaluate_by_predictions(model, saved, material)
        else:
            assert original is not None
            found = against.evaluate(model, original, material)
    return Evaluation(model.id, found, dict(material.skipped))


@typed()
def save_reference(
    model: AnyModel,
    out: str | Path,
    *,
    traces: str | Path | Spans | None = None,
    text: str | Path | None = None,
    text_tokens: int = 512,
    preset: str = "paper",
    kept: int = KEPT,
    progress: OnStep | None = None,
) -> Material:
    """Write a model's predictions, to compare others with where it isn't at hand: ``kept`` tokens at each position.

    Gives what they are on. Raises UserError as ``evaluate`` does.
    """
    positive("save_reference", kept=kept)
    model = model_of(model)
    with telling(progress):
        model.check()
        material = _material(model, traces, text, text_tokens, preset)
        against.save_predictions(model, Path(out), material, kept)
    return material


def _material(
    model: Model, traces: str | Path | Spans | None, text: str | Path | None, text_tokens: int, preset: str
) -> Material:
    source = None if traces is None else "spans" if isinstance(traces, Spans) else str(traces)
    words = {"source": source, "preset": preset} if source else None
    spec = checked(EvaluateSpec, "evaluate", traces=words, text=text and str(text), text_tokens=text_tokens)
    annotated: Iterable[Any] = traces if isinstance(traces, Spans) else ()
    if source and not isinstance(traces, Spans):
        annotated = annotate(source, preset=preset)
    loaded = model.load()
    return gather(list(annotated), spec.text, loaded.encoder, loaded.context, text_tokens=spec.text_tokens)


_AS_THEY_ARE = "give --prompts paper, and prompts go in as they are"
#: The paper's benchmarks that need no passages.
BENCHMARKS = ("aime_2024", "folio", "temporal_sequences", "musique")


@typed()
def bench(
    model: Checkpoint | AnyModel | Server,
    out: str | Path,
    *,
    benchmarks: Sequence[str | Mapping[str, Any]] = BENCHMARKS,
    files: str | Path | None = None,
    data: str | Path | None = None,
    labels: Mapping[str, str] | None = None,
    baseline: BenchResult | LikelihoodResult | str | Path | None = None,
    progress: OnStep | None = None,
    **protocol: Any,
) -> BenchResult | LikelihoodResult:
    """Ask a model the reasoning benchmarks: scores with intervals, and what went wrong in the outputs.

    ``model``: a model, or a ``Server`` with OpenAI's protocol. ``out``: a folder of generations and benchmarks.json;
    every output is kept as soon as it is there, and the same call goes on where a killed one was. ``benchmarks``:
    names, or mappings with name, source and embedder. ``files``: folder with aime_2024.jsonl and so on, by default the
    hub; ``data``: folder of data: sources. ``labels``: for tables. ``baseline``: a result to compare with, question by
    question. ``protocol``: seeds, limit, max_new_tokens, temperature, top_p, prompts, template, thinking_budget,
    engine, think_tags, as in ``evaluate`` of a recipe (docs/recipes.md); by default the paper's. With
    ``protocol="likelihood"`` nothing is generated: it gives how likely the model finds each answer behind ``stub``
    (and ``after`` a thinking).

    Raises UserError for unknown benchmarks, a server that stays away, a baseline that other rules scored.
    """
    asked = [_asked(each, None if files is None else Path(files)) for each in benchmarks]
    if not asked:
        raise UserError(f"mixprec bench: benchmarks: none is named; give some of {', '.join(BENCHMARKS)}")
    spec = checked(ProtocolSpec, "bench", benchmarks=asked, **protocol)
    if spec.protocol == "likelihood":
        return _likelihood(model, Path(out), spec, None if data is None else Path(data), labels, baseline, progress)
    if isinstance(baseline, LikelihoodResult):
        raise UserError("mixprec bench: baseline: likelihoods don't compare with outputs; give protocol='likelihood'")
    base = None if baseline is None else comparable(baseline)
    folder, device = Path(out), "cpu"
    if isinstance(model, Server):
        if spec.thinking_budget is not None:
            raise UserError(
                "mixprec bench: thinking_budget: a server doesn't stop a thinking; leave it out, or give the model "
                "itself with engine transformers or vllm"
            )
        name, identity, engine = model.model, f"server:{model.model}", _serving(model)
    else:
        local = checkpoint_of(model)
        if spec.prompts == "chat":
            templates.require(
                local, "--prompts chat", "give --prompts paper, and prompts go in as they are", spec.template
            )
        name, device, engine = local.id, local.device, _loading(local, spec)
        identity = artifacts.fingerprint(local.identity, local.dtype)
    with telling(progress), locks.folder(folder):
        questions = running.load_questions(spec, None if data is None else Path(data), folder, device)
        found = running.run(engine, questions, spec, identity, folder, "bench")
        result = BenchResult({"labels": {"model": name.rpartition("/")[2], **(labels or {})}, **found}, base)
        result.save(folder / "benchmarks.json")
    return result


def _likelihood(
    model: Checkpoint | AnyModel | Server,
    folder: Path,
    spec: ProtocolSpec,
    data: Path | None,
    labels: Mapping[str, str] | None,
    baseline: BenchResult | LikelihoodResult | str | Path | None,
    progress: OnStep | None,
) -> LikelihoodResult:
    """``bench`` by likelihood. Raises UserError for a server, which gives no logits of texts that it is sent."""
    if isinstance(model, Server) or isinstance(baseline, BenchResult):
        what = "a server gives no logits of a text" if isinstance(model, Server) else "the baseline holds outputs"
        raise UserError(f"mixprec bench: likelihood: {what}; give a model, and as a baseline a likelihood.json")
    base = LikelihoodResult.load(_likelihood_in(baseline)) if isinstance(baseline, str | Path) else baseline
    local = checkpoint_of(model)
    if spec.prompts == "chat":
        templates.require(local, "--prompts chat", _AS_THEY_ARE, spec.template)
    identity = artifacts.fingerprint(local.identity, local.dtype)
    with telling(progress), locks.folder(folder):
        questions = running.load_questions(spec, data, folder, local.device)
        found = likelihoods.run(local.load, questions, spec, identity, folder, "likelihood")
        named = {"labels": {"model": local.id.rpartition("/")[2], **(labels or {})}, **found}
        result = LikelihoodResult(named, base)
        result.save(folder / "likelihood.json")
    return result


def _likelihood_in(baseline: str | Path) -> Path:
    """Where a baseline's likelihoods are. Raises UserError for a folder of outputs."""
    folder = Path(baseline)
    if folder.is_dir() and not (folder / "likelihood.json").is_file():
        raise UserError(
            f"baseline: {folder} has no likelihood.json; outputs don't compare with likelihoods: give the folder of a "
            "bench with protocol likelihood"
        )
    return folder


def _serving(server: Server) -> Callable[[], Engine]:
    return lambda: OpenAIEngine(server)


def _loading(model: Model, spec: ProtocolSpec) -> Callable[[], Engine]:
    return lambda: make(spec.engine, model)


def _asked(benchmark: str | Mapping[str, Any], files: Path | None) -> dict[str, Any]:
    words = {"name": benchmark} if isinstance(benchmark, str) else dict(benchmark)
    return ({"source": str(files / find(words["name"]).file)} if files and "name" in words else {}) | words


def comparable(given: BenchResult | str | Path) -> BenchResult:
    """A result to compare with. Raises UserError for one that other rules scored."""
    found = given if isinstance(given, BenchResult) else BenchResult.load(given)
    if found.data.get("scoring_rules") != RULES:
        where = "baseline" if isinstance(given, BenchResult) else f"--baseline {given}"
        raise UserError(
            f"{where}: scored by rules {found.data.get('scoring_rules')}, not {RULES}; run the command that made it "
            "again: outputs are kept and only scored again"
        )
    return found
