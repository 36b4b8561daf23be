"""What a piece of a sentence calls true, false or uncertain: words at their boundaries, with their negations."""

from __future__ import annotations

import re

_EITHER = re.compile(
    r"\b(?:true|false|uncertain)\b(?:\s*(?:,|/|\bor\b|\band\b)+\s*\b(?:true|false|uncertain)\b)+", re.I
)
#: "true only if …", "would be true": no verdicts.
_CONDITIONAL = re.compile(r"\w+[*\"']*,?\s+(?:only\s+)?(?:if|when|unless|in\s+(?:the|this|that)\s+case)\b", re.I)
_WOULD = re.compile(r"\b(?:would|could|might|may|can)\s+(?:\w+\s+)?be\s+(?:\w+\s+)?$", re.I)
#: A negation that reaches the word behind it: "not", "isn't", "cannot be", "not logically", but not "not brown is".
_NEGATED = re.compile(
    r"(?:\bnot|n't|\bnever|\bcannot|\bno longer|\bnor)"
    r"(?:[\s*\"']+(?:be|been|to|the|a|an|logically|strictly|really|actually|entirely|completely|fully|considered|deemed|"
    r"shown|proven|said|directly|itself|being|necessarily|always|definitively))*[\s*\"'(]*$",
    re.I,
)
_CANNOT = re.compile(
    r"(?:\bcan\s?not|\bcan't|\bcouldn't|\bcould not|\bunable to|\bnot possible to|\bimpossible to|\bnot able to|"
    r"\b(?:do not|don't|does not|doesn't) (?:have|give|provide|contain) enough)\b[^.;,\n]{0,120}"
    r"\b(?:determin|conclu|confirm|infer|establish|verif|deduc|ascertain|say|tell|know|prove|decide|inform|deem|"
    r"definitive|evaluat|assess|resolve|judge)"
    r"[^.;,\n]*",
    re.I,
)
_NO_PROOF = re.compile(
    r"\b(?:does not|doesn't|do not|don't) (?:\w+ )?(?:mean|imply|guarantee|ensure|establish) that\b"
    r"|(?:\bnot|n't) (?:stated|specified|mentioned|said|indicated) (?:whether|if)\b"
    r"|(?:\bnot|n't) (?:certain|enough (?:information|evidence|data))\b",
    re.I,
)
_UNCERTAIN = re.compile(
    r"(?<!not )\b(?:uncertain|unknown|undetermined|undeterminable|indeterminate|inconclusive|undecided|ambiguous|"
    r"unprovable)\b"
    r"|\bneither (?:be )?(?:\w+ )?(?:true n?or (?:\w+ )?false|false n?or (?:\w+ )?true|"
    r"(?:prov|confirm|support|verifi|affirm|disprov|refut|deni|stat|impl|establish|entail|contradict)\w* n?or)(?: \w+)?"
    r"|\bneither (?:\w+ ){1,2}(?:true n?or false|false n?or true)\b"
    r"|\b(?:may|might|could|can) (?:be )?(?:either )?(?:true or false|false or true)\b"
    r"|\b(?:may|might) or (?:may|might) not\b"
    r"|\b(?:in|not )sufficient\b|\blacks? (?:of )?(?:sufficient )?information\b"
    r"|(?:\bnot|n't) enough (?:information|evidence|data)\b"
    r"|(?:\bnot|n't) (?:be )?(?:necessarily|definitively|certainly|always|guaranteed to|known to|have to|need to) "
    r"(?:be )?(?:true|false)\b"
    r"|\bdepends? on (?:\w+ ){0,3}(?:that|which) (?:is|are) not\b"
    r"|\bno (?:\w+ )?way to (?:conclude|determine|tell|know|say|infer)"
    r"|(?:\bnot|n't) (?:be )?(?:determined|determinable|decidable|established|verifiable|provable)\b"
    r"|(?:\bnot|n't) true\b[^.]{0,60}\bnot false\b|(?:\bnot|n't) false\b[^.]{0,60}\bnot true\b"
    r"|\bunclear\b|不确定|无法确定|不能确定|未知"
    r"|\bnot (?:certain|clear|known|guaranteed|specified)\b(?=\W*(?:$|whether|if|from|based|because|since|given|,))",
    re.I,
)
_PLAIN = {
    "True": re.compile(r"\btrue\b|为真|是真的|正确", re.I),
    "False": re.compile(r"\b(?:false|untrue)\b|为假|是假的|错误|不正确", re.I),
}
_LIKE = {
    "Uncertain": re.compile(r"\bun(?:supported|proven|proved|founded|verified|verifiable|substantiated)\b", re.I),
    "True": re.compile(
        r"\b(?:correct|accurate|right|valid|supported|proven|entailed|justified|holds|follows?|confirmed)\b", re.I
    ),
    "False": re.compile(
        r"\b(?:incorrect|inaccurate|invalid|wrong|inconsistent|contradict(?:s|ed|ory)|disproven|refuted|negated)\b"
        r"|(?:\bnot|n't) (?:\w+ )?hold\b|(?<!no )\bcontradiction (?:of|to|with)\b",
        re.I,
    ),
}
#: Words whose negation denies; that of "supported" and the like leaves open.
_FITTING = frozenset({"correct", "accurate", "right"})
_ABSENT = re.compile(r"\b(?:no|not|nothing|never|without|neither|nor|insufficient|cannot|lacks?)\b|n't\b", re.I)
#: What premises do to the conclusion.
_DONE_TO = re.compile(
    r"\b(?:(?P<against>contradict|refut|disprov|negat|violat)|support|confirm|prove|entail|impl(?:y|ies)|validat|justif)\w*\s+"
    r"(?:the|this|that)\s+(?:\w+\s+)?(?:conclusion|statement|claim|hypothesis|proposition)\b",
    re.I,
)
#: "We cannot say that", "there is no evidence that", "this doesn't mean that", in front of a statement.
_DOUBTED = re.compile(
    r"(?:\b(?:cannot|can not|can't|couldn't|unable to|(?:do|does|did) not|don't|doesn't|isn't|is not|are not|aren't)\s+"
    r"(?:\w+\s+){0,4}?(?:certain|sure|say|conclude|claim|determine|confirm|infer|know|prove|establish|mean|imply|guarantee|"
    r"ensure|indicate)"
    r"|\bno (?:\w+\s+){0,2}(?:evidence|proof|information|indication|guarantee|way to (?:conclude|say|know|tell|infer)))"
    r"\s+(?:that\s+)?(?:the\s+|this\s+|that\s+)?(?:\w+\s+)?$",
    re.I,
)
#: What is given as a reason, or set against it, comes behind the verdict.
_REASON = re.compile(
    r"\b(?:because|since|due to|given that|while|whereas)\b|;|, (?:as|but|and|so)\b"
    r"|\s[–—-]\s|, which\b|(?<!same )(?<!such )(?<!well )\bas (?:it|they|the|there|this|that|these|no|none|we|all)\b",
    re.I,
)
_ASIDE = re.compile(r"\([^()]*\)")


