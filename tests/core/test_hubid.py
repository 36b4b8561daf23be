"""What is taken for an id of the hub is what huggingface_hub takes for an owner/name."""

from __future__ import annotations

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from hypothesis import example, given
from hypothesis import strategies as st

from mixprec.core.errors import UserError
from mixprec.core.hubid import checked_id, is_hub_id


def theirs(text: str) -> bool:
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count("/") == 1


@given(st.text(alphabet="ab_-./é ", max_size=9))
@example("owner/name")
@example("o/" + "n" * 96)
@example("o/" + "n" * 97)
@example("o/name.git")
@example("o/a--b")
@example("o/a..b")
@example("-o/name")
@example("o/name.")
@example("o/name\n")
@example("datasets/o/name")
def test_the_same_ids_as_the_hubs_own_package(text: str) -> None:
    assert is_hub_id(text) == theirs(text)


def test_another_is_refused_by_name() -> None:
    assert checked_id("owner/name") == "owner/name"
    with pytest.raises(UserError, match=r"'name' is no id of the hub; write owner/name"):
        checked_id("name")
