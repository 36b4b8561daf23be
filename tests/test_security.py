"""What a stranger's files try, and what the source never does. docs/security.md lists these tests and the others."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from answering import serving

import mixprec as mp
from mixprec import cli
from mixprec.core.errors import UserError
from mixprec.evaluate.engines.templates import require, templated
from mixprec.models.model import Model
from mixprec.pipeline.verify import verify
from mixprec.recipe import Recipe

ROOT = Path(__file__).parents[1] / "mixprec"
SOURCES = sorted(ROOT.rglob("*.py"))
KEY = "sk-secret-0123456789abcdef"


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """The calls in a file, by their dotted names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


# What the source never does

#: Modules that read or run code, or listen.
_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "http.server",
    "socketserver",
    "code",
}
_CALLS = {
    "eval", "exec", "compile", "os.system", "os.popen", "torch.load", "np.load", "numpy.load", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "tempfile.mktemp",
}  # fmt: skip


def told(tree: ast.AST) -> list[str]:
    """What a file does that none may."""
    found = []
    for node in ast.walk(tree):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"imports {name}" for name in names if name in _MODULES]
    for name, call in calls(tree):
        keywords = {each.arg: ast.unparse(each.value) for each in call.keywords}
        if name in _CALLS or name.endswith((".listen", ".serve_forever")):
            found.append(f"calls {name}")
        if keywords.get("shell", "False") != "False":
            found.append(f"{name} with a shell")
        if keywords.get("trust_remote_code", "False") != "False":
            found.append(f"{name} trusts remote code")
        loads = name.split(".")[0].startswith("Auto") and name.endswith(("from_pretrained", "from_config"))
        if loads and name.endswith("from_pretrained") and "trust_remote_code" not in keywords:
            found.append(f"{name} leaves open whether it trusts remote code")
        if keywords.get("verify") == "False" or keywords.get("follow_redirects", "False") != "False":
            found.append(f"{name} follows redirections, or trusts any server")
    return found


def test_no_pickle_no_shell_no_remote_code_no_server() -> None:
    found = {path.relative_to(ROOT).as_posix(): told(ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES}
    assert len(found) > 400 and {name: wrong for name, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "import http.server", "eval('1')", "torch.load('x')",
        "s.listen()", "subprocess.run('ls', shell=True)", "yaml.load(text)", "AutoModel.from_pretrained('x')",
        "AutoConfig.from_pretrained('x', trust_remote_code=True)", "x.load(y, trust_remote_code=flag)",
        "Client(follow_redirects=True)",
    ],
)  # fmt: skip
def test_what_is_looked_for_is_found(text: str) -> None:
    assert told(ast.parse(text))


# Code in a model's folder

_ATTACK = "from pathlib import Path\nPath({!r}).write_text('run')\nclass Own: pass\nclass OwnConfig: pass\n"


