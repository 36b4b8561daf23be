"""One way from text to tokens: what belongs in front is there once, nothing is behind, and every id has a row."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers import models as cores
from transformers import PreTrainedTokenizerFast

import mixprec
from mixprec.calibration import data, sources
from mixprec.calibration.spec import CalibrationSpec
from mixprec.core.errors import UserError
from mixprec.evaluate import passages
from mixprec.evaluate.engines.base import Request, Sampling
from mixprec.evaluate.engines.transformers import TransformersEngine
from mixprec.importance import passes
from mixprec.importance.options import AttributionOptions
from mixprec.models import encoding
from mixprec.models.encoding import Encoder, missing, windows
from mixprec.models.model import Model
from mixprec.traces.spans import AnnotatedTrace, CharSpan
from mixprec.traces.store import Trace

TEXT = "Six apples and four pears."


def encoder(post: Any = None, add_bos: bool | None = None, **special: str | None) -> Encoder:
    """tiny's tokenizer (<s> 0, </s> 1) with another post-processor."""
    words = PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer(bos=False).backend_tokenizer,
        **{"bos_token": "<s>", "eos_token": "</s>"} | special,
    )
    words.backend_tokenizer.post_processor = post or processors.ByteLevel()
    return Encoder(words, len(words), add_bos)


def template(single: str) -> Any:
    return processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])


BODY = encoder().piece(TEXT).ids
#: What stands in tokenizer.json -> what belongs in front of a text.
POST_PROCESSORS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "BOS": (template("<s> $A"), (0,)),
    "BOS and EOS": (template("<s> $A </s>"), (0,)),
    "EOS alone": (template("$A </s>"), ()),
    "none": (processors.ByteLevel(), ()),
    "Llama 3": (processors.Sequence([processors.ByteLevel(trim_offsets=False), template("<s> $A")]), (0,)),
    "two tokens, as GLM": (template("</s> <s> $A"), (1, 0)),
    "Roberta": (processors.RobertaProcessing(("</s>", 1), ("<s>", 0)), (0,)),
    "Bert": (processors.BertProcessing(("</s>", 1), ("<s>", 0)), (0,)),
}


@pytest.mark.parametrize("name", POST_PROCESSORS)
def test_the_head_is_there_once_and_nothing_is_behind(name: str) -> None:
    post, head = POST_PROCESSORS[name]
    encodes = encoder(post)
    assert encodes.head == head
    begins = encodes.decode(head)
    for text in {TEXT, begins + TEXT, begins * 2 + TEXT, begins * 3 + TEXT}:
        ids, offsets = encodes(text)
        assert ids == [*head, *BODY]
        at = len(text) - len(TEXT)
        spoken = [(start - at, end - at) for start, end in offsets[len(head) :]]
        # The characters are those of the text that was given.
        assert [TEXT[start:end].strip() for start, end in spoken] == [encodes.decode([one]).strip() for one in BODY]
        assert encodes.own(text).ids[-len(BODY) :] == BODY


def test_a_head_of_which_the_text_has_the_last_token() -> None:
    encodes = encoder(template("</s> <s> $A"))
    assert encodes("<s>" + TEXT).ids == [1, 0, *BODY]
    assert encodes("</s>" + TEXT).ids == [1, 0, 1, *BODY]  # its first token alone doesn't end a head


@given(st.lists(st.integers(0, 2), max_size=3), st.lists(st.integers(0, 2), max_size=6))
def test_what_is_missing_makes_the_head_whole(head: list[int], ids: list[int]) -> None:
    front = missing(head, ids)
    whole = [*front, *ids]
    assert whole[: len(head)] == head
    # No shorter front would do.
    assert not any([*head[:size], *ids][: len(head)] == head for size in range(len(front)))


