"""Which licence a model's folder states, as a model card says it: by its own card, else by its licence file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixprec.core.parsing import Malformed, parse_yaml
from mixprec.models.modelfiles import README

_LISTED = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research
intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit
mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl postgresql unknown
unlicense wtfpl zlib
"""
#: What the hub takes for ``license`` (its documentation, page "Licenses"); all else is ``other`` with a name.
KNOWN = frozenset(_LISTED.split())
#: How the texts of the two licences that most models have begin, and how long they are at most: longer ones add terms.
_TEXTS = {"apache-2.0": ("Apache License Version 2.0, January 2004", 12_000), "mit": ("MIT License Copyright", 1_300)}
_KEYS = ("license", "license_name", "license_link")


def licence_of(folder: Path) -> dict[str, str]:
    """``license``, and for one that the hub has no short name for ``license_name`` and ``license_link``; or empty."""
    return _told(front_matter(folder)) or _of_file(folder)


def front_matter(folder: Path) -> Mapping[str, Any]:
    """What the card in a folder says between its first lines of dashes; empty without a card that can be read."""
    card = folder / README
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    begin, _, rest = text.partition("\n")
    if begin.rstrip() != "---" or "\n---" not in f"\n{rest}":
        return {}
    try:
        found = parse_yaml(f"\n{rest}".partition("\n---")[0])
    except Malformed:
        return {}
    return found if isinstance(found, Mapping) else {}


def _told(front: Mapping[str, Any]) -> dict[str, str]:
    named = front.get("license")
    first = named[0] if isinstance(named, list) and named else named
    if not isinstance(first, str) or not first.strip():
        return {}
    if first.lower() not in KNOWN:
        return {"license": "other", "license_name": _slug(first)}
    found = {key: str(front[key]) for key in _KEYS[1:] if isinstance(front.get(key), str)}
    return {"license": first.lower(), **found}


def _of_file(folder: Path) -> dict[str, str]:
    file = next((path for path in sorted(folder.glob("LICENSE*")) if path.is_file()), None)
    if file is None:
        return {}
    text = " ".join(file.read_text(encoding="utf-8", errors="replace").split())
    for name, (begin, longest) in _TEXTS.items():
        if text.startswith(begin) and len(text) <= longest:
            return {"license": name}
    return {"license": "other", "license_name": "of-the-base-model", "license_link": file.name}


def _slug(text: str) -> str:
    """The hub's license_name: small letters, digits, dots and dashes."""
    return "-".join("".join(c if c.isalnum() or c in ".-" else " " for c in text.lower()).split()) or "unnamed"
