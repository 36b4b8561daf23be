"""Made-up files, texts and answers for every reader of strangers' ones: each ends with a value or a UserError, soon and
within a bounded memory.

hypothesis draws where a case begins, what is done to it, and plain values of any shape; mutations of whole files are
made in rounds, as most of the cost of a case is hypothesis's own. What was found is kept in ``corpus/``.
"""

from __future__ import annotations

import functools
import json
import random
import re
import resource
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import tiny
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from faults import corruption
from mixprec.checkpoint.integrity import card_of
from mixprec.core import artifacts, progress, seals
from mixprec.core.errors import UserError
from mixprec.evaluate import diagnosis, outputs
from mixprec.evaluate.benchmarks.schema import Question
from mixprec.evaluate.engines import completion
from mixprec.evaluate.engines.base import Request
from mixprec.evaluate.scoring import score
from mixprec.importance import artifact
from mixprec.models import configfile, source
from mixprec.models.decoder import Decoder
from mixprec.models.gguf import parts
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.pipeline.status import status
from mixprec.plan import sensitivity
from mixprec.plan.schema import load_plan
from mixprec.recipe import files as recipes
from mixprec.report import shapes
from mixprec.traces import annotate, cues, foreign, spans, store, thinking
from mixprec.traces.judge import reading
from mixprec.traces.judge.pieces import Piece
from mixprec.traces.store import Trace

CORPUS = Path(__file__).with_name("corpus")
_ROOT = Path(__file__).parents[2]
#: CPU seconds and bytes that a case may take.
MOST_SECONDS, MOST_BYTES = 2.0, 500_000_000
#: Mutations of a file that one draw of hypothesis makes.
ROUND = 40


class Target(NamedTuple):
    """``read`` takes the bytes of a case; ``seeds``: what cases are made of."""

    name: str
    read: Callable[[bytes], Any]
    seeds: list[bytes]


class Fault(NamedTuple):
    target: str
    why: str
    content: bytes


