"""README.md of a checkpoint, as the hub shows it: what was done to which model, bits, results, the base's licence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mixprec.modelfiles import README
from mixprec.modules import Inventory
from mixprec.plan import bits
from mixprec.plan.schema import Plan

_RESULTS = (
    ("perplexity", "perplexity"),
    ("kl_mean", "KL to the original, mean"),
    ("top1_agreement", "top-1 agreement"),
)


def model_card(
    plan: Plan,
    inventory: Inventory,
    source: Path,
    format: str,
    *,
    recipe: str | None = None,
    results: Mapping[str, Any] | None = None,
) -> str:
    """The text of the card.

    ``source``: the base's folder; the licence comes from its own card. ``recipe``: YAML text; ``results``: the row of
    summary.json.
    """
    account = bits.account(plan, inventory)
    licence = _licence(source)
    head = {"library_name": "transformers", "base_model": plan.model, "tags": ["mixprec", "quantized"]}
    front = yaml.safe_dump(head | ({"license": licence} if licence else {}), sort_keys=False)
    methods = Counter(found.method for found in plan.treatments.values() if found.changes)
    parts = [
        f"---\n{front}---\n",
        f"# {Path(plan.model).name}, compressed by mixprec\n",
        f"Base: `{plan.model}`. Licence of the base: {licence or 'see its own card'}.\n",
        "| | |\n|---|---|",
        f"| written as | {format} |",
        f"| method | {', '.join(f'{name} ({count} modules)' for name, count in methods.most_common()) or 'none'} |",
        *(
            f"| {name} | {total.modules} modules, {total.weights:,} weights |"
            for name, total in account.formats.items()
        ),
        f"| code bits per weight | {account.code_bits:.4f} |",
        f"| with scales and zero points | {account.effective_bits:.4f} |",
    ]
    if results:
        parts += [f"| {title} | {results[key]:.4g} |" for key, title in _RESULTS if results.get(key) is not None]
    parts.append("\nEvery module's format is in `mixprec.json`, with checksums of all files.\n")
    if recipe:
        parts.append(f"## Recipe\n\n```yaml\n{recipe.rstrip()}\n```\n")
    return "\n".join(parts)


def _licence(source: Path) -> str | None:
    """What the base's card says, or the name of its licence file."""
    card = source / README
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        if text.startswith("---\n") and "\n---" in text[4:]:
            try:
                front = yaml.safe_load(text[4 : text.index("\n---", 4)])
            except yaml.YAMLError:
                front = None
            if isinstance(front, dict) and isinstance(front.get("license"), str):
                return str(front["license"])
    files = sorted(path.name for path in source.glob("LICENSE*"))
    return f"see {files[0]}" if files else None
