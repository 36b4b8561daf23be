"""Values of the protocol that no file of results could hold."""

from __future__ import annotations

import datetime
import math
from typing import Any

import pytest
from pydantic import ValidationError

from mixprec.evaluate.spec import ProtocolSpec


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": math.inf}, "finite number"),
        ({"prompts": "chat", "template": {"x": math.nan}}, "x: nan can't be written as JSON"),
        ({"prompts": "chat", "template": {"day": datetime.date(2026, 1, 1)}}, "day: .* put it in quotes"),
    ],
)
def test_values_that_are_not_json(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ProtocolSpec.model_validate(given)
