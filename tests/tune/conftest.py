from __future__ import annotations

import pytest
from lessons_drawn import samples

from mixprec.tune.tuning import Lessons


@pytest.fixture
def lessons() -> Lessons:
    return Lessons(samples(6), samples(3, skip=6))
