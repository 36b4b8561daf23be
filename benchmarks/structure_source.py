"""What structure.py reads off the source: lines, files that walk through blocks, files that import one another."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

#: Module's name (mixprec.core.artifacts; a package's __init__ by the package's name) -> its text.
Tree = Mapping[str, str]


def tree(package: Path) -> Tree:
    """All modules of a package, in order."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path.read_text(encoding="utf-8")
    return found


def _outside(name: str) -> bool:
    return ".contrib" in name


def lines(modules: Tree, contrib: bool = False) -> int:
    """Lines of the core, or of contrib."""
    return sum(text.count("\n") for name, text in modules.items() if _outside(name) == contrib)


def notebook_lines(path: Path) -> int:
    """Lines of code in a notebook's cells: neither blank nor comments."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [line for cell in cells if cell["cell_type"] == "code" for line in "".join(cell["source"]).splitlines()]
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in code)


def walks(modules: Tree) -> list[str]:
    """Modules that run a model's blocks one after another."""
    found = []
    for name, text in modules.items():
        if not _outside(name) and any(_walks(node) for node in ast.walk(ast.parse(text))):
            found.append(name)
    return found


def _walks(node: ast.AST) -> bool:
    """``with opened.block(i) as it``, a loop over ``x.layers`` that calls its variable, or ``x.layers[i](hidden)``."""
    if isinstance(node, ast.With):
        return any(_is_call_of(item.context_expr, "block") and item.optional_vars for item in node.items)
    if isinstance(node, ast.For):
        over = {each.attr for each in ast.walk(node.iter) if isinstance(each, ast.Attribute)}
        names = {each.id for each in ast.walk(node.target) if isinstance(each, ast.Name)}
        called = {call.func.id for call in _calls(node) if isinstance(call.func, ast.Name)}
        return bool(over & {"layers", "blocks"} and names & called)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
        value = node.func.value
        return isinstance(value, ast.Attribute) and value.attr in ("layers", "blocks")
    return False


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    return (each for each in ast.walk(node) if isinstance(each, ast.Call))


def _is_call_of(node: ast.expr, method: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method


def circles(modules: Tree, types: bool = False) -> list[list[str]]:
    """Groups of modules that import one another, directly or by way of others; the largest first."""
    edges = {name: set(_imports(name, text, modules, types)) - {name} for name, text in modules.items()}
    reach = {name: _reach(name, edges) for name in edges}
    groups: list[list[str]] = []
    for name in edges:
        group = sorted(other for other in reach[name] if name in reach[other])
        if group and group not in groups:
            groups.append(group)
    return sorted(groups, key=lambda group: (-len(group), group))


def _reach(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    """All that is imported from ``start`` on; ``start`` itself where a circle leads back to it."""
    found: set[str] = set()
    left = list(edges[start])
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left.extend(edges[name])
    return found


def _imports(name: str, text: str, modules: Tree, types: bool) -> Iterator[str]:
    """The package's modules that a module imports. Importing a submodule is no import of its package's __init__."""
    module = ast.parse(text)
    unseen = set()
    if not types:
        guards = [
            each for each in ast.walk(module) if isinstance(each, ast.If) and "TYPE_CHECKING" in ast.dump(each.test)
        ]
        unseen = {inner for guard in guards for statement in guard.body for inner in ast.walk(statement)}
    is_package = any(other.startswith(f"{name}.") for other in modules)
    for node in ast.walk(module):
        if node in unseen:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                parts = name.split(".") if is_package else name.split(".")[:-1]
                origin = ".".join([*parts[: len(parts) - node.level + 1], *([origin] if origin else [])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield from [inner] if inner in modules else [origin] if origin in modules else []
