"""The files that a recipe names: whether they are there and can be read, and whether they hold what it asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from mixprec import recipe
from mixprec.calibration.spec import CalibrationSpec, HubSource, TextSource, TraceSource
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.evaluate.spec import BenchmarkSpec
from mixprec.pipeline.annotating import find_spans
from mixprec.pipeline.checks.amounts import Counting, Held
from mixprec.pipeline.checks.findings import Findings
from mixprec.recipe import OWN, GenerateSpec, Recipe, TracesSpec
from mixprec.traces import store
from mixprec.traces.judge import prompts
from mixprec.traces.prompts import load_prompts
from mixprec.tune.options import TuneSpec

#: Prompts that are a benchmark's questions.
_BENCHMARK = "benchmark:"


def read(chosen: Recipe, folder: Path | None, found: Findings) -> dict[str, Held]:
    """Key of the recipe -> what its file holds. Files that are missing, broken or empty are told; with no data
    ``folder`` what lies there is not looked at."""
    waiting: list[str] = []
    held: dict[str, Held] = {}
    if chosen.generate is not None and chosen.generate.prompts.startswith(_BENCHMARK):
        found.unchecked.append(f"generate.prompts: the questions of {chosen.generate.prompts}")
    for key, source, spec in [*_sources(chosen), *_questions(chosen, found)]:
        if source == OWN:
            found.unchecked.append(f"{key}: {OWN}, what the model writes")
            continue
        if recipe.in_data(source) and (folder is None or not folder.is_dir()):
            waiting.append(key)
            continue
        with found.trying(key):
            if isinstance(spec, BenchmarkSpec):
                _read_questions(spec, _file(source, folder))
            elif isinstance(spec, GenerateSpec):
                held[key] = _prompts(key, spec, store.locate(recipe.locate(source, folder)))
            elif spec is None:
                held[key] = _text(key, source, _file(source, folder))
            else:
                held[key] = _traces(key, source, store.locate(recipe.locate(source, folder)), spec)
                if spec.judge is not None:
                    prompts.load(spec.judge.prompt)
                    found.unchecked.append(f"{key.removesuffix('.source')}.judge: what spans it finds")
    if waiting and folder is not None:
        found.add(f"{', '.join(waiting)}: the data folder {folder} does not exist; {recipe.GIVE_DATA}")
    elif waiting:
        found.lacking.append(f"{', '.join(waiting)}: no data folder is known; {recipe.GIVE_DATA}")
    return held


def calibration_key(spec: CalibrationSpec, number: int) -> str:
    """Where a recipe names one of its calibration sources."""
    inside = f".sources[{number}]" if len(spec.sources) > 1 else ""
    return f"compress.calibration{inside}"


def _sources(chosen: Recipe) -> Iterator[tuple[str, str, TracesSpec | GenerateSpec | None]]:
    """Key, source and, of traces, how spans are found in them; of prompts, how they are read; None: it is text."""
    if chosen.distill is not None:
        yield "distill.traces", chosen.distill.traces, TracesSpec(source=chosen.distill.traces)
    if chosen.generate is not None and not chosen.generate.prompts.startswith(_BENCHMARK):
        yield "generate.prompts", chosen.generate.prompts, chosen.generate
    if chosen.traces is not None:
        yield "traces.source", chosen.traces.source, chosen.traces
        if chosen.agreement is not None:
            second = chosen.agreement.of(chosen.traces)
            yield "agreement.source", second.source, second
    spec = chosen.compress.calibration
    for number, each in enumerate(spec.sources if spec else ()):
        assert spec is not None
        key = calibration_key(spec, number)
        if isinstance(each, TraceSource):
            yield f"{key}.traces", each.traces, TracesSpec(source=each.traces, preset=each.preset)
        elif isinstance(each, TextSource):
            yield f"{key}.text", each.text, None
    if chosen.evaluate is not None and chosen.evaluate.traces is not None:
        yield "evaluate.traces.source", chosen.evaluate.traces.source, chosen.evaluate.traces
    if chosen.evaluate is not None and chosen.evaluate.text is not None:
        yield "evaluate.text", chosen.evaluate.text, None


def _prompts(key: str, spec: GenerateSpec, path: Path) -> Held:
    """What the model will reason about."""
    rows = load_prompts(path, spec.keys)[: spec.first]
    if not spec.chat_template and any("messages" in row for row in rows):
        raise UserError(f"{path}: conversations need a chat template; set chat_template: true")
    return Held(key, spec.prompts, tuple(row["prompt"] for row in rows))


def _questions(chosen: Recipe, found: Findings) -> Iterator[tuple[str, str, BenchmarkSpec]]:
    """Benchmarks whose questions lie in files."""
    from_hub = []
    for number, each in enumerate(chosen.evaluate.benchmarks if chosen.evaluate else ()):
        if each.source is None or each.source.startswith("hub:"):
            from_hub.append(each.name)
        else:
            yield f"evaluate.benchmarks[{number}].source", each.source, each
    if from_hub:
        found.unchecked.append(f"evaluate.benchmarks: questions that come from the hub ({', '.join(from_hub)})")


def _read_questions(spec: BenchmarkSpec, path: Path) -> None:
    from mixprec.evaluate.benchmarks import catalogue  # it needs torch

    catalogue.read(spec.name, str(path), spec.revision)


def _file(source: str, folder: Path | None) -> Path:
    """Where a text or the questions of a benchmark lie."""
    if source == store.HELD_OUT:
        return store.held_out_text()
    path = Path(recipe.locate(source, folder)).expanduser()
    if not path.is_file():
        raise UserError(f"{source}: no such file")
    return path


def _text(key: str, source: str, path: Path) -> Held:
    text = artifacts.read_text(path)
    if not text.strip():
        raise UserError(f"{path}: the text is empty")
    return Held(key, source, (text,))


def _traces(key: str, source: str, path: Path, spec: TracesSpec) -> Held:
    """Traces; with their spans, where a stage looks for them."""
    if key.startswith(("compress.", "distill.")):
        return Held(key, source, tuple(trace.text for trace in store.load(str(path))))
    if spec.judge is not None:  # at most all that was reasoned lies in spans
        traces = store.load(str(path))[: spec.first]
        return Held(key, source, tuple(each.text for each in traces), inside=sum(len(each.output) for each in traces))
    annotated = find_spans(spec, source, path)
    scored = [span for each in annotated for span in each.spans if span.behaviour in store.BEHAVIOURS]
    texts = tuple(each.trace.text for each in annotated)
    spans = Counter(span.behaviour for span in scored)
    return Held(key, source, texts, spans, sum(span.end - span.start for span in scored))


def check_amounts(
    chosen: Recipe, held: Mapping[str, Held], counting: Counting, context: int | None, found: Findings
) -> None:
    """More samples than there are, and tokens beyond the model's ``context``; None where that is not known."""
    if context is not None:
        _check_context(chosen, context, found)
    spec = chosen.compress.calibration
    if spec is not None:
        most = max((_tuned(spec, each) for each in chosen.tunings if each.calibration is None), default=spec.samples)
        spec = spec.model_copy(update={"samples": max(most, spec.samples)})
        for number in range(len(spec.sources)):
            _check_source(spec, number, held, counting, found)
    _check_passages(chosen, held, found)