@pytest.mark.parametrize(
    ("post", "declared", "head"),
    [
        (template("<s> $A"), None, (0,)),
        (template("<s> $A"), True, (0,)),
        (template("<s> $A"), False, ()),  # transformers before 5 and llama.cpp leave it out
        (processors.ByteLevel(), True, (0,)),  # transformers before 5 and llama.cpp put it there
        (processors.ByteLevel(), False, ()),
        (processors.ByteLevel(), None, ()),  # SmolLM2 and Qwen 2.5 have a bos_token that stands in front of nothing
        (template("</s> <s> $A"), True, (1, 0)),
        (template("</s> <s> $A"), False, (1, 0)),
    ],
)
def test_what_the_tokenizers_configuration_declares(
    tmp_path: Path, tiny_checkpoint: Path, post: Any, declared: bool | None, head: tuple[int, ...]
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    encoder(post).tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {} if declared is None else {"add_bos_token": declared}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    found = Model(folder).encoder
    assert found.head == head
    assert found(TEXT).ids == [*head, *BODY]


def test_a_declared_bos_that_there_is_none_of() -> None:
    assert encoder(add_bos=True, bos_token=None).head == ()


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_a_text_behind_its_own_bos_gains_no_space(scheme: Any) -> None:
    """SentencePiece's dummy space: what the tokenizer makes of the text with BOS in it is what stays."""
    vocabulary = {"<s>": 0, "<unk>": 1, "▁ab": 2, "ab": 3, "▁": 4, "a": 5, "b": 6}
    core = Tokenizer(cores.BPE(vocabulary, [("a", "b"), ("▁", "ab")], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    words = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", unk_token="<unk>")
    encodes = Encoder(words, len(words))
    assert encodes("ab").ids == words("ab")["input_ids"]
    assert encodes("<s>ab").ids == words("<s>ab", add_special_tokens=False)["input_ids"]
    assert encodes("<s>ab").ids == [0, 3 if scheme != "always" else 2]


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(3, 9), st.sampled_from([(), (0,), (1, 0)]))
def test_windows_hold_every_token_behind_a_head(ids: list[int], length: int, head: tuple[int, ...]) -> None:
    found = list(windows(ids, length, head))
    assert [token for each in found for token in ids[each.start : each.end]] == ids
    for each in found:
        whole = [*each.front, *ids[each.start : each.end]]
        assert tuple(whole[: len(head)]) == head
        assert len(whole) == each.length <= length
    assert all(each.length == length for each in found[:-1])


# Ids beyond the embedding


def grown(folder: Path, target: Path, change: Callable[[Any], object]) -> str:
    """A copy of a checkpoint whose tokenizer has more tokens than its embedding has rows."""
    shutil.copytree(folder, target)
    words = PreTrainedTokenizerFast.from_pretrained(target)
    change(words)
    words.save_pretrained(target)
    return str(target)


@pytest.fixture
def thinking(tiny_checkpoint: Path, tmp_path: Path) -> str:
    return grown(tiny_checkpoint, tmp_path / "thinking", lambda words: words.add_tokens(["<think>", "</think>"]))


@pytest.fixture
def endless(tiny_checkpoint: Path, tmp_path: Path) -> str:
    return grown(
        tiny_checkpoint, tmp_path / "endless", lambda words: words.add_special_tokens({"eos_token": "<|end|>"})
    )


BEYOND = r"rows don't reach: .*'<think>' \(384\).*resize_token_embeddings\(386\)"


def test_ids_beyond_the_embedding_are_refused_where_they_are_used(thinking: str, tmp_path: Path) -> None:
    loaded = Model(thinking).load()
    assert loaded.encoder(TEXT).ids == [0, *BODY]  # tokens that nothing uses do no harm
    traces = [AnnotatedTrace(Trace("a", "", "Why?\n<think>\n", "Because.\n</think>"), [])]
    with pytest.raises(UserError, match=BEYOND):
        passages.from_traces(traces, loaded.encoder, 100)
    (tmp_path / "text.txt").write_text("<think>" + TEXT)
    with pytest.raises(UserError, match=BEYOND):
        passages.from_text(str(tmp_path / "text.txt"), loaded.encoder, 8)
    spec = CalibrationSpec.model_validate({"text": str(tmp_path / "text.txt"), "samples": 1, "tokens": 4})
    with pytest.raises(UserError, match=BEYOND):
        data.load(spec, loaded.encoder, str, 256)
    with pytest.raises(UserError, match=BEYOND):
        passes.plan(loaded, traces, [()], {"paper": AttributionOptions()}, 100, "")
    with pytest.raises(UserError, match=BEYOND):
        list(TransformersEngine(loaded).generate([Request("a", "<think>", 0)], Sampling(4)))


def test_an_end_that_the_model_cant_write(endless: str, tmp_path: Path) -> None:
    loaded = Model(endless).load()
    with pytest.raises(UserError, match=r"'<\|end\|>' \(384\)"):
        TransformersEngine(loaded)
    path = tiny.write_traces(tmp_path / "traces.jsonl")
    spec = {"traces": str(path), "samples": 1, "tokens": 8}
    with pytest.raises(UserError, match=r"'<\|end\|>' \(384\)"):
        data.load(CalibrationSpec.model_validate(spec), loaded.encoder, str, 256)  # EOS goes between packed traces
    unpacked = CalibrationSpec.model_validate(
        {"sources": [{"traces": str(path), "pack": False}], "samples": 1, "tokens": 8}
    )
    assert data.load(unpacked, loaded.encoder, str, 256).tokens.shape == (1, 8)


def test_stop_ids_of_the_generation_configuration(tiny_checkpoint: Path) -> None:
    loaded = Model(tiny_checkpoint).load()
    loaded.model.generation_config.eos_token_id = [1, -1]  # -1 stands for none in some configurations
    assert TransformersEngine(loaded).ends == {1}
    loaded.model.generation_config.eos_token_id = [1, 500]
    with pytest.raises(UserError, match=r"384 rows don't reach: .*500"):
        TransformersEngine(loaded)


def test_a_padded_embedding_has_rows_for_all(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "padded", vocab_size=448)
    assert Model(folder).load().encoder.rows == 448
    words = grown(folder, tmp_path / "more", lambda words: words.add_tokens(["<think>"]))
    assert Model(words).load().encoder("<think>").ids == [0, 384]


def test_exit_code_2_with_the_tokens_named(thinking: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mixprec import cli

    recipe = tiny.write_recipe(tmp_path / "recipe.yaml", Path(thinking), tiny.write_traces(tmp_path / "traces.jsonl"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "500")
        patch.setattr("sys.argv", ["mixprec", "run", str(recipe), "--out", str(tmp_path / "run")])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    assert caught.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "<think>" in said and "resize_token_embeddings" in said and "384 rows" in said


# The same tokens everywhere


@pytest.mark.parametrize("name", ["BOS", "BOS and EOS", "two tokens, as GLM", "none"])
def test_all_parts_see_the_same_tokens(tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
    """A trace whose prompt came out of a chat template, with its BOS."""
    post, head = POST_PROCESSORS[name]
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    words = encoder(post).tokenizer
    words.chat_template = "{{ bos_token }}{% for message in messages %}Q: {{ message.content }}\nA:{% endfor %}"
    words.save_pretrained(folder)
    loaded = Model(folder).load()

    made = next(iter(TransformersEngine(loaded).generate([Request("a", "How many?", 0, chat=True)], Sampling(6))))
    assert made.prompt == "<s>Q: How many?\nA:"
    body = loaded.encoder.piece("Q: How many?\nA:").ids
    prompt = [*head, *body] if head else [0, *body]  # a BOS that the template writes stays where the model adds none
    assert made.prompt_tokens == len(prompt)
    text = " Six apples, of which two are gone."
    start, end = len(made.prompt) + 1, len(made.prompt) + 11
    trace = AnnotatedTrace(Trace("a", "", made.prompt, text), [CharSpan("backtracking", start, end)])

    [task], _ = passes.plan(loaded, [trace], [()], {"paper": AttributionOptions()}, 100, "")
    [passage], skipped = passages.from_traces([trace], loaded.encoder, 100)
    expected = prompt + loaded.encoder.piece(text).ids
    assert task.ids.tolist() == passage.tokens.tolist() == expected
    assert not skipped
    [span] = passage.spans
    assert loaded.encoder.decode(expected[span.start : span.end]).strip() == "Six apples"

    tiny.write_traces(tmp_path / "t.jsonl", {"id": "a", "prompt": made.prompt, "output": text})
    spec = {"traces": str(tmp_path / "t.jsonl"), "samples": 1, "tokens": len(expected)}
    assert data.load(CalibrationSpec.model_validate(spec), loaded.encoder, str, 256).tokens[0].tolist() == expected
    (tmp_path / "text.txt").write_text(trace.trace.text * 2)
    [first, *_] = passages.from_text(str(tmp_path / "text.txt"), loaded.encoder, len(expected))
    assert first.tokens.tolist()[: len(expected) - 2] == expected[:-2]


def test_what_is_generated_from_does_not_depend_on_who_wrote_the_bos(tiny_checkpoint: Path) -> None:
    engine = TransformersEngine(Model(tiny_checkpoint).load())
    requests = [Request(str(n), front + "There were 4 apples.", 0) for n, front in enumerate(["", "<s>", "<s><s>"])]
    outputs = {(made.output, made.prompt_tokens) for made in engine.generate(requests, Sampling(8, temperature=0))}
    assert len(outputs) == 1


def test_a_text_in_pieces_has_its_head_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encodes = encoder(template("<s> $A </s>"))
    whole = sources.encode("<s><s>" + (TEXT + "\n") * 20, encodes)
    monkeypatch.setattr(sources, "_PIECE", 40)
    assert torch.equal(sources.encode("<s><s>" + (TEXT + "\n") * 20, encodes), whole)
    assert whole.tolist().count(0) == 1


def test_no_other_file_calls_a_tokenizer() -> None:
    """Peers run in environments of their own, without mixprec."""
    root = Path(mixprec.__file__).parent
    calls = {"encode_plus", "batch_encode_plus", "encode_batch", "tokenize", "apply_chat_template"}
    found = set()
    for path in root.rglob("*.py"):
        where = path.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            callee = ast.unparse(node.func)
            name = callee.rpartition(".")[2]
            if name in calls or name == "tokenizer" or callee.endswith("tokenizer.encode"):
                found.add(where)
    # Templates make text, and amounts are only counted, for estimates: no model sees either's tokens.
    allowed = {"models/encoding.py", "evaluate/engines/templates.py", "pipeline/checks/amounts.py"}
    assert {where for where in found if not where.startswith("contrib/peers/runner/")} == allowed
    assert "tokenize=False" in (root / "evaluate/engines/templates.py").read_text(encoding="utf-8")
    assert encoding.__name__ == "mixprec.models.encoding"
