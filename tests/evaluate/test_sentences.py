"""MuSiQue's answers in sentences that a model might write, and sentences that name one and state another.

``data/sentences.jsonl``: a question by its id, a text with ``{a}`` where the gold answer stands, and whether the text
gives it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_endings import musique
from test_scoring import ask

from mixprec.core import artifacts
from mixprec.evaluate.scoring import score
from mixprec.evaluate.scoring.overlap import normalise

ROWS = artifacts.read_jsonl(Path(__file__).parent / "data" / "sentences.jsonl")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["text"][:60])
def test_sentence(row: dict[str, Any], shared_data: Path) -> None:
    file = shared_data / "benchmarks" / "musique.jsonl"
    question = next(each for each in musique(str(file)) if each.id == row["id"])
    text = row["text"].replace("{a}", question.answer.rstrip("."))
    verdict = score(question, f"Hmm.\n</think>\n\n{text}", finished=True)
    assert (verdict.outcome == "correct") == row["correct"], verdict


PLAYED, FOUNDED, OPENS, WIFE, TEAM, PLACE, OWNER = (
    "Who played the pilot in The Long Way Home?",
    "When was the club that plays at Hill Park founded?",
    "What time of day do shops open in the state where Lake Anna is?",
    "Who is the wife of the man who built Anna Bridge?",
    "What team was Ann Miller's husband on?",
    "Where was the designer of the Anna Bridge educated?",
    "Who is the owner of Anna Steel?",
)


@pytest.mark.parametrize(
    ("question", "text", "expected"),
    [
        (PLAYED, "The pilot was played by Ada Stone, an actress from Leeds.", "Ada Stone"),
        (PLAYED, "It was Ada Stone who played the pilot, although Mary Lee was asked first.", "Ada Stone"),
        (PLAYED, "The pilot was not played by Mary Lee but by Ada Stone.", "Ada Stone"),
        (PLAYED, "Mary Lee, not Ada Stone, played the pilot.", "Mary Lee"),
        (PLAYED, "Unlike Ada Stone, Mary Lee played in it.", "Mary Lee"),
        (PLAYED, "It could be Ada Stone or Mary Lee.", "Ada Stone or Mary Lee"),
        (PLAYED, "答案是Ada Stone。", "Ada Stone"),
        (PLAYED, "飞行员由Ada Stone扮演。", "Ada Stone"),
        (FOUNDED, "The club was founded in 1864, and it moved to Hill Park in 1899.", "1864"),
        (FOUNDED, "The club started in 1864.", "1864"),
        (FOUNDED, "The club was founded in 1864, not in 1899.", "1864"),
        (FOUNDED, "The club that plays at Hill Park is **Hill Town**, which was founded in 1864.", "1864"),
        (FOUNDED, "Hill Town was founded in 1864. Most clubs of the league are from the 1890s.", "1864"),
        (FOUNDED, "Hill Town was founded in 323 BC.", "323 BC"),
        (FOUNDED, "该俱乐部成立于1864年。", "1864"),
        (OPENS, "Shops open at 10:30 AM on Sundays.", "10:30 AM"),
        (OPENS, "Shops are open from 5 a.m. until 1 a.m.", "5 a.m."),
        (WIFE, "The man is John Day, whose wife is Ada Stone, a singer.", "Ada Stone"),
        (WIFE, "John Day built it; he married Ada Stone in 1902.", "Ada Stone"),
        (WIFE, "That would be Ada Stone.", "Ada Stone"),
        (WIFE, "The wife's name: Ada Stone.", "Ada Stone"),
        (WIFE, "She was never Ada Stone.", None),
        (TEAM, "Ann Miller's husband, pitcher Tom Miller, was on the Hill Town Rovers.", "Hill Town Rovers"),
        (TEAM, "He was on the Lake Rovers, who beat the Hill Town Rovers.", "Lake Rovers"),
        ("What company was formed after the merger of Anna Steel?", "It became United Steel in 1961.", "United Steel"),
        (PLACE, "John Day was educated at the University of Leeds, in England.", "University of Leeds"),
        (PLAYED, "In the film, Ada Stone plays the pilot alongside Mary Lee.", "Ada Stone"),
        (PLAYED, "The pilot, who is called Mary Lee, was played by Ada Stone.", "Ada Stone"),
        (FOUNDED, "Hill Town was founded in 1864, although its ground dates to the 1870s.", "1864"),
        (OPENS, "They are open between 5 a.m. and 1 a.m.", "5 a.m."),
        (WIFE, "The man who did not marry is John Day; his wife is Ada Stone.", "Ada Stone"),
        (OWNER, "It formerly belonged to Old Steel, but now its owner is United Steel.", "United Steel"),
        (OWNER, "The current owner is United Steel, Leeds.", "United Steel"),
        ("Who is the mayor of Hill Town?", "The mayor is Mayor Ada Stone.", "Ada Stone"),
        ("In which county is Hill Town?", "Hill Town lies on Lake Anna in Stone County.", "Stone County"),
        ("How many people live in Hill Town?", "Hill Town has 12,400 residents, from 1980 on.", "12,400"),
        ("Who were the founders?", "They were miners, old soldiers and free men.", "miners, old soldiers and free men"),
        (PLACE, "He was educated at Leeds, near the University of York.", "Leeds"),
    ],
)
def test_what_a_sentence_claims(question: str, text: str, expected: str | None) -> None:
    assert score(ask("words", "?", message=question), f"Hmm.\n</think>\n\n{text}", finished=True).answer == expected


def test_a_time_of_day_has_one_spelling() -> None:
    assert normalise("5:00 AM") == normalise("5 a.m.") == normalise("5am") == normalise("5 AM")
    assert len({normalise(each) for each in ("5:30 AM", "5 AM", "5 PM", "15 AM")}) == 4
    assert normalise("5 amps") == "5 amps"
    assert normalise("5 o'clock in the morning") == normalise("5:00 in the morning") == "5am"
    assert normalise("5 in the evening") == normalise("5 o’clock in the afternoon") == "5pm"
