"""Names of modules stand in the families' tables alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import mixprec
from mixprec.models.arch import FAMILIES

SOURCE = Path(mixprec.__file__).parent
#: Files whose strings may name modules -> which, and why not the table.
KNOWN = {
    "models/head.py": {"lm_head"},  # in keys of configurations
    "models/complete.py": {"rotary_emb"},  # buffers that old checkpoints hold
    "models/experts.py": {"gate_proj", "up_proj", "down_proj"},  # what a stack of experts is taken apart into
    "models/renames.py": {"gate_proj", "up_proj", "down_proj"},  # and how checkpoints stack them
    "checkpoint/gptq.py": {"lm_head"},  # a key of GPTQ's configuration
    "checkpoint/packings/gptq.py": {"lm_head"},  # the same
    "contrib/export/gptqmodel.py": {"lm_head"},  # the same
}
#: The tables, and programs that run in other quantizers' environments, without mixprec.
LEFT_OUT = ("models/arch/", "contrib/peers/runner/")


def names() -> set[str]:
    """What a table calls modules: last parts of their paths, and full names of what lies outside the blocks."""
    found: set[str] = set()
    for family in FAMILIES.values():
        found |= {family.blocks, family.norm, family.head, *(shared.fused or "" for shared in family.shared)}
        paths = [row.path for rows in family.parts.values() for row in rows]
        paths += [*family.norms, *family.head_norms, family.embedding, *family.around]
        found |= {path.rpartition(".")[2] for path in paths} | {path.partition(".")[0] for path in family.head_norms}
    return found - {""}


def told(tree: ast.AST) -> Iterator[str]:
    """Strings that are no docstrings, and attributes."""
    docs = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value
        elif isinstance(node, ast.Attribute):
            yield node.attr


def found_in(text: str) -> set[str]:
    pattern = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, sorted(names(), key=len, reverse=True)))})(?!\w)")
    return {match for string in told(ast.parse(text)) for match in pattern.findall(string)}


def test_no_other_file_knows_a_modules_name() -> None:
    guilty = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if not name.startswith(LEFT_OUT):
            here = found_in(path.read_text(encoding="utf-8"))
            assert here >= KNOWN.get(name, set())
            guilty[name] = here - KNOWN.get(name, set())
    assert {name: here for name, here in guilty.items() if here} == {}


def test_names_would_be_found() -> None:
    assert found_in('"""Of model.layers and q_proj."""\nx = 1') == set()
    assert found_in('x = f"model.layers.{index}."') == {"model.layers"}
    assert found_in("x = model.lm_head.weight, 'a.self_attn.k_proj'") == {"lm_head", "self_attn", "k_proj"}
    assert found_in("x = 're:.*input_layernorm$'") == {"input_layernorm"}
