"""Score outputs that exist: what ``bench`` says of generations, without a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.evaluate import bench, benchmarks, outputs
from mixprec.evaluate.benchmarks import Question
from mixprec.evaluate.generations import Key, Record
from mixprec.evaluate.outputs import Matched, Options, OutputFile
from mixprec.evaluate.spec import ProtocolSpec

#: Ways of matching that nothing in a row confirms.
_UNSURE = ("index", "id as an index", "number of the id", "order")


def questions_of(name: str, source: str | None, data: Path | None) -> list[Question]:
    """A benchmark's questions; those with retrieval without their passages, which scoring doesn't need.

    Raises UserError as ``benchmarks.load`` does.
    """
    plain = "musique" if name == "musique_rag" else name
    return [dataclasses.replace(each, benchmark=name) for each in benchmarks.load(plain, source, data=data)]


def check_different(paths: Sequence[Path]) -> None:
    """Raises UserError where a file is given twice: a second pass of the same outputs would be none."""
    seen: dict[Path, Path] = {}
    for path in paths:
        if path.resolve() in seen:
            raise UserError(f"{path}: given twice (also as {seen[path.resolve()]}); give each file once")
        seen[path.resolve()] = path


def score_files(
    files: Sequence[OutputFile],
    questions: bench.Questions,
    prompts: str | None,
    think_tags: Sequence[str],
    options: Options,
    count: Callable[[str], int] | None = None,
) -> dict[str, Any]:
    """The result of ``bench.result`` on the outputs in ``files``, and ``outputs``: what they were and what is missing.

    ``prompts``: paper or chat; None: as the rows say, else paper. ``count`` gives the tokens of a text where a file
    doesn't. Every benchmark must have the same passes. Raises UserError as ``outputs.match`` does.
    """
    found = {
        name: outputs.match(files, name, asked, options, several=len(questions) > 1)
        for name, asked in questions.items()
    }
    seeds = {name: each.seeds for name, each in found.items()}
    if len(set(seeds.values())) > 1:
        lists = "; ".join(f"{name}: {', '.join(map(str, each))}" for name, each in seeds.items())
        raise UserError(f"{files[0].path}: the benchmarks have different passes ({lists}); score them one by one")
    origin = next((row.origin for file in files for row in file.rows if row.origin), None)
    protocol = ProtocolSpec(
        benchmarks=tuple({"name": name} for name in questions),
        seeds=next(iter(seeds.values())),
        prompts=prompts or (origin["prompts"] if origin else _prompts(files, think_tags)),
        think_tags=tuple(think_tags),
    )
    records = {name: _counted(each.records, count) for name, each in found.items()}
    texts = [[(key.id, key.seed, record.output) for key, record in each.items()] for each in records.values()]
    model = origin["model"] if origin else f"outputs:{artifacts.fingerprint(texts)}"
    result = bench.result({name: each.asked for name, each in found.items()}, records, protocol, model)
    sampling = origin["sampling"] if origin else dict.fromkeys(("max_new_tokens", "temperature", "top_p"))
    described = {name: _described(each, records[name]) for name, each in found.items()}
    return {
        **result,
        "protocol": result["protocol"] | sampling,
        "outputs": {"files": [_file(each) for each in files], "benchmarks": described},
    }


def _prompts(files: Sequence[OutputFile], think_tags: Sequence[str]) -> str:
    rows = [row for file in files for row in file.rows]
    opened = outputs.opened(rows, ProtocolSpec(think_tags=tuple(think_tags)).tags)
    return "chat" if opened is False else "paper"


def _counted(records: Mapping[Key, Record], count: Callable[[str], int] | None) -> dict[Key, Record]:
    if count is None:
        return dict(records)
    return {
        key: record if record.tokens is not None else record._replace(tokens=count(record.output))
        for key, record in records.items()
    }


def _file(file: OutputFile) -> dict[str, Any]:
    return {
        "file": file.path.name,
        "sha256": artifacts.sha256_file(file.path) if file.path.is_file() else None,
        "format": file.format,
        "keys": dict(file.keys),
        "rows": len(file.rows),
        "without_output": file.empty,
    }


def _described(found: Matched, records: Mapping[Key, Record]) -> dict[str, Any]:
    used = [records[Key(question.id, seed)] for question in found.asked for seed in found.seeds]
    return {
        "questions": len(found.asked),
        "missing": found.missing,
        "incomplete": found.incomplete,
        "unmatched_rows": found.unmatched,
        "outputs": len(used),
        "repeated": sum(_repeats(found, records, question) for question in found.asked),
        "finish_unknown": sum(record.finish is None for record in used),
        "tokens_unknown": sum(record.tokens is None for record in used),
        "files": [
            {"file": Path(name).name, "matched_by": way, "passes": list(passes)}
            for name, (way, passes) in found.ways.items()
        ],
    }


def _repeats(found: Matched, records: Mapping[Key, Record], question: Question) -> bool:
    """Whether a question has one output, word for word, in several passes."""
    return len({records[Key(question.id, seed)].output for seed in found.seeds}) < len(found.seeds)


def sentences(described: Mapping[str, Any]) -> list[str]:
    """What a reader must know of the outputs that were scored: formats, passes, and what is missing."""
    said = []
    for file in described["files"]:
        keys = ", ".join(f"{role} from {key!r}" for role, key in file["keys"].items())
        rows = f"{file['rows']} row" + "s" * (file["rows"] != 1)
        said.append(f"{file['file']}: {file['format']}, {rows}{f' ({keys})' if keys else ''}")
        if file["without_output"]:
            said.append(f"{file['file']}: rows without an output, left out: {file['without_output']}")
    for name, each in described["benchmarks"].items():
        for file in each["files"]:
            passes, way = ", ".join(map(str, file["passes"])), file["matched_by"]
            unsure = " alone: it must count the benchmark's rows in their order" if way in _UNSURE else ""
            which = f"pass{'es' * (len(file['passes']) > 1)} {passes}"
            said.append(f"{name}: {file['file']} holds {which}, matched by {way}{unsure}")
        whole = each["questions"] + each["missing"] + each["incomplete"]
        notes = [
            (each["missing"], f"of {whole} questions have no output: left out, not counted as wrong"),
            (each["incomplete"], f"of {whole} questions lack an output in some pass: left out"),
            (each["repeated"], f"of {each['questions']} questions have the same output in several passes"),
            (each["unmatched_rows"], "rows match no question: left out"),
            (each["finish_unknown"], f"of {each['outputs']} outputs don't say how they ended: told from the text"),
            (each["tokens_unknown"], f"of {each['outputs']} have no token count: lengths in characters (--tokenizer)"),
        ]
        said += [f"{name}: {count} {what}" for count, what in notes if count]
    return said
