"""Methods are known by their records alone: no other file asks for a name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

import mixprec
from mixprec.compress.methods import SOLVERS
from mixprec.plan.methods import METHODS, Method, MethodRecord, Needs, needing_inputs, pruners, solving, using_inputs
from mixprec.plan.schema import Treatment

ROOT = Path(mixprec.__path__[0])
#: Where names of methods belong: the records, the solvers; and other tools' words for theirs.
OWN = ["plan/methods.py", "compress/methods.py", *(f"compress/{name}.py" for name in METHODS)]
OTHERS = ("contrib", "recipe/engines.py", "checkpoint/")


def strings(node: ast.AST) -> set[str]:
    return {each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def questions(tree: ast.AST) -> Iterator[str]:
    """What asks for a method by its name: comparisons with something called method, and lists of names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and "method" in ast.unparse(node).lower() and strings(node) & {*METHODS}:
            yield ast.unparse(node)
        elif isinstance(node, ast.Dict):
            keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            if len(keys & {*METHODS}) > 1:
                yield ast.unparse(node)
        elif isinstance(node, ast.Set | ast.Tuple | ast.List):
            names = {each.value for each in node.elts if isinstance(each, ast.Constant)}
            if len(names & {*METHODS}) > 1:
                yield ast.unparse(node)


@pytest.mark.parametrize(
    "code",
    ['treatment.method == "awq"', 'method in ("gptq", "gptaq")', '{"rtn": 1, "gptq": 2}[name]', 'x = {"rtn", "awq"}'],
)
def test_questions_are_found(code: str) -> None:
    assert list(questions(ast.parse(code)))


def test_no_file_asks_for_a_method_by_its_name() -> None:
    found = {}
    for path in ROOT.rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if name not in OWN and not name.startswith(OTHERS):
            asked = list(questions(ast.parse(path.read_text(encoding="utf-8"))))
            found |= {name: asked} if asked else {}
    assert not found


def test_every_method_has_a_record_a_solver_a_file_and_a_row_in_the_documentation() -> None:
    assert [*METHODS] == [*SOLVERS]
    assert all(name == method.name for name, method in METHODS.items())
    rows = (ROOT.parent / "docs" / "compression.md").read_text(encoding="utf-8")
    for name in METHODS:
        assert (ROOT / "compress" / f"{name}.py").is_file()
        assert f"| `{name}`" in rows


def test_other_methods_that_records_name_are_there() -> None:
    for method in METHODS.values():
        for other in (method.on_original_inputs, method.packed):
            assert other is None or (other in METHODS and other != method.name)


def test_who_looks_at_inputs() -> None:
    assert needing_inputs(METHODS) == {"gptq", "gptaq", "awq", "anyk", "sparsegpt", "wanda"}
    assert using_inputs(METHODS) == needing_inputs(METHODS) | {"ggml"}
    assert solving(METHODS) == {"gptq", "gptaq", "awq", "sparsegpt"}
    assert list(pruners()) == ["sparsegpt", "wanda", "magnitude"]


@pytest.mark.parametrize("name", ["gtpq", 3, None, ["rtn"], {}])
def test_an_unknown_name_is_refused_with_those_that_there_are(name: object) -> None:
    with pytest.raises(ValidationError, match=r"Input should be 'rtn', 'gptq', .*'wanda' or 'magnitude'"):
        TypeAdapter(Method).validate_python(name)


def test_a_method_that_was_registered_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "toy", MethodRecord("toy", "Toy", needs=Needs("always", original_states=True)))
    assert TypeAdapter(Method).validate_python("toy") == "toy"
    assert "toy" in needing_inputs(METHODS)
    assert Treatment.model_validate({"format": "w3g64", "method": "toy"}).problem() is None
    problem = Treatment.model_validate({"format": "any4g64", "method": "toy"}).problem()
    assert problem is not None
    assert "any4 and any3 need method anyk" in problem


@pytest.mark.parametrize(
    ("format", "sparsity", "method", "problem"),
    [
        ("any4g64", None, "rtn", "format any4g64 and method rtn don't go together; any4 and any3 need method anyk"),
        ("w3g64", None, "anyk", "format w3g64 and method anyk don't go together; any4 and any3 need method anyk"),
        ("q4_k", None, "anyk", "format q4_k and method anyk don't go together; any4 and any3 need method anyk"),
        ("any3", None, "ggml", "format any3 and method ggml don't go together; any4 and any3 need method anyk"),
        ("q4_k", None, "gptq", "llama.cpp's types, such as q4_k, and method ggml need one another"),
        ("w3g64", None, "ggml", "llama.cpp's types, such as q4_k, and method ggml need one another"),
        ("keep", 0.5, "ggml", "method ggml sets no weights to zero; sparsity needs sparsegpt, wanda, magnitude"),
        ("w3g64", 0.5, "awq", "method awq sets no weights to zero; sparsity needs sparsegpt, wanda, magnitude"),
        ("w3g64", None, "sparsegpt", "method sparsegpt needs a sparsity, such as 0.5 or 2:4"),
        ("w3g64", None, "wanda", "method wanda needs a sparsity, such as 0.5 or 2:4"),
        ("w3g64", 0.5, "wanda", "method wanda does not quantize; sparsegpt prunes and quantizes jointly"),
        ("w3g64", 0.5, "magnitude", "method magnitude does not quantize; sparsegpt prunes and quantizes jointly"),
    ],
)
def test_what_no_method_can_do(format: str, sparsity: float | None, method: str, problem: str) -> None:
    found = Treatment.model_validate({"format": format, "sparsity": sparsity, "method": method}).problem()
    assert found is not None
    assert found.endswith(problem)


def test_gptaq_is_gptq_where_inputs_are_those_of_the_original() -> None:
    treatment = Treatment.model_validate({"format": "w3g64", "method": "gptaq"})
    assert treatment.on_original_inputs == Treatment.model_validate({"format": "w3g64", "method": "gptq"})
    rtn = Treatment.model_validate({"format": "w3g64", "method": "rtn"})
    assert rtn.on_original_inputs is rtn