def targets(folder: Path) -> list[Target]:
    """All readers; ``folder``: where their files are made, and a case is written for those that read files."""
    made, decoder = _made(folder / "seeds")
    progress.console.quiet = True  # what is said of a case is not looked at

    def seeds(name: str) -> list[bytes]:
        kind, _, file = name.partition(":")
        return made[file.rpartition("/")[2] or kind]

    def of(name: str, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
        path = folder / name.partition(":")[2]
        path.parent.mkdir(parents=True, exist_ok=True)

        def write_and_read(content: bytes) -> Any:
            path.write_bytes(content)
            return read(path)

        return write_and_read

    readers: dict[str, Callable[[bytes], Any]] = {
        "recipe:recipe.yaml": of("recipe:recipe.yaml", recipes.read),
        "plan:plan.json": of("plan:plan.json", lambda path: load_plan(path, decoder)),
        "importance:importance.json": of("importance:importance.json", artifact.load),
        "scores:fisher.json": of("scores:fisher.json", lambda path: sensitivity.load(path, decoder)),
        "result:summary.json": of("result:summary.json", shapes.read_summary),
        "result:benchmarks.json": of("result:benchmarks.json", shapes.read_benchmarks),
        "result:result.json": of("result:result.json", shapes.read_fidelity),
        "traces:traces.jsonl": of("traces:traces.jsonl", lambda path: _traces(store.load(str(path)))),
        "spans:spans.jsonl": of("spans:spans.jsonl", spans.load_spans),
        "annotations:labels.json": of("annotations:labels.json", foreign.read),
        "outputs:outputs.jsonl": of("outputs:outputs.jsonl", outputs.read),
        "safetensors:st/model.safetensors": of("safetensors:st/model.safetensors", _safetensors),
        "gguf:model.gguf": of("gguf:model.gguf", parts.read),
        "config:config/config.json": of("config:config/config.json", _config),
        "card:card/mixprec.json": of("card:card/mixprec.json", lambda path: card_of(path.parent)),
        "log:log/events.jsonl": of("log:log/events.jsonl", lambda path: status(path.parent)),
        "answer": _answer,
        "judge": _judged,
        "output": _scored,
        "diagnosis": lambda content: diagnosis.diagnose(_text(content), "length", "What is 2 + 2?"),
    }
    return [Target(name, read, seeds(name)) for name, read in readers.items()]


def _made(home: Path) -> tuple[dict[str, list[bytes]], Decoder]:
    """File or reader -> what cases begin as; and the map of the tiny model that plans are for."""
    listed = corruption.gallery(home, "annotate", "gguf", "compress", "sensitivity", "attribute", "bench", "run")
    found: dict[str, list[bytes]] = {}
    for each in listed:
        whole = each.path.read_bytes()
        found.setdefault(each.path.name, []).extend({whole, _unsealed(whole)})  # a broken seal hides all else
    source = home / "made"
    rows = [json.dumps({"doc_id": n, "output": f"The answer is {n}.", "prompt": "How many?"}) for n in range(3)]
    region = {"start": 0, "end": 5, "text": "Wait,", "labels": ["backtracking"]}
    annotations = [{"id": 1, "result": [{"type": "labels", "value": region}]}]
    labels = [{"id": 1, "data": {"text": "Wait, no."}, "annotations": annotations}]
    answer = {"choices": [{"message": {"content": "Four."}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}
    texts = [trace["output"].encode() for trace in tiny.TRACES] + [
        b"So \\boxed{4}.",
        b"**Answer:** (A)",
        b"True",
        b"It is 4.",
    ]
    found |= {
        "traces.jsonl": [(source / "traces.jsonl").read_bytes()],
        "recipe.yaml": [path.read_bytes() for path in sorted((_ROOT / "recipes").glob("*.yaml"))],
        "outputs.jsonl": ["\n".join(rows).encode()],
        "labels.json": [json.dumps(labels).encode()],
        "config.json": [(source / "llama" / "config.json").read_bytes(), *found["config.json"]],
        "tokenizer.json": [(source / "llama" / "tokenizer.json").read_bytes()],
        "events.jsonl": [next((home / "gallery").rglob("events.jsonl")).read_bytes()],
        "answer": [json.dumps(answer).encode()],
        "judge": [trace["annotated"].encode() for trace in tiny.TRACES],
        "output": texts,
        "diagnosis": texts,
    }
    return found, Model(source / "llama").decoder


def _unsealed(whole: bytes) -> bytes:
    """JSON, or lines of it, without seals; anything else as it is."""
    try:
        rows = [json.loads(whole)]
    except ValueError:
        try:
            rows = [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            return whole
    plain = [seals.content(row) if isinstance(row, dict) else row for row in rows]
    return "\n".join(json.dumps(row) for row in plain).encode()


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def _traces(found: list[Trace]) -> None:
    for each in found:
        cues.cue_spans(each)
        for rule in annotate.RULES:
            annotate.parse(each.annotated or "", rule)
        thinking.parts(each.output)


def _safetensors(path: Path) -> None:
    with artifacts.open_tensors(path) as file:
        list(file.keys())
    source.open_source(path.parent)


def _config(path: Path) -> None:
    decoder_of(configfile.read(path.parent))


def _answer(content: bytes) -> None:
    request = Request("a", "prompt", 0, False, (), {})
    with suppress(ValueError):  # the server is asked again, and it is told
        completion.read(content, request, True)


_ASKED = "Okay, six apples. Wait, two are gone. I recall that a pear is no apple. So four are left."


def _judged(content: bytes) -> None:
    reading.read(_text(content), "stop", _ASKED, Piece(0, len(_ASKED)))


def _scored(content: bytes) -> None:
    text = _text(content)
    for question in _questions():
        score(question, text)


@functools.cache
def _questions() -> list[Question]:
    asked: list[tuple[Any, str, str, dict[str, Any]]] = [
        ("integer", "What is 2 + 2?", "4", {}),
        ("truth", "Is it so?", "True", {"conclusion": "It is so."}),
        ("letter", "Which one?\n(A) one\n(B) two", "A", {"options": {"A": "one", "B": "two"}}),
        ("words", "Who?", "Ada Lovelace", {"question": "Who?", "paragraphs": [], "supporting": []}),
    ]
    return [Question(kind, kind, kind, text, text, gold, extra=extra) for kind, text, gold, extra in asked]


# Cases

_NUMBERS = (b"0", b"-1", b"1e999", b"NaN", b"9" * 400, b"18446744073709551616", b"1e-320", b"0.1", b"true", b"null")
_PIECES = (
    b"[" * 300, b"{" * 300, b'{"a":' * 200, b"&a [*a, *a]", b"*a", b"<<: *a", b"!!python/object/apply:os.system [ls]",
    b"\xff\xfe", b"\x00", b"\xed\xa0\x80", "\u202e\u2028\U0001f642".encode(), b"../../x", b"\x1b[31m", b"=1+1",
    b"<think>", b"</think>", b"\\boxed{" * 20, b"(" * 200, b"a " * 500, b"\n" * 500, b'["backtracking"]',
    b'["end-section"]', b"**" * 100, b"\r\n", b"- " * 200, b"? " * 50, b": " * 50,
    b"&a [1]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\nd: [*c,*c,*c,*c]",
    struct.pack("<Q", 2**63), struct.pack("<Q", 2**64 - 1), struct.pack("<Q", 10**9), struct.pack("<I", 2**32 - 1),
)  # fmt: skip


def mutated(whole: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """A changed copy: bits, stretches, numbers, pieces that are awkward somewhere."""
    content = bytearray(whole)
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        at, way = draw.randrange(len(content) + 1), draw.randrange(8)
        end = min(len(content), at + draw.choice((1, 2, 8, 64, 1024)))
        if way == 0 and at < len(content):
            content[at] ^= 1 << draw.randrange(8)
        elif way == 1:
            del content[at:end]
        elif way == 2:
            content[at:at] = content[at:end] * draw.choice((1, 2, 30))
        elif way == 3:
            content[at:at] = draw.choice(_PIECES)
        elif way == 4:
            numbers = list(re.finditer(rb"-?\d[\d.eE+-]*", bytes(content[:20_000])))
            if numbers:
                found = draw.choice(numbers)
                content[found.start() : found.end()] = draw.choice(_NUMBERS)
        elif way == 5:
            content[at:end] = draw.randbytes(end - at)
        elif way == 6:
            other = draw.choice(others)
            content[at:at] = other[draw.randrange(len(other) + 1) :][:2000]
        elif at + 8 <= len(content):
            content[at : at + 8] = struct.pack("<Q", draw.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1)))
    return bytes(content[:200_000])


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


def replaced(whole: bytes, value: Any, draw: random.Random) -> bytes | None:
    """JSON (its first line, where it is lines) with a value of any kind somewhere; None for what is no JSON."""
    first, newline, rest = (whole, b"", b"") if whole.startswith(b"{\n") else whole.partition(b"\n")
    try:
        data = json.loads(first)
    except ValueError:
        return None
    holders = []
    stack = [data]
    while stack:
        held = stack.pop()
        inside = (
            list(held.items()) if isinstance(held, dict) else list(enumerate(held)) if isinstance(held, list) else []
        )
        holders += [(held, key) for key, _ in inside]
        stack += [each for _, each in inside]
    if not holders:
        return None
    held, key = draw.choice(holders)
    held[key] = value
    if isinstance(data, dict):
        data = {name: each for name, each in data.items() if not name.startswith("mixprec_")}  # all else is looked at
    return json.dumps(data).encode("utf-8", "surrogatepass") + newline + rest


def run(target: Target, count: int, number: int = 0) -> tuple[int, list[Fault]]:
    """At least ``count`` cases of one reader, those of ``corpus`` first: how many, and what went wrong."""
    tried, faults = 0, list[Fault]()
    others = target.seeds

    def attempt(content: bytes) -> None:
        nonlocal tried
        tried += 1
        why = problem(target, content)
        if why is not None:
            faults.append(Fault(target.name, why, content))

    for path in kept(target):
        attempt(path.read_bytes())

    @seed(number)
    @settings(
        max_examples=-(-count // ROUND), database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.integers(0, 2**62), _VALUES)
    def cases(start: int, value: Any) -> None:
        draw = random.Random(start)
        whole = draw.choice(others)
        for _ in range(ROUND):
            attempt(mutated(whole, draw, others))
        changed = replaced(whole, value, draw)
        if changed is not None:
            attempt(changed)

    cases()
    return tried, faults


def kept(target: Target) -> list[Path]:
    """Cases of a reader that went wrong once."""
    return sorted((CORPUS / target.name.partition(":")[0]).glob("*"))


def problem(target: Target, content: bytes) -> str | None:
    """What is wrong with how a reader takes a case; None where nothing is."""
    before, start = _peak(reset=True), time.process_time()
    try:
        with _alarm():
            target.read(content)
    except UserError:
        pass
    except _Hangs:
        return "hangs"
    except BaseException as caught:
        if isinstance(caught, KeyboardInterrupt):
            raise
        return f"{type(caught).__name__}: {caught}"[:500]
    seconds = time.process_time() - start
    more = _peak() - before
    if seconds > MOST_SECONDS:
        return f"takes {seconds:.1f} CPU seconds"
    return f"takes {more / 1e6:.0f} MB" if more > MOST_BYTES else None


def _peak(reset: bool = False) -> int:
    """Bytes of memory that this process held at most since the last reset; on other systems than Linux, ever."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


class _Hangs(BaseException):
    pass


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise _Hangs

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, 4 * MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
