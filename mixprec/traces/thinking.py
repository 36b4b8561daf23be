"""Where a model thinks and where it answers: the marks of reasoning models, in one table.

``TAGS`` has what models put around their thinking; users add theirs (``parsed``). Sources: the models' chat templates,
the reasoning parsers of vLLM (``vllm/reasoning``), and OpenAI's harmony format.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from mixprec.core.errors import UserError

#: ``closed``: a thinking ended, and what stands outside is the answer. ``open``: one began and never ended.
State = Literal["closed", "open", "absent"]


class Tag(NamedTuple):
    """What opens and what closes a thinking: regular expressions that begin with a literal character.

    ``name``: what results call it. ``paired``: the close is a common phrase, and only closes what was opened.
    ``apart``: the answer is a message of its own, so that a thinking without its close never holds one.
    ``ends``: the close as text, for those who write it; empty where one text doesn't close it.
    """

    name: str
    open: str
    close: str
    paired: bool = False
    apart: bool = False
    ends: str = ""


def _element(name: str) -> Tag:
    """``<name>`` and ``</name>``, in any case."""
    return Tag(f"<{name}>", rf"<(?i:{name})\s*>", rf"</(?i:{name})\s*>", ends=f"</{name}>")


_ELEMENTS = (
    "think",  # DeepSeek-R1, Qwen 3, GLM, Nemotron and most others
    "thinking",
    "thought",  # EXAONE Deep
    "thoughts",
    "reasoning",
    "reason",
    "analysis",
    "scratchpad",
    "seed:think",  # Seed-OSS
    "longcat_think",
)
_HARMONY = r"(?:(?:end\|>\s*<\|)?start\|>assistant\s*<\|)?"  # what may stand between "<|" and "channel|>"
TAGS: tuple[Tag, ...] = (
    *map(_element, _ELEMENTS),
    Tag("[THINK]", r"\[(?i:THINK)\]", r"\[/(?i:THINK)\]", ends="[/THINK]"),  # Magistral
    Tag("◁think▷", "◁think▷", "◁/think▷", ends="◁/think▷"),  # Kimi
    Tag("<|open|>think", r"<\|open\|>think<\|sep\|>", r"<\|close\|>think<\|sep\|>(?:\s*<\|open\|>response<\|sep\|>)?"),
    Tag("<|START_THINKING|>", r"<\|START_THINKING\|>", r"<\|END_THINKING\|>", ends="<|END_THINKING|>"),  # Command A
    Tag(  # Sky-T1, OpenThinker
        "<|begin_of_thought|>",
        r"<\|begin_of_thought\|>",
        r"<\|(?:end_of_thought\|>(?:\s*<\|begin_of_solution\|>)?|begin_of_solution\|>)",
    ),
    Tag("<|thought_start|>", r"<\|thought_start\|>", r"<\|thought_end\|>", ends="<|thought_end|>"),  # MiniCPM
    Tag("<|channel>thought", r"<\|channel>(?:thought\b)?", r"<channel\|>", ends="<channel|>"),  # Gemma 4
    Tag(  # Granite 3
        "Here is my thought process:",
        r"Here(?: is|['’]s) my thought process:",
        r"Here(?: is|['’]s) my response:",
        paired=True,
    ),
    # gpt-oss. Where the tokenizer left its special tokens out, the channel's name begins the text.
    Tag(
        "<|channel|>analysis",
        rf"<\|{_HARMONY}channel\|>\s*(?:analysis|commentary)\b(?:[^<>]{{0,80}}<\|message\|>)?"
        r"|analysis(?<![\s\S]analysis)(?:<\|message\|>|(?=[^\s.,:;)'’-]|\s+[A-Z]))"
        r"|assistant(?:analysis|commentary)(?=[^\s.,:;)]|\s+[A-Z])",
        rf"<\|{_HARMONY}channel\|>\s*final\b[^<>]{{0,80}}(?:<\|constrain\|>[^<>]{{0,80}})?<\|message\|>|assistantfinal",
        apart=True,
    ),
)

#: Tags between such marks are spoken of: "`<think>`".
_QUOTES = frozenset("`\"'")
_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)
#: Characters at a prompt's end that an opening tag is looked for in.
_PROMPTS_END = 200


class Thought(NamedTuple):
    """An output's parts. ``answer``: what stands outside the thinking; all of the output where ``state`` isn't closed.

    ``thinking``: the text in front of the answer. ``tag``: the tag that the output has, None where it has none.
    ``reopened``: a thinking began behind the answer and never ended.
    """

    state: State
    thinking: str
    answer: str
    tag: Tag | None
    reopened: bool = False


class _Mark(NamedTuple):
    start: int
    end: int
    tag: Tag
    opens: bool


def parsed(given: Iterable[str]) -> tuple[Tag, ...]:
    """The table with a user's tags, each ``open,close``, in front of it.

    Raises UserError for a text that isn't two tags with a comma between.
    """
    return (*(_own(text) for text in given), *TAGS)


def _own(text: str) -> Tag:
    opens, _, closes = (part.strip() for part in text.partition(","))
    if not opens or not closes or "," in closes or opens == closes:
        raise UserError(f"think_tags: {text!r}: write what opens and what closes a thinking, as '<plan>,</plan>'")
    return Tag(opens, re.escape(opens), re.escape(closes), ends=closes)


def parts(output: str, opened: bool = False, tags: tuple[Tag, ...] = TAGS) -> Thought:
    """Part an output into its thinking and its answer. ``opened``: the prompt ends with a tag that opens a thinking.

    A thinking that begins the output is closed by its own tag only. Any other close makes all before it a thinking: the
    prompt or a template may have opened that. Where nothing but blanks stands behind the last close, the answer is
    what stood between earlier thinkings. Tags in quotes, and in code outside of a thinking, are none. Takes time
    linear in the output.
    """
    around = opened  # still in the thinking that the prompt opened
    inside: Tag | None = None
    only = False  # whether just its own tag closes the thinking
    seen: Tag | None = None
    outside: list[tuple[int, int]] = []
    since = 0  # where the text outside began
    fences = [match.start() for match in _FENCE.finditer(output)]
    for mark in _marks(output, tags):
        if inside is None and since and _in_code(fences, since, mark.start):
            continue
        if mark.opens and inside is None:
            if only := seen is None and not output[: mark.start].strip():
                around = False
            if not around:
                outside.append((since, mark.start))
            inside = mark.tag
        elif not mark.opens and mark.tag == inside:
            inside, since = None, mark.end
        elif not mark.opens and not (inside and only) and not mark.tag.paired:
            inside, around, outside, since = None, False, [], mark.end
        else:
            continue
        seen = mark.tag
    if inside is None and not around:
        outside.append((since, len(output)))
    chosen = next((span for span in reversed(outside) if output[slice(*span)].strip()), None)
    # What stands in front of every thinking is the answer only where nothing is left open behind it.
    if around or not since or (inside and not (chosen and chosen[0])):
        state: State = "open" if around or inside else "absent"
        return Thought(state, "", output, inside or seen)
    start, end = chosen or outside[-1]
    return Thought("closed", output[:start] or output[end:], output[start:end], seen, inside is not None)


def reasoning(output: str, tags: tuple[Tag, ...] = TAGS) -> tuple[int, int]:
    """Where the first thinking stands, as (start, end) in characters, without its tags; all where none is closed."""
    start = 0
    for mark in _marks(output, tags):
        if not mark.opens:
            return start, mark.start
        if not output[: mark.start].strip():
            start = mark.end
    return start, len(output)


def opening(prompt: str, tags: tuple[Tag, ...] = TAGS) -> str | None:
    """The tag that a prompt ends with, as it stands there, None where it opens no thinking."""
    end = prompt.rstrip()[-_PROMPTS_END:]
    found = re.search(rf"(?:{'|'.join(tag.open for tag in tags)})\Z", end)
    return found[0] if found else None


def opened_by(text: str, tags: tuple[Tag, ...] = TAGS) -> Tag | None:
    """The tag that a text ends with, None where it opens no thinking."""
    end = text.rstrip()[-_PROMPTS_END:]
    return next((tag for tag in tags if re.search(rf"(?:{tag.open})\Z", end)), None)


def joined(thinking: str, answer: str) -> str:
    """One output of the two fields that a server gives; without an answer the thinking never ended."""
    tagged = f"<think>\n{thinking}\n"
    return f"{tagged}</think>\n\n{answer}" if answer.strip() else tagged


def _marks(output: str, tags: tuple[Tag, ...]) -> Iterator[_Mark]:
    """The tags of an output, without those that are only spoken of."""
    shift = len(output) - len(output.lstrip())
    text = output[shift:]  # a channel's bare name is one at the very beginning only
    anywhere, each = _patterns(tags)
    for match in anywhere.finditer(text):
        start, end = match.span()
        if start and text[start - 1] in _QUOTES and text[end : end + 1] == text[start - 1]:
            continue
        number = next(index for index, pattern in enumerate(each) if pattern.match(text, start))
        yield _Mark(start + shift, end + shift, tags[number // 2], number % 2 == 0)


@functools.lru_cache(maxsize=8)
def _patterns(tags: tuple[Tag, ...]) -> tuple[re.Pattern[str], list[re.Pattern[str]]]:
    """What finds any tag, and every tag's open and close in turn.

    Alternatives that each begin with a literal let ``re`` skip to the next such character.
    """
    sources = [source for tag in tags for source in (tag.open, tag.close)]
    return re.compile("|".join(sources)), [re.compile(source) for source in sources]


def _in_code(fences: list[int], since: int, start: int) -> bool:
    """Whether an odd number of code fences lies between, and another one behind."""
    here = bisect_left(fences, start)
    return (here - bisect_left(fences, since)) % 2 == 1 and here < len(fences)
