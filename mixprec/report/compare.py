"""What the variants' numbers say, in sentences. Nothing is known about a variant but its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixprec.report.formatting import bits, interval, plural, significant

Variant = Mapping[str, Any]

#: Effective bits within which two variants count as the same size.
SAME_SIZE = 0.02
#: Protected variants that get a sentence each; the table has all.
_MOST_SENTENCES = 4


def is_baseline(variant: Variant) -> bool:
    """True for a variant that keeps every module in 16 bits."""
    return not variant.get("modules_quantized")


def compressed(summary: Mapping[str, Any]) -> dict[str, Variant]:
    """Variants that compress the model as a whole: more than half of the modules that any variant quantizes.

    The others but the baseline are probes: they quantize a few modules to see what those matter.
    """
    variants = summary.get("variants") or {}
    most = max((variant.get("modules_quantized") or 0 for variant in variants.values()), default=0)
    return {
        name: variant
        for name, variant in variants.items()
        if not is_baseline(variant) and 2 * variant["modules_quantized"] > most
    }


def probes(summary: Mapping[str, Any]) -> dict[str, Variant]:
    """Variants that quantize only a few modules."""
    whole = compressed(summary)
    variants = (summary.get("variants") or {}).items()
    return {name: variant for name, variant in variants if name not in whole and not is_baseline(variant)}


def kl(variant: Variant) -> str:
    """Mean KL with its interval: ``1.72 [1.63, 1.81]``."""
    bounds = interval(variant.get("kl_mean_ci"))
    return significant(variant["kl_mean"]) + (f" {bounds}" if bounds else "")


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """Sentences on what compression cost, what protection bought and at what size, which of the variants of one size
    spends its bits best, and what probes showed.

    Empty where nothing was measured. The mean KL over all tokens of the traces decides; each comparison gives the
    paired 95% interval of the difference and says whether it excludes 0.
    """
    whole = _measured(compressed(summary))
    sentences = []
    if whole:
        start = _most_quantized(whole)
        sentences.append(_cost(start, whole[start], summary))
        references = {name: _reference(name, whole) for name in whole}
        protected = {
            name: variant
            for name, variant in whole.items()
            if variant["modules_quantized"] < whole[references[name]]["modules_quantized"]
        }
        sentences += [
            _protection(name, references[name], whole, summary) + _same_size(name, protected, summary)
            for name in list(protected)[:_MOST_SENTENCES]
        ]
        if len(protected) > _MOST_SENTENCES:
            rest = plural(len(protected) - _MOST_SENTENCES, "more protected variant")
            sentences.append(f"The table has {rest}.")
        spread = {name: whole[name] for name in whole if name not in protected}
        sentences += _allocations(spread, summary) + _beside(spread, protected, summary)
    return sentences + _probing(_measured(probes(summary)), summary)


def in_short(summary: Mapping[str, Any]) -> list[str]:
    """What a terminal needs: which of the variants that compress the whole model is damaged least, and which most, with
    their sizes; ``verdict`` has what protects what, and which differences are established.

    Empty where nothing was measured.
    """
    whole = _measured(compressed(summary))
    if not whole:
        return []
    ranked = sorted(whole, key=lambda name: whole[name]["kl_mean"])
    told = [_at_size(name, whole[name]) for name in dict.fromkeys((ranked[0], ranked[-1]))]
    return [f"Least damage: {told[0]}." if len(told) == 1 else f"Least damage: {told[0]}; most: {told[1]}."]


def _at_size(name: str, variant: Variant) -> str:
    return f"{name}, KL {kl(variant)} at {bits(variant['effective_bits'])} bits"


def _reference(name: str, whole: Mapping[str, Variant]) -> str:
    """What a variant protects something of: the most quantized one that was made by the same methods and engine."""
    alike = {other: variant for other, variant in whole.items() if _made_by(variant) == _made_by(whole[name])}
    most = _most_quantized(alike)
    return most if alike[most]["modules_quantized"] > whole[name]["modules_quantized"] else _most_quantized(whole)


def _made_by(variant: Variant) -> tuple[object, ...]:
    return (variant.get("engine"), *(variant.get("methods") or ()))


def _most_quantized(variants: Mapping[str, Variant]) -> str:
    """Of those that quantize most modules the smallest."""
    return min(variants, key=lambda name: (-variants[name]["modules_quantized"], variants[name]["effective_bits"]))


def _measured(variants: Mapping[str, Variant]) -> dict[str, Variant]:
    return {name: variant for name, variant in variants.items() if variant.get("kl_mean") is not None}


def _cost(name: str, variant: Variant, summary: Mapping[str, Any]) -> str:
    modules = plural(variant["modules_quantized"], "module")
    text = f"{name} compresses {modules} and takes {bits(variant['effective_bits'])} effective bits a weight: "
    text += f"its mean KL to the original is {kl(variant)}"
    baseline = next(
        (other for other in summary["variants"].values() if is_baseline(other) and other.get("perplexity")),
        None,
    )
    if baseline and variant.get("perplexity"):
        text += (
            f", and perplexity goes from {significant(baseline['perplexity'], 4)} "
            f"to {significant(variant['perplexity'], 4)}"
        )
    return text + "."


def _protection(name: str, start: str, whole: Mapping[str, Variant], summary: Mapping[str, Any]) -> str:
    variant, reference = whole[name], whole[start]
    kept = plural(reference["modules_quantized"] - variant["modules_quantized"], "module")
    extra = variant["effective_bits"] - reference["effective_bits"]
    return (
        f"{name} compresses {kept} fewer than {start} at {extra:+.2f} effective bits and "
        f"{_moves(reference, variant)}; {_certainty(start, name, summary)}."
    )


def _moves(before: Variant, after: Variant) -> str:
    if before["kl_mean"] == after["kl_mean"]:
        return f"leaves KL at {kl(after)}"
    verb = "lowers" if after["kl_mean"] < before["kl_mean"] else "raises"
    return f"{verb} KL from {significant(before['kl_mean'])} to {kl(after)}"


def _certainty(first: str, second: str, summary: Mapping[str, Any]) -> str:
    """What the paired interval of the difference KL(first) - KL(second) says."""
    found = ((summary.get("differences") or {}).get(first) or {}).get(second) or {}
    if not found.get("ci"):
        return "there is no interval to judge the difference by"
    low, high = found["ci"]
    if low == high == 0:
        return "every passage has the same KL with both"
    text = f"the paired difference is {significant(found['kl_difference'])} {interval(found['ci'])}, which "
    if low <= 0 <= high:
        return text + "includes 0: this does not establish a difference"
    return text + "excludes 0"


def _same_size(name: str, protected: Mapping[str, Variant], summary: Mapping[str, Any]) -> str:
    """How a variant stands against the others of its size that come after it, so that a pair is told once."""
    names = list(protected)
    variant = protected[name]
    text = ""
    for other in names[names.index(name) + 1 :]:
        control = protected[other]
        if abs(control["effective_bits"] - variant["effective_bits"]) > SAME_SIZE:
            continue
        better = variant["kl_mean"] < control["kl_mean"]
        same = variant["kl_mean"] == control["kl_mean"]
        text += (
            f" At the same size, {other} has KL {kl(control)}: {name} is "
            f"{'equal' if same else 'lower' if better else 'higher'}, and {_certainty(other, name, summary)}."
        )
    return text


def _allocations(whole: Mapping[str, Variant], summary: Mapping[str, Any]) -> list[str]:
    """Of variants that compress all that others of their size and method do, which way of spending bits is best."""
    sentences = []
    left = sorted(whole, key=lambda name: whole[name]["effective_bits"])
    while left:
        first = whole[left[0]]
        alike = [
            name
            for name in left
            if whole[name]["effective_bits"] - first["effective_bits"] <= SAME_SIZE
            and _made_by(whole[name]) == _made_by(first)
        ]
        left = [name for name in left if name not in alike]
        if len(alike) > 1:
            best, second, *_ = sorted(alike, key=lambda name: whole[name]["kl_mean"])
            told = (
                f"{best} and {second} have the lowest KL, {kl(whole[best])}"
                if whole[best]["kl_mean"] == whole[second]["kl_mean"]
                else f"{best} has the lowest KL, {kl(whole[best])}, and {second} the next, {kl(whole[second])}"
            )
            size = f"Of the {len(alike)} variants of {bits(whole[best]['effective_bits'])} effective bits"
            sentences.append(f"{size}, {told}; {_certainty(second, best, summary)}.")
    return sentences


def _beside(spread: Mapping[str, Variant], protected: Mapping[str, Variant], summary: Mapping[str, Any]) -> list[str]:
    """How variants that compress all modules stand against the best that protects some of them at the same size."""
    sentences = []
    for name, variant in spread.items():
        alike = [
            other
            for other, each in protected.items()
            if abs(each["effective_bits"] - variant["effective_bits"]) <= SAME_SIZE
        ]
        if alike:
            other = min(alike, key=lambda each: protected[each]["kl_mean"])
            sentences.append(
                f"{name} keeps no module and {_moves(protected[other], variant)} at the size of {other}; "
                f"{_certainty(other, name, summary)}."
            )
    return sentences


def _probing(found: Mapping[str, Variant], summary: Mapping[str, Any]) -> list[str]:
    if len(found) < 2:
        return []
    ranked = sorted(found, key=lambda name: -found[name]["kl_mean"])
    worst, least = found[ranked[0]], found[ranked[-1]]
    times = f" ({significant(worst['kl_mean'] / least['kl_mean'], 2)} times less)" if least["kl_mean"] > 0 else ""
    certainty = _certainty(ranked[0], ranked[-1], summary)
    return [
        f"Of the {len(found)} variants that compress only a few modules, {ranked[0]} does the most damage, "
        f"KL {kl(worst)}, and {ranked[-1]} the least, KL {kl(least)}{times}; {certainty}."
    ]
