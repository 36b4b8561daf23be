"""What a recipe may say of calibration data, and what it is told where it says something else."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from mixprec.calibration.spec import Behaviour, CalibrationSpec, HubSource, TextSource, TraceSource
from mixprec.core.errors import UserError, from_pydantic
from mixprec.traces import spans

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Holder(BaseModel):
    """Stands for a recipe."""

    calibration: CalibrationSpec


def refusal(**calibration: Any) -> str:
    """The message that a recipe with this calibration gets."""
    with pytest.raises(ValidationError) as caught:
        Holder.model_validate({"calibration": calibration})
    error = from_pydantic(caught.value, "mine.yaml", Holder)
    assert isinstance(error, UserError)
    return str(error)


def test_behaviours_are_those_of_spans() -> None:
    assert get_args(Behaviour) == spans.ALL_BEHAVIOURS


def test_the_long_form() -> None:
    spec = CalibrationSpec.model_validate(
        {
            "sources": [
                {"text": "data:a.txt", "share": 0.5},
                {"traces": "bundled:attribution", "share": 0.25, "behaviours": {"backtracking": 4}, "others": 0},
                {"dataset": "owner/name", "revision": COMMIT, "split": "train[:50]", "files": ["en/a.json.gz"]},
            ],
            "samples": 8,
            "tokens": 64,
            "seed": 3,
        }
    )
    text, traces, hub = spec.sources
    assert isinstance(text, TextSource) and isinstance(traces, TraceSource) and isinstance(hub, HubSource)
    assert (text.text, text.share, traces.behaviours, traces.others) == ("data:a.txt", 0.5, {"backtracking": 4.0}, 0.0)
    assert (hub.name, hub.column, hub.share, traces.pack) == (None, "text", 1.0, True)
    assert CalibrationSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_the_short_form_is_one_source() -> None:
    short = CalibrationSpec.model_validate({"traces": "bundled:attribution", "pack": False, "samples": 3, "tokens": 9})
    long = {"sources": [{"traces": "bundled:attribution", "pack": False}], "samples": 3, "tokens": 9}
    assert short == CalibrationSpec.model_validate(long)
    assert (short.seed, CalibrationSpec.model_validate({"text": "a"}).samples) == (0, 128)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ({}, "calibration.sources: this key is missing"),
        ({"sources": []}, "calibration.sources: no sources; give a text"),
        ({"sources": [{"txt": "a"}]}, "a source is {text: PATH}, {traces: PATH} or {dataset: owner/name"),
        ({"sources": ["a.txt"]}, "a source is {text: PATH}"),
        ({"text": "a", "sample": 5}, "calibration.sample: unknown key; did you mean samples?"),
        ({"traces": "a", "behaviors": {}}, "calibration.sources[0].behaviors: unknown key; did you mean behaviours?"),
        ({"text": "a", "behaviours": {"deduction": 2}}, "calibration.sources[0].behaviours: unknown key"),
        ({"text": "a", "sources": [{"text": "b"}]}, "text and sources exclude one another; move text into the list"),
        ({"text": "a", "samples": 0}, "calibration.samples: 0"),
        ({"text": "a", "tokens": 1}, "calibration.tokens: 1"),
        ({"text": "a", "share": 0}, "calibration.sources[0].share: 0"),
        ({"text": "a", "share": float("inf")}, "calibration.sources[0].share: inf"),
        ({"text": "a", "loops": "maybe"}, "calibration.sources[0].loops: 'maybe'"),
        ({"text": "bundled:held_out"}, "bundled:held_out: it is what compressed models are evaluated on"),
        ({"text": "bundled:attribution"}, "bundled for calibration is traces: bundled:attribution"),
        ({"traces": "bundled:held_out"}, "calibration.sources[0].traces: bundled:held_out: it is what compressed"),
        ({"traces": "a", "behaviours": {"doubt": 2}}, "calibration.sources[0].behaviours.doubt: 'doubt'"),
        ({"traces": "a", "behaviours": {"deduction": -1}}, "calibration.sources[0].behaviours.deduction: -1"),
        ({"traces": "a", "behaviours": {"deduction": float("nan")}}, "behaviours.deduction: nan"),
        ({"traces": "a", "others": 0}, "others: 0 weighs tokens outside of behaviours; name some behaviours"),
        ({"traces": "a", "behaviours": {"deduction": 0}, "others": 0}, "every weight is 0, nothing is left"),
        ({"dataset": "a/b"}, "calibration.sources[0].revision: this key is missing"),
        ({"dataset": "a/b", "revision": "main"}, "'main' is no commit; branches and tags move"),
        ({"dataset": "a/b", "revision": COMMIT[:7]}, "is no commit"),
        ({"dataset": "a/b", "revision": COMMIT.upper()}, "is no commit"),
        ({"dataset": "wikitext", "revision": COMMIT}, "'wikitext' is no hub id; write owner/name"),
        ({"dataset": "../b", "revision": COMMIT}, "is no hub id"),
        ({"dataset": "a/b", "revision": COMMIT, "files": ["https://x.org/a"]}, "is no file of the dataset"),
        ({"dataset": "a/b", "revision": COMMIT, "files": ["x/../../a"]}, "is no file of the dataset"),
        ({"dataset": "a/b", "revision": COMMIT, "files": ["/etc/a"]}, "is no file of the dataset"),
    ],
)
def test_what_is_refused(calibration: dict[str, Any], message: str) -> None:
    found = refusal(**calibration)
    assert found.startswith("mine.yaml: ")
    assert message in found


def test_all_mistakes_at_once() -> None:
    found = refusal(sources=[{"text": "a", "share": -1}, {"dataset": "a/b", "revision": "main"}], seeds=1)
    assert "3 problems" in found and "sources[0].share" in found and "sources[1].revision" in found and "seeds" in found