def verdicts(text: str) -> list[str]:
    """True, False and Uncertain in the order in which a text has them; enumerations and conditions are passed over."""
    text = text.replace("’", "'")
    open_ = [match.span() for pattern in (_CANNOT, _UNCERTAIN) for match in pattern.finditer(text)]
    enumerated = [] if "neither" in text.lower() else [match.span() for match in _EITHER.finditer(text)]
    found = [(start, "Uncertain") for start, _ in open_ if not _within(start, enumerated)]
    for truth, word in _PLAIN.items():
        for match in word.finditer(text):
            covered = _within(match.start(), [*open_, *enumerated])
            if not covered and (said := _said(truth, text, match)):
                found.append((match.start(), said))
    return [truth for _, truth in sorted(found)]


def _within(position: int, spans: list[tuple[int, int]]) -> bool:
    return any(start <= position < end for start, end in spans)


def _said(truth: str, text: str, match: re.Match[str]) -> str | None:
    """What one of the words says where it stands: "not true" is false, "not false" says nothing."""
    before = text[: match.start()]
    if _CONDITIONAL.match(text, match.start()) or _WOULD.search(before):
        return None
    if _NEGATED.search(before):
        return "False" if truth == "True" else None
    return truth


def of_predicate(text: str) -> str | None:
    """The verdict of what follows "the conclusion": the last one in front of a reason, else the first of all.

    Where there are several in front ("true in one case and false in the other, so uncertain"), the last of all.
    """
    if verdicts(bare := _ASIDE.sub(" ", text)):
        text = bare
    found, head = verdicts(text), verdicts(_REASON.split(text, maxsplit=1)[0])
    if len(set(head)) > 1:
        return found[-1]
    return head[-1] if head else next(iter(found), None)


def done_to_conclusion(text: str) -> str | None:
    """What a sentence says of the premises: that they contradict, support, or do not support the conclusion."""
    text = text.replace("’", "'")
    found = None
    for match in _DONE_TO.finditer(text):
        negated = _ABSENT.search(text[: match.start()])
        found = "Uncertain" if negated else "False" if match["against"] else "True"
    return found


def other_words(text: str) -> str | None:
    """Valid, supported, contradicted and the like; "not supported" leaves it open."""
    text = text.replace("’", "'")
    found = {truth: match for truth, word in _LIKE.items() if (match := word.search(text))}
    plainly = {truth for truth, match in found.items() if not _NEGATED.search(text[: match.start()])}
    if plainly:
        return next(truth for truth in _LIKE if truth in plainly)
    if "True" not in found:
        return None
    return "False" if found["True"][0].lower() in _FITTING else "Uncertain"


def only_said(before: str) -> bool:
    """Whether the words in front of a statement take it back: "we can't be certain that …", "no evidence that …"."""
    return bool(_DOUBTED.search(before.replace("’", "'")))


def leaves_open(text: str) -> bool:
    """Whether a sentence says that something can't be determined."""
    text = text.replace("’", "'")
    return bool(_CANNOT.search(text) or _NO_PROOF.search(text))
