"""The map's names looked up in a model of torch: its modules, and every linear's matrix as a view."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from mixprec.models.arch import FAMILIES
from mixprec.models.decoder import Linear, decoder_of


def weight_of(block: nn.Module, linear: Linear) -> Tensor:
    """The matrix (out, in) of a linear of ``block``: a view, so that what is copied into it is in the model."""
    return matrix_of(block.get_parameter(linear.parameter), linear)


def matrix_of(tensor: Tensor, linear: Linear) -> Tensor:
    """A linear's part (out, in) of its parameter, or of a tensor like it, such as its gradient: a view."""
    found = tensor if linear.expert is None else tensor[linear.expert]
    return found if linear.rows is None else found[slice(*linear.rows)]


def module_of(block: nn.Module, linear: Linear) -> nn.Module:
    """The module of ``block`` that receives the linear's input."""
    return block.get_submodule(linear.module)


def blocks_of(model: Any) -> nn.ModuleList:
    """A loaded model's list of decoder blocks."""
    return cast(nn.ModuleList, model.get_submodule(FAMILIES[model.config.model_type].blocks))


def norm_of(model: Any) -> nn.Module:
    """The norm behind a loaded model's last block."""
    found: nn.Module = model.get_submodule(FAMILIES[model.config.model_type].norm)
    return found


def linears_of(model: Any) -> dict[str, nn.Linear]:
    """Address -> linear module of a loaded model, in order."""
    return {
        linear.address: cast(nn.Linear, module_of(block, linear))
        for block, known in zip(blocks_of(model), decoder_of(model.config).blocks, strict=True)
        for linear in known.linears
    }


def outputs_of(model: Any) -> dict[str, tuple[nn.Module, int]]:
    """Embedding, norms of hidden states and head of a loaded model, by full name, with the widths of their outputs."""
    return {name: (model.get_submodule(name), width) for name, width in decoder_of(model.config).outputs.items()}
