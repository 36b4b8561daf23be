"""README.md of a checkpoint, as the hub shows it: what it is, how to load it, what was done, how well it does.

The hub reads the part between the dashes (https://huggingface.co/docs/hub/model-cards). A base model is only named
where it is known by an id of the hub: a folder's name or its ``_name_or_path`` may be that of what it was made from.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData
from transformers import PretrainedConfig

from mixprec.checkpoint import check
from mixprec.checkpoint.base import CheckpointFormat
from mixprec.checkpoint.facts import RUNTIMES
from mixprec.checkpoint.licences import front_matter, licence_of
from mixprec.core.escaping import markdown, markdown_block, markdown_code
from mixprec.core.hubid import checked_id, is_hub_id
from mixprec.models.decoder import Decoder
from mixprec.models.locate import BUNDLED, BUNDLED_ID, BUNDLED_LICENCE
from mixprec.numerics.formats import CodebookFormat, Format
from mixprec.plan import bits
from mixprec.plan.bits import Account
from mixprec.plan.dropping import kept
from mixprec.plan.methods import METHODS
from mixprec.plan.schema import Plan
from mixprec.report.formatting import size

_CACHED = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/")
#: What is in the place of the checkpoint's own address, which nobody knows yet.
_HERE = "OWNER/NAME"
_SNIPPETS = {
    "transformers": ("python", """\
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "{here}"  # this repository, or its folder
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, dtype="auto", device_map="auto")
prompt = "How many primes are there below 30?"
inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=512)[0]))"""),
    "vllm": ("bash", "vllm serve {here}"),
    "sglang": ("bash", "python -m sglang.launch_server --model-path {here}"),
    "mlx": ("bash", 'mlx_lm.generate --model {here} --prompt "How many primes are there below 30?"'),
    "llama.cpp": ("bash", 'llama-cli -m {file} -p "How many primes are there below 30?"'),
}  # fmt: skip
_PAPER = ("When Reasoning Meets Compression", "2504.02010")


class Told(NamedTuple):
    """What a card says besides the plan; all of it may be absent.

    ``base_model``: id on the hub. ``calibration``: as Calibration describes itself. ``evaluation``: Markdown, beneath
    its own heading. ``scores``: for the hub's leaderboards. ``recipe``: YAML text.
    """

    base_model: str | None = None
    calibration: Mapping[str, Any] | None = None
    evaluation: str = ""
    scores: Sequence[EvalResult] = ()
    recipe: str | None = None


def model_card(
    plan: Plan,
    inventory: Decoder,
    config: PretrainedConfig,
    source: Path,
    format: CheckpointFormat,
    told: Told = Told(),
) -> str:
    """The text of the card; ``source``: the folder of the base, whose own card states its licence.

    Raises UserError where ``told.base_model`` is no id of the hub.
    """
    account = bits.account(plan, inventory)
    base = base_model(plan.model, source, told.base_model)
    terms = licence(plan.model, source)
    name = f"{base.rpartition('/')[2] if base else Path(plan.model).stem} {_short(plan, account)}"
    sections = [
        f"# {markdown(name)}",
        _lead(plan, inventory, account, base, format),
        _loading(plan, inventory, config, format),
        _compression(plan, inventory, config, format, account),
        _calibration(told.calibration),
        told.evaluation and f"## Evaluation\n\n{told.evaluation.rstrip()}",
        _reproduction(told.recipe),
        _licence_note(terms),
        _sources(plan),
    ]
    head = _front(plan, format, base, terms, name, told.scores)
    return f"---\n{head}\n---\n\n" + "\n\n".join(part.rstrip() for part in sections if part) + "\n"


def base_model(model: str, source: Path, given: str | None = None) -> str | None:
    """The base's id on the hub: ``given``, the id that it was loaded by, or what a quantized copy's own card names.

    Raises UserError where ``given`` is none.
    """
    if given is not None:
        return checked_id(given)
    if model == BUNDLED:
        return BUNDLED_ID
    if found := _CACHED.search(source.as_posix() + "/"):
        return "/".join(found.groups())
    if not Path(model).expanduser().exists() and is_hub_id(model):
        return model
    front = front_matter(source)
    named = front.get("base_model")
    first = named[0] if isinstance(named, list) and named else named
    quantized = front.get("base_model_relation") == "quantized"
    return first if quantized and isinstance(first, str) and is_hub_id(first) else None


def licence(model: str, source: Path) -> dict[str, str]:
    """What a card says of the licence of ``model``, whose folder is ``source``."""
    return {"license": BUNDLED_LICENCE} if model == BUNDLED else licence_of(source)


def _front(
    plan: Plan,
    format: CheckpointFormat,
    base: str | None,
    licence: Mapping[str, str],
    name: str,
    scores: Sequence[EvalResult],
) -> str:
    """The part that the hub reads, as YAML."""
    keys: dict[str, Any] = {
        **({"base_model": base, "base_model_relation": "quantized"} if base else {}),
        **licence,
        **({} if format.name == "gguf" else {"library_name": "transformers"}),
        "pipeline_tag": "text-generation",
        "tags": ["mixprec", *([] if format.name == "dense" else [format.name]), *_bit_tags(plan)],
        **({"model_name": name, "eval_results": list(scores)} if scores else {}),
    }
    return str(ModelCardData(**keys).to_yaml()).rstrip()


def _bit_tags(plan: Plan) -> list[str]:
    """``3-bit`` for each number of bits that a compressed module has, the fewest first."""
    found = {plan.formats[address] for address in plan.changed}
    return [f"{each}-bit" for each in sorted({f.bits for f in found if isinstance(f, Format | CodebookFormat)})]


def _short(plan: Plan, account: Account) -> str:
    formats = [name for name in account.formats if name != "keep"]
    return formats[0] if len(formats) == 1 else f"{account.effective_bits:.2f} bits"


def _lead(plan: Plan, inventory: Decoder, account: Account, base: str | None, format: CheckpointFormat) -> str:
    treated = plan.treatments.items()
    methods = Counter("drop" if a in plan.dropped else each.method for a, each in treated if each.changes)
    by = ", ".join(f"{markdown(name)} ({count})" for name, count in methods.most_common()) or "nothing"
    inside = sum(linear.address in plan.changed for linear in inventory.linears)
    beside = "".join(f" and the {each.kind}" for each in inventory.outside if each.address in plan.changed)
    what = f"[{markdown(base)}](https://huggingface.co/{base})" if base else "A model that is not named on the hub"
    return (
        f"{what}, compressed by mixprec: {inside} of {len(inventory.linears)} linear modules{beside} by {by}, "
        f"{account.effective_bits:.2f} bits per weight of the linear modules with scales and zero points; "
        f"{size(account.packed_bytes)} in place of {size(account.dense_bytes)} with all other weights in 16 bits"
        f"{', once packed: the files here hold the compressed values unpacked' if format.name == 'dense' else ''}."
    )


def _loading(plan: Plan, inventory: Decoder, config: PretrainedConfig, format: CheckpointFormat) -> str:
    """What loads it, and how."""
    verdicts = {name: check.check(plan, inventory, config, check.Target(name, format.name)) for name in RUNTIMES}
    lines = ["| runtime | on a GPU: of the Ampere generation, for MLX an Apple one |", "|---|---|"]
    for name, verdict in verdicts.items():
        reasons = check.by_reason(verdict)
        why = next(iter(reasons), "")
        if verdict.loads:
            text = f"loads; needs {verdict.needs}" if verdict.needs else "loads"
        else:
            text = f"does not load: {why}" + (f", and {len(reasons) - 1} more reasons" if len(reasons) > 1 else "")
        lines.append(f"| {name} | {markdown(text)} |")
    parts = ["## Use", "\n".join(lines)]
    for name, verdict in verdicts.items():
        if verdict.loads and not (format.name == "gguf" and name != "llama.cpp"):
            language, snippet = _SNIPPETS[name]
            parts.append(markdown_block(snippet.replace("{here}", _HERE).replace("{file}", "model.gguf"), language))
    parts.append("By what runtimes say and what was tried; `mixprec check` says it for other devices and versions.")
    return "\n\n".join(part.rstrip() for part in parts)


def _compression(
    plan: Plan, inventory: Decoder, config: PretrainedConfig, format: CheckpointFormat, account: Account
) -> str:
    weights = format.bytes(plan, inventory, config)
    rows = [
        ("written as", format.name),
        ("files of weights", size(weights)),
        *((name, f"{total.modules} modules, {total.weights:,} weights") for name, total in account.formats.items()),
        ("code bits per weight", f"{account.code_bits:.4f}"),
        ("with scales and zero points", f"{account.effective_bits:.4f}"),
    ]
    for layer, numbers in list(kept(plan.dropped, inventory).items())[:1]:  # as many in each
        rows.insert(2, ("experts in each layer", f"{len(numbers)} of {len(inventory.experts[layer])}"))
    table = "\n".join(f"| {markdown(key)} | {markdown(value)} |" for key, value in rows)
    alone = [module.label for module in inventory.linears if module.address not in plan.changed]
    return (
        f"## What was done\n\n| | |\n|---|---|\n{table}\n\n"
        f"Linear modules that are kept as they are: {_some(alone) if alone else 'none'}. "
        "Every module's format is in `mixprec.json`, with checksums of all files."
    )


def _some(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:12])
    return shown if len(labels) <= 12 else f"{shown} and {len(labels) - 12} more linear modules"


def _calibration(described: Mapping[str, Any] | None) -> str:
    if described is None:
        return "## Calibration data\n\nNone."
    if "samples" not in described:
        return "## Calibration data\n\nTokens that were given as they are; where they come from is not known."
    names = [_source(each) for each in described.get("sources") or ()]
    return (
        f"## Calibration data\n\n{described['samples']} samples of {described['tokens']} tokens, "
        f"seed {described['seed']}:\n\n" + "\n".join(f"- {name}" for name in names)
    )


def _source(facts: Mapping[str, Any]) -> str:
    name = facts.get("name") or facts.get("dataset") or facts["kind"]
    digest = f", SHA-256 {markdown_code(facts['sha256'])}" if facts.get("sha256") else ""
    used = f", {facts['used']} samples" if "used" in facts else ""
    return f"{markdown(str(facts['kind']))} {markdown_code(str(name))}{used}{digest}"


def _reproduction(recipe: str | None) -> str:
    if recipe is None:
        return ""
    return (
        "## Reproduce\n\nSave this as `recipe.yaml`:\n\n"
        f"{markdown_block(recipe, 'yaml')}\n{markdown_block('mixprec run recipe.yaml', 'bash')}"
    )


def _licence_note(licence: Mapping[str, str]) -> str:
    if not licence:
        return "## Licence\n\nThe base doesn't state its licence here; its terms hold for this copy too."
    name = licence.get("license_name") or licence["license"]
    return f"## Licence\n\nThat of the base: {markdown(name)}."


def _sources(plan: Plan) -> str:
    """What to cite."""
    used = [_PAPER, *(source for name in sorted(plan.methods) if (source := METHODS[name].source) is not None)]
    return "## Sources\n\n" + "\n".join(
        f"- {name}, [arXiv {number}](https://arxiv.org/abs/{number})" for name, number in used
    )
