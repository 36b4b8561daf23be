"""Plans for single experts, in words of tools that keep experts in one tensor."""

from __future__ import annotations

import architectures
import pytest

from mixprec.contrib.export import TARGETS
from mixprec.core.errors import UserError
from mixprec.models.maps import decoder_of
from mixprec.plan.rules import PlanSpec, build_plan


def test_llama_cpp_has_no_word_for_one_expert() -> None:
    decoder = decoder_of(architectures.config_of("qwen3_moe"))
    plan = build_plan(PlanSpec.model_validate({"default": "w8g32", "method": "rtn"}), decoder, "moe", "rtn")
    with pytest.raises(UserError, match=r"llama\.cpp has no tensor for this matrix alone; write the file itself"):
        TARGETS["llamacpp"](plan, decoder, "rtn")
