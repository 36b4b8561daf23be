"""JSON and YAML of unknown origin: read in bounded time and depth, without surprises, or refused with the line.

JSON is RFC 8259 with unique keys. YAML is the core schema of YAML 1.2 without tags: ``2:4``, ``no`` and
``2024-01-01`` are text (YAML 1.1 reads the sexagesimal number 124, false and a date), and keys are text as written.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import yaml

#: Levels of nesting; what walks through data afterwards may recurse.
_DEEPEST = 100
#: Values of a YAML text with all aliases written out, and its characters.
_MOST_VALUES, _LONGEST = 100_000, 1_000_000

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Malformed(ValueError):
    """A text that can't be read; ``line`` counts from 1, None where it is unknown."""

    def __init__(self, why: str, line: int | None = None) -> None:
        super().__init__(why)
        self.line = line

    def where(self, path: object) -> str:
        """The place for a message: ``file:line``."""
        return str(path) if self.line is None else f"{path}:{self.line}"


def parse_json(text: str, *, finite: bool = True) -> Any:
    """The data in a JSON text; ``finite``: NaN, Infinity and numbers that are too large for a float are refused.

    Raises Malformed, also for a key that is there twice, lone surrogates (no file takes them) and deep nesting.
    """
    try:
        data = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant if finite else None,
            parse_float=_finite if finite else None,
        )
    except json.JSONDecodeError as problem:
        raise Malformed(f"not valid JSON ({problem.msg})", problem.lineno) from None
    except RecursionError:
        raise Malformed(f"nested in more than {_DEEPEST} levels") from None
    except Malformed:
        raise
    except ValueError:  # Python's limit on the digits of an integer
        raise Malformed("holds an integer with thousands of digits") from None
    if text.count("[") + text.count("{") > _DEEPEST:
        _check_depth(data)
    if _ESCAPED_SURROGATE.search(text) and any(_SURROGATE.search(found) for found in _strings(data)):
        raise Malformed(r"holds half of a character (a lone surrogate such as \ud800)")
    return data


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two equal keys json keeps the last one and says nothing."""
    data = dict(pairs)
    if len(data) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Malformed(f"the key {twice!r} is there twice; remove one of them")
    return data


def _refuse_constant(name: str) -> NoReturn:
    raise Malformed(f"holds {name}, which is no number")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise Malformed(f"holds {digits[:40]}, which is too large a number")
    return value


def _check_depth(data: Any) -> None:
    level, depth = [data], 0
    while level:
        depth += 1
        if depth > _DEEPEST:
            raise Malformed(f"nested in more than {_DEEPEST} levels")
        level = [item for value in level for item in _items(value) if isinstance(item, dict | list)]


def _items(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _strings(data: Any) -> Iterator[str]:
    """All keys and texts; iterative, as data may be large."""
    stack = [data]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            stack += [*value, *value.values()]
        elif isinstance(value, list):
            stack += value


class _Core(yaml.SafeLoader):
    """Composes nodes only: no tags, bounded in depth and in the values that aliases stand for."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (PyYAML's own way)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._reached = self._count = 0
        self._sizes: dict[int, tuple[int, int]] = {}  # of a finished node: values and levels in it

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As PyYAML's; raises a MarkedYAMLError for what is refused."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            _refuse(f"the tag {event.tag} is not read; write the value plainly, text in quotes", event.start_mark)
        before, outside = self._count, self._reached
        self._depth += 1
        self._reached = self._depth
        self._check(event)
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                _refuse(f"*{event.anchor} stands within itself", event.start_mark)
            values, levels = self._sizes[id(node)]
            self._count += values
            self._reached += levels - 1
        else:
            self._count += 1
            self._sizes[id(node)] = self._count - before, self._reached - self._depth + 1
        self._check(event)
        self._depth -= 1
        self._reached = max(outside, self._reached)
        return node

    def _check(self, event: yaml.Event) -> None:
        if self._reached > _DEEPEST:
            _refuse(f"nested in more than {_DEEPEST} levels", event.start_mark)
        if self._count > _MOST_VALUES:
            _refuse(f"more than {_MOST_VALUES:,} values with all aliases written out", event.start_mark)


# https://yaml.org/spec/1.2.2/#103-core-schema
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOLEAN = re.compile(r"(true|True|TRUE)|false|False|FALSE")
for _pattern, _tag in ((_NULL, "null"), (_BOOLEAN, "bool"), (_INTEGER, "int"), (_FLOAT, "float")):
    _Core.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern.pattern})\Z"), None)
_Core.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<\Z"), ["<"])


def parse_yaml(text: str) -> Any:
    """The data in a YAML text of one document; each alias is a copy of what it names, ``<<`` merges mappings.

    Raises Malformed for broken YAML, tags, a key that is there twice or is no text, aliases that stand for too many
    values, and deep nesting.
    """
    if len(text) > _LONGEST:
        raise Malformed(f"longer than {_LONGEST:,} characters")
    try:
        loader = _Core(text)
        node = loader.get_single_node()
        return None if node is None else _value(node)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        why = ", ".join(filter(None, (problem.context, problem.problem)))
        raise Malformed(f"not valid YAML ({why})", mark.line + 1 if mark else None) from None
    except yaml.reader.ReaderError as problem:
        line = text.count("\n", 0, problem.position) + 1
        raise Malformed(f"not valid YAML (the character #x{problem.character:04x} is not allowed)", line) from None


def _refuse(why: str, mark: Any) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=why, problem_mark=mark)


def _value(node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    return {key: _value(value) for key, value in _pairs(node).items()}


def _pairs(node: yaml.Node) -> dict[str, yaml.Node]:
    """A mapping's keys and values: its own go before merged ones, of these the first (https://yaml.org/type/merge.html)."""
    if not isinstance(node, yaml.MappingNode):
        _refuse("<< takes a mapping or a list of mappings", node.start_mark)
    own: dict[str, yaml.Node] = {}
    merged: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            _refuse("a list or a mapping can't be a key", key.start_mark)
        if key.tag == "tag:yaml.org,2002:merge":
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                merged |= {name: found for name, found in _pairs(source).items() if name not in merged}
            continue
        name = _joined(key)
        if name in own:
            _refuse(f"the key {name!r} is there twice; remove one of them", key.start_mark)
        own[name] = value
    return merged | own


def _scalar(node: yaml.ScalarNode) -> Any:
    text, kind = node.value, node.tag.rpartition(":")[2]
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "float":
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    if kind != "int":
        return _joined(node)
    try:
        return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)
    except ValueError:  # Python's limit on the digits of an integer
        _refuse("an integer with thousands of digits", node.start_mark)


def _joined(node: yaml.ScalarNode) -> str:
    """Text in which the halves of characters that JSON's escapes write (``\\ud83d\\ude00``) are one."""
    text: str = node.value
    if not _SURROGATE.search(text):
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        _refuse(r"half of a character (a lone surrogate such as \ud800)", node.start_mark)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own way)
        first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *_Core.yaml_implicit_resolvers.get(first, [])]
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Core.yaml_implicit_resolvers}
    }


def dump_yaml(data: Any) -> str:
    """YAML that ``parse_yaml`` and readers of YAML 1.1 read as ``data``; keys stay in order."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110)
    return text