def _tuned(spec: CalibrationSpec, tune: TuneSpec) -> int:
    """Samples that tuning asks for, with those for validation."""
    return (tune.samples or spec.samples) + tune.validation


def _check_context(chosen: Recipe, context: int, found: Findings) -> None:
    """Lengths that the recipe names itself; those that it leaves out never reach beyond the context."""
    parts = (
        ("compress.calibration", chosen.compress.calibration, ("tokens",), False),
        ("importance", chosen.importance, ("max_tokens",), True),
        ("sensitivity", chosen.sensitivity, ("max_tokens",), True),
        ("evaluate", chosen.evaluate, ("text_tokens", "max_tokens"), True),
    )
    for name, part, keys, only_named in parts:
        for key in keys:
            value = getattr(part, key, None)
            if part is None or value is None or value <= context or (only_named and key not in part.model_fields_set):
                continue
            found.add(f"{name}.{key}: {value} is more than the model's context of {context}; lower it")


def _check_source(
    spec: CalibrationSpec, number: int, held: Mapping[str, Held], counting: Counting, found: Findings
) -> None:
    """One source's samples."""
    source, count = spec.sources[number], spec.counts[number]
    key = calibration_key(spec, number)
    if count == 0:
        found.add(
            f"compress.calibration.samples: {spec.samples}: none of them is left for {source} with its share of "
            f"{source.share:g}; raise samples or the share"
        )
    if isinstance(source, HubSource):
        found.unchecked.append(f"{key}: {source} comes from the hub: whether it has {count} samples")
        return
    there = next((each for name, each in held.items() if name.rpartition(".")[0] == key), None)
    if there is None or count == 0:
        return
    most = samples_at_most(there, spec, number, counting)
    if most < count:
        found.add(
            f"{key}: {source}: has at most {most} samples of {spec.tokens} tokens; {count} are asked for; lower "
            "samples or tokens, or add sources"
        )


def samples_at_most(there: Held, spec: CalibrationSpec, number: int, counting: Counting) -> int:
    """No more samples than this can be cut from a source; fewer, where some repeat themselves or lack weight.

    Where an estimate leaves a doubt, tokens are counted; without a tokenizer there are no more than bytes.
    """
    source = spec.sources[number]
    body = max(spec.tokens - counting.head, 1)
    packed = not isinstance(source, TraceSource) or source.pack

    def cut(tokens: tuple[int, ...]) -> int:
        each = [count + 2 for count in tokens]  # with what may stand at both ends of a trace
        return sum(each) // body if packed else sum(count // body for count in each)

    if counting.tokenizer is None:
        return cut(tuple(len(text.encode()) for text in there.texts))
    guess = cut(counting.amount(there.texts).tokens)
    return guess if guess > 2 * spec.counts[number] else cut(counting.amount(there.texts, exactly=True).tokens)


def _check_passages(chosen: Recipe, held: Mapping[str, Held], found: Findings) -> None:
    """What damage is predicted on, and what exchanged plans are measured on."""
    spec, calibration = chosen.sensitivity, chosen.compress.calibration
    if spec is None or calibration is None:
        return
    if spec.behaviours:
        traces = held.get("traces.source")
        there, what, remedy = (len(traces.texts) if traces else None), "traces", "take more traces"
        for behaviour in spec.behaviours if traces else ():
            if behaviour in store.BEHAVIOURS and traces and traces.spans and not traces.spans[behaviour]:
                found.add(f"sensitivity.behaviours: {behaviour}: no span in {traces.source}; leave it out")
    else:
        there, what = calibration.samples, "calibration samples"
        remedy = "raise compress.calibration.samples"
    if there is None:
        return
    if spec.samples > there and "samples" in spec.model_fields_set:
        found.add(f"sensitivity.samples: {spec.samples}: there are {there} {what}; lower it, or {remedy}")
    for name, variant in chosen.all_variants.items():
        budget = variant.plan.budget
        if budget is not None and budget.exchange is not None and there - spec.samples < 2:
            found.add(
                f"variant {name}: plan.budget.exchange: {there} passages are there, {min(spec.samples, there)} of them "
                "are scored (sensitivity.samples), and plans are measured on at least two others; take more "
                "calibration samples or traces"
            )
