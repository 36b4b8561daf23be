"""The command line: every verb on a tiny model, help that can be copied, and one clear line for every mistake."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import typer
from transformers import AutoModelForCausalLM, GPT2Config

import mixprec
from mixprec import cli, pipeline, recipe
from mixprec.traces import store

VERBS = {
    "run", "trace", "annotate", "attribute", "shift", "rank", "plan", "explain", "compress", "evaluate", "report", "ls",
    "cp", "validate", "export-plan",
}  # fmt: skip
COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


class Result(NamedTuple):
    code: int
    out: str
    errors: str


Cli = Callable[..., Result]


@pytest.fixture
def mix(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Call ``mixprec`` with arguments, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["mixprec", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        code = caught.value.code
        assert isinstance(code, int)
        return Result(code, captured.out, captured.err)

    return call


def good(result: Result) -> str:
    assert result.code == 0, result
    return result.out


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    return tiny.write_traces(tmp_path / "traces.jsonl")


# Help


def test_the_verbs() -> None:
    assert set(COMMANDS) >= VERBS


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_help_has_examples_that_parse(mix: Cli, verb: str) -> None:
    shown = good(mix(verb, "--help"))
    assert "Examples" in shown
    assert good(mix(verb, "-h")) == shown
    command = COMMANDS[verb]
    examples = [line for line in command.epilog.split("\n\n") if line.startswith("mixprec ")]
    assert examples
    for example in examples:
        assert example in shown
        program, name, *arguments = shlex.split(example)
        assert (program, name) == ("mixprec", verb)
        command.make_context(verb, arguments)  # raises a usage error for options that there are not


def test_help_is_quick() -> None:
    program = (
        "import sys; sys.argv = ['mixprec', 'run', '--help']\n"
        "from mixprec import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_version_and_no_verb(mix: Cli) -> None:
    assert good(mix("--version")).strip() == f"mixprec {mixprec.__version__}"
    assert mix().code == 2


# The flow, verb by verb


def test_from_prompts_to_numbers(mix: Cli, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """What a person does who has a model and prompts, and nothing else."""
    prompts = [{"id": trace["id"], "dataset": "toy", "prompt": trace["prompt"]} for trace in tiny.TRACES[:2]]
    tiny.write_traces(tmp_path / "prompts.jsonl", *prompts)
    model = ("--model", tiny_checkpoint)
    generate = ("trace", "prompts.jsonl", "--out", "traces.jsonl", *model, "--temperature", 0, "--max-new-tokens", 120)
    assert "traces.jsonl: 2 traces" in good(mix(*generate))
    written = (tmp_path / "traces.jsonl").read_bytes()
    # It has learned these traces, and stops where they end.
    assert [t.output for t in store.load("traces.jsonl")] == [trace["output"] for trace in tiny.TRACES[:2]]

    # A kill in the middle of a line: the same command writes the same bytes.
    (tmp_path / "traces.jsonl").write_bytes(written[:-30])
    assert "2 traces" in good(mix(*generate))
    assert (tmp_path / "traces.jsonl").read_bytes() == written

    shown = good(mix("annotate", "traces.jsonl", "--annotator", "cues", "--out", "spans.jsonl"))
    assert "backtracking" in shown
    assert "Backtracking" in good(
        mix("attribute", "spans.jsonl", "--out", "importance", *model, "--compare", "released")
    )
    assert {p.name for p in (tmp_path / "importance").glob("importance*")} == {
        "importance.json", "importance_released.json", "importance.png", "importance.svg"
    }  # fmt: skip

    tiny.write_recipe(tmp_path / "r.yaml", tiny_checkpoint, tmp_path / "traces.jsonl")
    ranked = ("--variant", "least", "--importance", "importance/importance.json")
    assert "14 modules" in good(mix("plan", "r.yaml", *ranked, "--out", "plan.json"))
    assert good(mix("plan", "r.yaml", *ranked)) == (tmp_path / "plan.json").read_text()
    good(mix("compress", "plan.json", "--out", "checkpoint"))
    good(mix("compress", "plan.json", "--out", "checkpoint"))  # its own work may be replaced

    tiny.write_traces(tmp_path / "annotated.jsonl")
    compared = (
        "--reference",
        tiny_checkpoint,
        "--traces",
        "annotated.jsonl",
        "--text",
        "text.txt",
        "--text-tokens",
        9999,
    )
    shown = good(mix("evaluate", "checkpoint", *compared, "--out", "result.json"))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["traces"]["kl_mean"] > 0
    assert max(p["tokens"] for p in result["kl_by_passage"]) < 256  # the context
    assert "adding_know" in shown
    good(mix("evaluate", tiny_checkpoint, *compared, "--out", "itself.json"))
    assert json.loads((tmp_path / "itself.json").read_text())["traces"]["kl_mean"] == 0


def test_annotations_are_compared_imported_and_reviewed(mix: Cli, traces: Path, tmp_path: Path) -> None:
    good(mix("annotate", traces, "--out", "one.jsonl"))
    good(mix("annotate", traces, "--annotator", "cues", "--out", "two.jsonl"))
    shown = good(mix("agreement", "one.jsonl", "two.jsonl", "--resamples", 20, "--out", "compared"))
    assert "traces in both: 4" in shown and "kappa" in shown
    assert json.loads((tmp_path / "compared" / "agreement.json").read_text())["names"]["first"] == "one.jsonl"
    assert "review.html: open it" in good(mix("review", "one.jsonl", "--out", "review.html"))
    assert "open it" in good(mix("review", "bundled:attribution", "--first", 2, "--out", "review.html"))
    text = tiny.TRACES[0]["output"]
    region = {"type": "labels", "value": {"start": 0, "end": 5, "text": text[:5], "labels": ["Initializing"]}}
    task = {"id": 1, "data": {"output": text}, "annotations": [{"completed_by": 1, "result": [region]}]}
    (tmp_path / "project.json").write_text(json.dumps([task]))
    assert "initializing" in good(mix("import", "project.json", "--out", "three.jsonl")).lower()
    lonely = mix("review", "one.jsonl", "--checkpoint", "x", "--out", "review.html")
    assert lonely.code == 2 and "--checkpoint and --reference go together" in lonely.errors


def test_one_command(mix: Cli, tiny_checkpoint: Path, traces: Path, tmp_path: Path) -> None:
    tiny.write_recipe(tmp_path / "r.yaml", tiny_checkpoint, traces)
    waiting = good(mix("explain", "r.yaml"))
    assert "known when it runs" in waiting
    assert "r.yaml: valid, 3 variants" in good(mix("validate", "r.yaml"))
    override = "variants.uniform.plan.default=w3g16_asym"
    shown = good(mix("run", "r.yaml", "--set", override))
    assert "runs/r/report.html" in shown
    assert "uniform" in shown
    folder = tmp_path / "runs" / "r"
    # The run's recipe holds what was overridden.
    assert recipe.load(folder / "recipe.yaml") == recipe.load(tmp_path / "r.yaml", [override])
    assert good(mix("explain", "r.yaml")).count("waits") == 0  # the run has its importance now
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    assert "uniform" in good(mix("report", "runs/r"))
    assert (folder / "report.html").read_bytes() == before
    assert "run: runs/r" in good(mix("ls"))


def test_recipes_that_come_along(mix: Cli, tmp_path: Path) -> None:
    shown = good(mix("ls"))
    known = recipe.catalogue()
    assert all(name in shown for name in known)
    assert good(mix("validate", "quickstart", "table3_llama_8b")).count("valid") == 2
    good(mix("cp", "table3_llama_8b", "deep/mine.yaml"))
    assert recipe.load(tmp_path / "deep" / "mine.yaml") == recipe.load(known["paper/table3_llama_8b"])
    again = mix("cp", "quickstart", "deep/mine.yaml")
    assert (again.code, "is there already" in again.errors) == (2, True)
    assert "only_32_up" in good(mix("explain", "deep/mine.yaml"))


@pytest.mark.parametrize("preset", ["paper", "released", "aligned"])
def test_annotating_counts_what_it_skips(mix: Cli, preset: str) -> None:
    shown = good(mix("annotate", "bundled:held_out", "--preset", preset, "--out", "spans.jsonl"))
    assert "skipped:" in shown
    assert ("aligned against the released rule" in shown) == (preset == "aligned")
    # Cues read the trace alone: there is no annotation that two rules could read differently.
    heard = good(mix("annotate", "bundled:held_out", "--preset", preset, "--annotator", "cues", "--out", "spans.jsonl"))
    assert "against" not in heard


def test_a_trace_without_spans_is_counted(mix: Cli, tmp_path: Path) -> None:
    silent = tiny.TRACES[0] | {"annotated": "no tags here"}
    tiny.write_traces(tmp_path / "t.jsonl", silent, tiny.TRACES[1])
    assert "traces without a span: 1" in good(mix("annotate", "t.jsonl", "--out", "s.jsonl"))


def test_a_trace_longer_than_the_context(mix: Cli, tiny_checkpoint: Path, tmp_path: Path) -> None:
    long = {key: value if key in ("id", "dataset") else value * 8 for key, value in tiny.TRACES[0].items()}
    tiny.write_traces(tmp_path / "t.jsonl", long, tiny.TRACES[1])
    good(mix("annotate", "t.jsonl", "--preset", "aligned", "--out", "s.jsonl"))
    good(mix("attribute", "s.jsonl", "--out", "imp", "--model", tiny_checkpoint))
    importance = json.loads((tmp_path / "imp" / "importance.json").read_text())
    assert importance["cut_traces"] == 1
    assert importance["skipped"]["beyond_context"] > 0
    evaluated = mix(
        "evaluate", tiny_checkpoint, "--reference", tiny_checkpoint, "--traces", "t.jsonl", "--preset", "aligned"
    )
    assert "'cut_traces': 1" in good(evaluated)
    assert f"'beyond_context': {importance['skipped']['beyond_context']}" in evaluated.out


def test_a_span_at_the_very_first_character(mix: Cli, tmp_path: Path) -> None:
    """Nothing comes before it: no preceding tokens, and without <s> nothing that predicts its first token."""
    model = tiny.write_checkpoint(tmp_path / "model", bos=False)
    first = tiny.TRACES[1] | {"prompt": ""}
    tiny.write_traces(tmp_path / "t.jsonl", first)
    good(mix("annotate", "t.jsonl", "--out", "s.jsonl"))
    spans = json.loads((tmp_path / "s.jsonl").read_text())["spans"]
    assert spans[0] == {"behaviour": "adding_knowledge", "start": 0, "end": 33}
    good(mix("attribute", "s.jsonl", "--out", "imp", "--model", model, "--compare", "released"))
    for preset in ("", "_released"):
        importance = json.loads((tmp_path / "imp" / f"importance{preset}.json").read_text())
        assert importance["behaviours"]["adding_knowledge"]["spans"] == 1
        assert max(importance["behaviours"]["adding_knowledge"]["scores"]) > 0


# Mistakes


def refused(result: Result, *expected: str) -> None:
    """Exit code 2 and the error alone: one line, or one and a list."""
    assert result.code == 2, result
    assert "Traceback" not in result.errors
    told = result.errors[result.errors.index("error: ") :]
    for part in expected:
        assert part in told
    lines = told.strip().splitlines()
    assert all(line.startswith("  ") for line in lines[1:]), told


TRACE = tiny.TRACES[0]
BAD_TRACES: dict[str, tuple[Any, str]] = {
    "no annotation": ({k: v for k, v in TRACE.items() if k != "annotated"}, "'toy/apples-0' has no annotation"),
    "invented labels": (TRACE | {"annotated": '["pondering"] Wait ["end-section"]'}, "no trace has a span of"),
    "unclosed label": (TRACE | {"annotated": '["backtracking"] Wait'}, "no trace has a span of"),
    "empty annotation": (TRACE | {"annotated": ""}, "no trace has a span of"),
    "text that is not there": (
        TRACE | {"annotated": '["backtracking"] zzzzzzzz ["end-section"]'}, "{'low_coverage': 1}"
    ),
    "empty output": (TRACE | {"output": "\n"}, "trace 1 (apples-0): output is empty"),
    "no JSON": ("{nope", "bad.jsonl:1: not valid JSON"),
    "empty file": ("", "no traces in this file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TRACES)
def test_bad_traces(mix: Cli, tmp_path: Path, case: str) -> None:
    content, message = BAD_TRACES[case]
    (tmp_path / "bad.jsonl").write_text(content if isinstance(content, str) else json.dumps(content))
    refused(mix("annotate", "bad.jsonl", "--out", "s.jsonl"), message)
    assert not (tmp_path / "s.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("annotate gone.jsonl --out s.jsonl", "gone.jsonl: no such file"),
        ("annotate bundled:gone --out s.jsonl", "bundled sets are attribution, held_out"),
        ("annotate traces.jsonl --out folder", "folder: can't be written (Is a directory)"),
        ("annotate traces.jsonl --out traces.jsonl/s", "traces.jsonl/s: can't be written"),
        ("annotate traces.jsonl --out s.jsonl --preset mine", "preset: 'mine': Input should be"),
        ("annotate traces.jsonl --out s.jsonl --annotator gpt", "annotator: 'gpt': Input should be 'given', 'cues'"),
        ("annotate traces.jsonl --out s.jsonl --train traces.jsonl", "annotator given learns nothing"),
        ("make-traces --out m.jsonl --kind poems", "kinds: 'poems' is unknown, known are arithmetic"),
        ("attribute traces.jsonl --out imp --model MODEL", "key 'spans' is missing"),
        ("attribute gone.jsonl --out imp --model MODEL", "gone.jsonl: no such file"),
        ("attribute spans.jsonl --out imp --model MODEL --dtype int4", "'int4' is not one of float32"),
        ("attribute spans.jsonl --out imp --model MODEL --preset x --compare y", "2 problems"),
        ("attribute spans.jsonl --out imp --model gpt2", "GPT2LMHeadModel has no linear modules in its blocks"),
        ("attribute spans.jsonl --out imp --model junk.gguf", "junk.gguf: truncated or damaged GGUF file"),
        ("attribute spans.jsonl --out imp --model folder", "no config.json in this folder"),
        ("attribute spans.jsonl --out imp --model MODEL --max-tokens 2", "'beyond_context'"),
        ("trace gone.jsonl --out t.jsonl --model MODEL", "gone.jsonl: can't be read"),
        ("trace empty.jsonl --out t.jsonl --model MODEL", "no prompts in this file"),
        ("trace traces.jsonl --out t.jsonl --model MODEL --chat-template", "no chat template; leave the option out"),
        ("bench MODEL --prompts chat --out b", "no chat template; give --prompts paper"),
        ("trace twice.jsonl --out t.jsonl --model MODEL", "'toy/apples-0' stands twice"),
        ("trace traces.jsonl --out notes.txt --model MODEL", "notes.txt:1: not valid JSON"),
        ("plan r.yaml", "--variant: choose one of original, uniform, least"),
        ("plan r.yaml --variant none", "--variant: choose one of original, uniform, least"),
        ("plan r.yaml --variant least", "there is no importance yet"),
        ("plan r.yaml --variant least --importance traces.jsonl", "traces.jsonl"),
        ("plan r.yaml --variant least --importance empty.json", "empty.json: "),
        ("plan gone.yaml", "no such recipe; there are"),
        ("compress empty.json --out c", "empty.json: key 'model' is missing"),
        ("compress list.json --out c", "list.json: key 'model' is missing"),
        ("compress gone.json --out c", "gone.json: can't be read"),
        ("compress plan.json --out folder", "mixprec did not make it"),
        ("compress plan.json --out MODEL", "is the source checkpoint itself"),
        ("evaluate MODEL --reference MODEL", "nothing to evaluate on; give traces, text or benchmarks"),
        ("evaluate MODEL --reference MODEL --text gone.txt", "gone.txt: can't be read"),
        ("evaluate MODEL --reference MODEL --text empty.txt", "empty.txt: the text is empty"),
        ("evaluate gone --reference MODEL --text text.txt", "'gone' is no folder"),
        ("report folder", "folder: no finished run (summary.json is missing)"),
        ("cp gone x.yaml", "gone: no such recipe"),
        ("cp quickstart traces.jsonl", "is there already"),
        ("validate traces.jsonl", "traces.jsonl"),
        ("run gone", "no such recipe"),
        ("run r.yaml --out traces.jsonl", "can't be written"),
        ("run r.yaml --set model.dtpye=x --set foo=1", "model.dtpye: unknown key; did you mean dtype?"),
        ("run r.yaml --set model.dtype", "write key.sub=value"),
        ("run r.yaml --set traces.source=data:x.jsonl", "no data folder is known; give --data FOLDER"),
        ("run r.yaml --set traces.source=data:x.jsonl --data folder", "data:x.jsonl: folder/x.jsonl does not exist"),
    ],
)
def test_mistakes(
    mix: Cli,
    monkeypatch: pytest.MonkeyPatch,
    tiny_checkpoint: Path,
    traces: Path,
    tmp_path: Path,
    arguments: str,
    message: str,
) -> None:
    monkeypatch.delenv(recipe.DATA_VARIABLE, raising=False)
    tiny.write_recipe(tmp_path / "r.yaml", tiny_checkpoint, traces)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    for name, content in (
        ("junk.gguf", "GGUF junk"), ("empty.jsonl", "\n"), ("empty.json", "{}"), ("list.json", "[1]"),
        ("empty.txt", ""), ("notes.txt", "notes"),
    ):  # fmt: skip
        (tmp_path / name).write_text(content)
    tiny.write_traces(tmp_path / "twice.jsonl", tiny.TRACES[0], tiny.TRACES[0])
    if "gpt2" in arguments:
        GPT2Config(n_layer=1, n_embd=8, n_head=1).save_pretrained(tmp_path / "gpt2")
    if "spans.jsonl" in arguments:
        good(mix("annotate", "traces.jsonl", "--out", "spans.jsonl"))
    if "plan.json" in arguments:
        good(mix("plan", "r.yaml", "--variant", "uniform", "--out", "plan.json"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    words = [str(tiny_checkpoint) if word == "MODEL" else word for word in arguments.split()]
    refused(mix(*words), message)
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("quickstart", "--gpus", "4"), "--gpus: goes with --on ray, slurm or torchrun"),
        (("quickstart", "--machines", "4"), "--machines: goes with --on"),
        (("quickstart", "--on", "kubernetes"), "--on kubernetes: not known; choose one of ray, slurm, torchrun"),
        (("--attribution", "smollm2-135m-instruct", "--on", "ray"), "--on ray: goes with a recipe"),
    ],
)
def test_what_a_cluster_takes_is_asked_for_with_a_cluster(mix: Cli, given: tuple[str, ...], told: str) -> None:
    result = mix("explain", *given)
    refused(result, told)
    assert not result.out  # nothing is shown first


def test_mistakes_in_a_recipe_are_told_together(mix: Cli, tiny_checkpoint: Path, traces: Path, tmp_path: Path) -> None:
    tiny.write_recipe(tmp_path / "r.yaml", tiny_checkpoint, traces, evalute={}, modle={"id": "x"})
    for verb in ("run", "validate", "explain", "plan"):
        refused(mix(verb, "r.yaml"), "2 problems", "evalute: unknown key; did you mean evaluate?", "modle: unknown key")


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([{"match": "3_up", "format": "keep"}], ["plan.rules[0] (3_up)", "matches no module", "layers are 1 to 2"]),
        (
            [{"match": "last_mlp", "format": "keep"}, {"match": "*_up", "format": "w4g16"}],
            ["model.layers.1.mlp.up_proj", "plan.rules[0] (last_mlp) says keep", "plan.rules[1] (*_up) says w4g16"],
        ),
    ],
)
def test_rules_that_miss_or_collide(
    mix: Cli, tiny_checkpoint: Path, traces: Path, tmp_path: Path, rules: list[Any], expected: list[str]
) -> None:
    variants = {"a": {"plan": {"default": "w3g16", "rules": rules}}}
    tiny.write_recipe(tmp_path / "r.yaml", tiny_checkpoint, traces, variants=variants)
    for verb in ("run", "validate", "explain", "plan"):
        refused(mix(verb, "r.yaml"), *expected)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (None, "the tokenizer has no chat template"),
        ("{{ raise_exception('give a system turn') }}", "can't be filled in (give a system turn)"),
        ("{% if %}", "can't be filled in ("),
        ({"tool_use": "{{ messages }}"}, "can't be filled in ("),
    ],
)
def test_a_chat_template_that_is_not_there_is_told_before_weights_are_read(
    mix: Cli,
    tiny_checkpoint: Path,
    traces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    template: Any,
    why: str,
) -> None:
    model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    words = tiny.tokenizer()
    words.chat_template = template
    words.save_pretrained(model)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights are read"))
    (tmp_path / "folio.jsonl").write_text('{"example_id": 1, "premises": "A.", "conclusion": "A.", "label": "True"}')
    tiny.write_recipe(
        tmp_path / "r.yaml", model, traces,
        evaluate={"benchmarks": [{"name": "folio", "source": "folio.jsonl"}], "prompts": "chat"},
    )  # fmt: skip
    remedies = {
        ("trace", traces, "--model", model, "--chat-template", "--out", "t.jsonl"): "leave the option out",
        ("bench", model, "--benchmark", "folio", "--files", ".", "--prompts", "chat", "--out", "b"): "--prompts paper",
        ("run", "r.yaml", "--out", "r"): "write prompts: paper in evaluate",
    }
    for command, remedy in remedies.items():
        refused(mix(*command), str(model), why, remedy)
    assert not (tmp_path / "t.jsonl").exists() and not (tmp_path / "r" / "importance").exists()


def test_traces_of_another_model_or_prompt_are_refused(mix: Cli, tiny_checkpoint: Path, tmp_path: Path) -> None:
    prompts = [{"id": trace["id"], "prompt": trace["prompt"]} for trace in tiny.TRACES[:2]]
    tiny.write_traces(tmp_path / "p.jsonl", *prompts)
    other = tiny.write_checkpoint(tmp_path / "other", seed=1)
    command = ("trace", "p.jsonl", "--out", "t.jsonl", "--max-new-tokens", 8)
    good(mix(*command, "--model", tiny_checkpoint))
    written = (tmp_path / "t.jsonl").read_bytes()
    refused(mix(*command, "--model", other), "t.jsonl: trace 'apples-0' was made with identity", "give another --out")
    refused(mix(*command, "--model", tiny_checkpoint, "--seed", 1), "made with seed 0, this run has 1")
    tiny.write_traces(tmp_path / "p.jsonl", {**prompts[0], "prompt": "Something else."}, prompts[1])
    refused(mix(*command, "--model", tiny_checkpoint), "'apples-0' was made from another text than its prompt has now")
    tiny.write_traces(tmp_path / "p.jsonl", prompts[1])
    assert "t.jsonl: 2 traces; 1 of them of no prompt in p.jsonl" in good(mix(*command, "--model", tiny_checkpoint))
    assert (tmp_path / "t.jsonl").read_bytes() == written


@pytest.mark.parametrize("damage", ["cut", "no offsets"])
def test_broken_models(mix: Cli, tiny_checkpoint: Path, traces: Path, tmp_path: Path, damage: str) -> None:
    model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    if damage == "cut":
        weights = (model / "model.safetensors").read_bytes()
        (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        expected = "broken safetensors file"
    else:
        (model / "tokenizer.json").unlink()
        (model / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
        expected = "gives no character offsets"
    tiny.write_recipe(tmp_path / "r.yaml", model, traces)
    refused(mix("run", "r.yaml"), f"model.id: {model}", expected)


def test_another_models_checkpoint(mix: Cli, tiny_checkpoint: Path, traces: Path, tmp_path: Path) -> None:
    for size in (100, 500):
        other = tmp_path / f"other{size}"
        tiny.build(vocab_size=size).model.save_pretrained(other)
        for file in tiny_checkpoint.glob("tokenizer*"):
            shutil.copyfile(file, other / file.name)
        assert mix("evaluate", other, "--reference", tiny_checkpoint, "--traces", traces).code == 2


def test_a_checkpoint_is_looked_at_before_its_original(mix: Cli, traces: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    refused(mix("evaluate", "broken", "--reference", "nowhere", "--traces", traces), "broken")


def test_usage_errors(mix: Cli) -> None:
    for arguments in (
        ["annotate", "--frobnicate"],
        ["frobnicate"],
        ["compress"],
        ["evaluate", "x", "--text-tokens", "1"],
    ):
        result = mix(*arguments)
        assert result.code == 2
        assert "Usage: mixprec" in result.errors
        assert "Traceback" not in result.errors


def test_our_own_bugs_keep_their_trace(mix: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(pipeline, "checked", broken)
    with pytest.raises(RuntimeError, match="a bug"):  # Python prints its trace and exits with 1
        mix("explain", "quickstart")


@pytest.mark.slow
def test_a_full_disk(tiny_checkpoint: Path, traces: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    # A small file system that only the child sees and that goes with it.
    inside = ["unshare", "--mount", "--map-root-user", "sh", "-ec"]
    mount = 'mount -t tmpfs -o size=150k none "$0"; '
    if shutil.which("unshare") is None or subprocess.run([*inside, mount, str(small)], check=False).returncode:
        pytest.skip("needs unshare and the right to mount a small file system")
    # Checkpoints that don't fit are told before any work; what fills up here is the importance.
    tiny.write_recipe(tmp_path / "r.yaml", tiny_checkpoint, traces, variants={}, evaluate=None)
    command = [sys.executable, "-m", "mixprec", "run", str(tmp_path / "r.yaml"), "--out", str(small / "run")]
    done = subprocess.run(
        [*inside, mount + 'exec "$@"', str(small), *command], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert "the disk is full; free some space and run the same command again" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_in_a_folder_of_markup_ends_well(mix: Cli, tiny_checkpoint: Path, traces: Path, tmp_path: Path) -> None:
    """Brackets in paths, titles and labels are text; control characters are shown."""
    folder = tmp_path / "[" / "b]" / "[bold]:smile:"
    folder.mkdir(parents=True)
    tiny.write_recipe(folder / "[red].yaml", tiny_checkpoint, traces, title="[/b]\x1b[31m <b>|`", importance=None,
                      variants={"uniform": {"plan": {"default": "w2g16"}}})  # fmt: skip
    shown = good(mix("run", folder / "[red].yaml", "--out", folder / "[run]"))
    assert str(folder / "[run]" / "report.html") in shown.replace("\n", "")
    for verb in (
        ["report", folder / "[run]"],
        ["validate", folder / "[red].yaml"],
        ["explain", folder / "[red].yaml"],
    ):
        assert "\x1b" not in good(mix(*verb))
    assert "<b>|" not in (folder / "[run]" / "report.html").read_text()
    wrong = mix("run", folder / "[no].yaml")
    assert wrong.code == 2
    assert "[no].yaml" in wrong.errors.replace("\n", "")


def test_explain_and_validate_convert_no_gguf(mix: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    converted = good(mix("explain", "quickstart"))
    monkeypatch.setenv("MIXPREC_CACHE", str(tmp_path / "cache"))
    without = good(mix("explain", "quickstart"))
    assert without.partition("Data")[0].rstrip() == converted.partition("Data")[0].rstrip()
    counted, estimated = (
        int(re.findall(r"24 traces +(?:≈ )?([\d,]+)", each)[0].replace(",", "")) for each in (converted, without)
    )
    assert "≈" not in converted
    assert abs(estimated - counted) < 0.1 * counted  # its tokenizer is converted too
    good(mix("validate", "quickstart"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sensitivity r.yaml --out s --scorer measured", "the recipe says scorer, so the option would be ignored"),
        ("sensitivity r.yaml --out s --format w2g16 --samples 16", "the recipe says format, samples, so"),
        ("sensitivity --out s --set model.dtype=bfloat16 --format w2g16 --text t", "--set changes a recipe's keys"),
        ("pareto r.yaml --run --scores s.json", "--scores: with --run"),
        ("pareto r.yaml --run --importance i.json", "--importance: with --run"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    mix: Cli, tiny_checkpoint: Path, traces: Path, tmp_path: Path, arguments: str, message: str
) -> None:
    calibration = {"traces": str(traces), "samples": 2, "tokens": 32}
    budget = {"effective_bits": 3, "candidates": ["w2g16", "w4g16"], "scores": "sensitivity"}
    tiny.write_recipe(
        tmp_path / "r.yaml", tiny_checkpoint, traces,
        compress={"method": "gptq", "calibration": calibration}, sensitivity={"formats": ["w2g16", "w4g16"]},
        variants={"b": {"plan": {"budget": budget}}},
    )  # fmt: skip
    refused(mix(*arguments.split()), message)