@pytest.mark.parametrize("kind", ["llama", "own"])
def test_code_in_a_models_folder_is_not_run(
    kind: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, mark = tmp_path / "model", tmp_path / "mark"
    folder.mkdir()
    for path in tiny_checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", "own.Own"]}
    for name, key in (("config.json", "model_type"), ("tokenizer_config.json", "tokenizer_class")):
        data = json.loads((folder / name).read_text())
        data |= {"auto_map": names, "trust_remote_code": True}
        data |= {} if kind == "llama" else {key: "Own"}
        (folder / name).write_text(json.dumps(data))
    for name in ("own", "configuration_own", "modeling_own", "tokenization_own"):
        (folder / f"{name}.py").write_text(_ATTACK.format(str(mark)))
    traces = tiny.write_traces(tmp_path / "traces.jsonl")
    for command in (["inspect", folder], ["evaluate", folder, "--reference", folder, "--traces", traces]):
        monkeypatch.setattr(sys, "argv", ["mixprec", *map(str, command)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code in ((0, None) if kind == "llama" else (0, None, 2)), capfd.readouterr().err
    assert not mark.exists()


@pytest.mark.parametrize("where", ["model", "compress", "evaluate", "trust_remote_code"])
def test_no_recipe_turns_remote_code_on(where: str) -> None:
    data: dict[str, Any] = {"model": {"id": "a/b"}, "plan": {"default": "w4g64"}}
    if where == "trust_remote_code":
        data[where] = True
    else:
        data.setdefault(where, {})["trust_remote_code"] = True
    with pytest.raises(ValueError, match=r"trust_remote_code"):
        Recipe.model_validate(data)


# Chat templates


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
        "{{ lipsum.__globals__['os'].popen('touch MARK').read() }}",
        "{{ raise_exception.__globals__['__builtins__']['open']('MARK', 'w') }}",
        "{% set x = messages.append('x') %}{{ ''.format.__self__.__class__ }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{% for n in range(999999999999) %}x{% endfor %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_stays_in_its_sandbox(template: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    words = tiny.tokenizer()
    words.chat_template = template.replace("MARK", str(mark))
    try:
        text = templated(words, [{"role": "user", "content": "x"}])
    except UserError as problem:
        assert "chat template can't be filled in" in str(problem)
    else:
        assert not any(each in text for each in ("subclass", "<class", "root:", "builtin"))
    assert not mark.exists()


def test_a_template_of_a_models_folder_stays_in_it_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder, mark = tmp_path / "model", tmp_path / "mark"
    folder.mkdir()
    for path in tiny_checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "chat_template.jinja").write_text(f"{{{{ cycler.__init__.__globals__.os.system('touch {mark}') }}}}")
    with pytest.raises(UserError, match="chat template can't be filled in"):
        require(Model(folder), "--chat-template", "leave it out")
    assert not mark.exists()


# Paths


def test_no_name_in_a_record_leads_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("mine")
    for name in ("../outside", str(tmp_path / "outside"), "a/../../outside"):
        for folder, file, key in (("checkpoint", "mixprec.json", "files"), ("run", ".stages/a.json", "outputs")):
            path = tmp_path / folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            known = {"sha256": "0" * 64, "bytes": 4} if key == "files" else "0" * 64
            path.write_text(json.dumps({key: {name: known}}))
            with pytest.raises(UserError, match="leads out of the folder"):
                verify(tmp_path / folder)


# Keys


@pytest.mark.parametrize("status", [200, 307, 401, 500])
def test_a_key_is_nowhere_in_a_run(
    status: int,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Whatever the server does with it: repeat it in an answer's errors, send us elsewhere."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    annotated = {trace["output"].partition("\n</think>")[0]: trace["annotated"] for trace in tiny.TRACES}
    with serving() as (judge, url), serving() as (other, elsewhere):

        def reply(body: dict[str, Any], _: int) -> tuple[int, Any, dict[str, str]]:
            asked = body["messages"][-1]["content"]
            text = next((annotated[each] for each in annotated if each in asked), "")
            good = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}
            bad = {"error": {"message": f"what is Bearer {KEY}?"}}
            return status, good if status == 200 else bad, {"Location": f"{elsewhere}/chat/completions"}

        judge.reply = reply
        path = tiny.write_recipe(
            tmp_path / "r.yaml", tiny_checkpoint, tiny.write_traces(tmp_path / "t.jsonl"), variants=None, evaluate=None,
            traces={"source": str(tmp_path / "t.jsonl"), "judge": {"url": url, "model": "j", "retries": 0}},
        )  # fmt: skip
        monkeypatch.setattr("mixprec.pipeline.run.write_report", lambda _: None)
        try:
            mp.run(path, out=tmp_path / "run")
            assert status == 200
        except UserError as problem:
            assert status != 200 and KEY not in str(problem)
        assert judge.headers and all(each["Authorization"] == f"Bearer {KEY}" for each in judge.headers)
        assert other.bodies == []
    shown = capfd.readouterr()
    assert KEY not in shown.out + shown.err
    written = [each for each in (tmp_path / "run").rglob("*") if each.is_file()]
    assert (tmp_path / "run" / "events.jsonl") in written
    assert [each.name for each in written if KEY.encode() in each.read_bytes()] == []
