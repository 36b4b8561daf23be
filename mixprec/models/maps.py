"""Maps of decoders, from their configurations: by tables, or by a look at the model that transformers builds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mixprec.models.arch import FAMILIES
from mixprec.models.arch.family import Family, Shared, Sizes
from mixprec.models.decoder import Block, Decoder, Group, Linear, Norm, Rows
from mixprec.models.sizes import check_architecture, reader, sizes_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from mixprec.models.renames import Names


def decoder_of(config: PretrainedConfig | Mapping[str, Any], where: str | None = None) -> Decoder:
    """The map of the model that ``config`` describes, an object of transformers or what config.json holds.

    ``where`` says in errors which model it is.

    Of the families in ``models/arch/`` it is arithmetic; others are built without weights and looked at.
    Raises UserError for what is no decoder of linear modules, and for sizes that no model has.
    """
    where = where or getattr(config, "name_or_path", "") or "model"
    check_architecture(config, where)
    if reader(config)("model_type") in FAMILIES:
        return _by_table(config)
    from mixprec.models.discover.maps import map_of  # brings torch and transformers

    return map_of(config, where)


def names_of(config: PretrainedConfig | Mapping[str, Any], where: str = "model") -> Names | None:
    """How names of tensors in checkpoints become those of the model; None where they are the same."""
    if reader(config)("model_type") in FAMILIES:
        return None
    from mixprec.models.discover.maps import renaming_of  # brings torch and transformers

    return renaming_of(config, where)


def _by_table(config: PretrainedConfig | Mapping[str, Any]) -> Decoder:
    read, sizes = reader(config), sizes_of(config)
    family = FAMILIES[read("model_type")]
    biased = {
        row.kind: bool(read(row.bias) if isinstance(row.bias, str) else row.bias)
        for rows in family.parts.values()
        for row in rows
    }
    blocks = tuple(_block(family, sizes, index) for index in range(read("num_hidden_layers")))
    return Decoder(
        architecture=read("model_type"),
        blocks=blocks,
        shapes=_shapes(family, sizes, biased, len(blocks)),
        blocks_path=family.blocks,
        embedding=family.embedding,
        around=family.around,
        norm=family.norm,
        head=family.head,
        sizes=sizes,
        tied=bool(read("tie_word_embeddings")),
    )


def _block(family: Family, sizes: Sizes, index: int) -> Block:
    path = f"{family.blocks}.{index}"
    linears = {
        row.kind: Linear(
            address=f"{path}.{row.path}",
            layer=index + 1,
            kind=row.kind,
            out_features=getattr(sizes, row.out),
            in_features=getattr(sizes, row.into),
            block=path,
            parameter=f"{row.path}.weight",
        )
        for rows in family.parts.values()
        for row in rows
    }
    groups = tuple(
        Group(
            tuple(linears[kind] for kind in shared.kinds),
            _source(family, shared, linears, sizes),
            shared.fused and f"{path}.{shared.fused}",
        )
        for shared in family.shared
    )
    return Block(index + 1, path, groups, family.norms, family.head_norms)


def _source(family: Family, shared: Shared, linears: Mapping[str, Linear], sizes: Sizes) -> Norm | Rows | None:
    if shared.norm is not None:
        return Norm(shared.norm, family.offset)
    if shared.rows is None:
        return None
    source = linears[shared.rows]
    return Rows(source, sizes.head, sizes.query // sizes.key) if shared.heads else Rows(source)


def _shapes(family: Family, sizes: Sizes, biased: Mapping[str, bool], layers: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model of so many ``layers``, in the order in which it names them -> shape."""
    inside: dict[str, tuple[int, ...]] = {}
    for part, rows in family.parts.items():
        for row in rows:
            out, into = getattr(sizes, row.out), getattr(sizes, row.into)
            inside |= {f"{row.path}.weight": (out, into)} | ({f"{row.path}.bias": (out,)} if biased[row.kind] else {})
        if part == "attn":
            inside |= {f"{norm}.weight": (sizes.head,) for norm in family.head_norms}
    inside |= {f"{norm}.weight": (sizes.hidden,) for norm in family.norms}
    outside = (sizes.vocabulary, sizes.hidden)
    found: dict[str, tuple[int, ...]] = {f"{family.embedding}.weight": outside}
    for index in range(layers):
        found |= {f"{family.blocks}.{index}.{name}": shape for name, shape in inside.items()}
    return found | {f"{family.norm}.weight": (sizes.hidden,), f"{family.head}.weight": outside}
