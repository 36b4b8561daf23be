"""Addresses, the paper's labels, and selectors."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixprec.core.errors import UserError
from mixprec.models import labels as naming
from mixprec.models.arch import FAMILIES
from mixprec.models.maps import decoder_of

LAYERS = 12
DECODER = decoder_of({"model_type": "llama", "num_hidden_layers": LAYERS})
layers = st.integers(1, LAYERS)
kinds = st.sampled_from(naming.KINDS)


def labels(selector: str) -> list[str]:
    return [module.label for module in naming.select(DECODER.linears, selector)]


@given(layers, kinds)
def test_addresses_and_labels_name_one_module(layer: int, kind: str) -> None:
    address = next(each.address for each in DECODER.blocks[layer - 1].linears if each.kind == kind)
    assert naming.parse_address(address) == (layer, kind)
    assert naming.label_of(address) == f"{layer}_{kind}"
    assert labels(address) == labels(f"{layer}_{kind}") == [f"{layer}_{kind}"]
    module = DECODER[address]
    assert (module.layer, module.kind, module.weight_name) == (layer, kind, f"{address}.weight")


@given(
    st.sampled_from([*map(str, range(1, LAYERS + 1)), "last", "*"]),
    st.sampled_from([*naming.KINDS, "attn", "mlp", "*"]),
)
def test_a_label_selects_a_layer_times_kinds_in_the_models_order(layer: str, kind: str) -> None:
    chosen_layers = range(1, LAYERS + 1) if layer == "*" else [LAYERS if layer == "last" else int(layer)]
    chosen_kinds = {"attn": "q k v o", "mlp": "gate up down", "*": "q k v o gate up down"}.get(kind, kind).split()
    assert labels(f"{layer}_{kind}") == [f"{a}_{b}" for a in chosen_layers for b in chosen_kinds]


@settings(deadline=None)  # what was most likely meant is looked for among all names
@given(
    st.lists(
        st.sampled_from(["model.layers.", "*", "?", "1", "[0-3]", ".mlp.", ".self_attn.", "up_proj", "*_proj"]),
        min_size=1,
        max_size=6,
    )
)
def test_other_selectors_are_globs_over_addresses(parts: list[str]) -> None:
    glob = "".join(parts)
    if naming._LABEL.fullmatch(glob):
        return
    expected = [m.label for m in DECODER.linears if fnmatch.fnmatchcase(m.address, glob)]
    if expected:
        assert labels(glob) == expected
    else:
        with pytest.raises(UserError, match="matches no module"):
            labels(glob)


@pytest.mark.parametrize(
    ("selector", "hint"),
    [
        ("13_up", r"layers are 1 to 12"),
        ("0_up", r"did you mean .*10_up"),
        ("12_upp", r"did you mean 12_up"),
        ("last_foo", r"kinds q, k, v, o, gate, up, down, attn, mlp"),
        ("LAST_up", r"labels such as 12_down, last_mlp"),
        ("model.layers.11.mlp.up", r"did you mean model\.layers\.11\.mlp\.up_proj"),
        ("", r"a glob such as model\.layers\.\*\."),
    ],
)
def test_a_selector_that_matches_nothing_says_what_would(selector: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint) as caught:
        labels(selector)
    assert f"selector {selector!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("lm_head", (None, "lm_head")),
        ("model.norm", (None, "norm")),
        ("model.embed_tokens", (None, "embed_tokens")),
        ("model.layers.3.input_layernorm", (4, "input_layernorm")),
        ("model.layers", (None, "layers")),
        ("model.layers.x.mlp.up_proj", (None, "up_proj")),
        ("model.layers.3.mlp.up_proj.weight", (4, "mlp.up_proj.weight")),
    ],
)
def test_other_names_are_their_own_kind(name: str, found: tuple[int | None, str]) -> None:
    assert naming.parse_address(name) == found


def test_a_path_has_one_label_in_all_families() -> None:
    rows = {(row.path, row.kind) for family in FAMILIES.values() for rows in family.parts.values() for row in rows}
    assert len(rows) == len({path for path, _ in rows})
    for family in FAMILIES.values():
        listed = [row.kind for rows in family.parts.values() for row in rows]
        assert [kind for shared in family.shared for kind in shared.kinds] == listed


def test_the_papers_kinds() -> None:
    assert {"q", "k"} == naming.COMPARED
    assert naming.KINDS == ("q", "k", "v", "o", "gate", "up", "down")
    assert {"attn": naming.KINDS[:4], "mlp": naming.KINDS[4:], "*": naming.KINDS} == naming.KIND_GROUPS
