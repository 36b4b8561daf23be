"""A model's configuration, without its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.core.upstream import first_line, quiet
from mixprec.models.discover.building import empty
from mixprec.models.gguf import convert
from mixprec.models.locate import cached, commit, resolve, unconverted
from mixprec.models.shapes import known_shapes
from mixprec.models.sizes import check_architecture
from mixprec.models.source import tied


def load_config(model_id: str, revision: str | None = None) -> PretrainedConfig:
    """The model's configuration, without weights.

    Well-known models come from ``known_shapes.yaml``, so that they can be planned for offline.
    Raises UserError where there is none, or its architecture is not supported.
    """
    shapes, where = known_shapes(), None
    if model_id in shapes:
        shape = dict(shapes[model_id])
        config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    elif (header := unconverted(model_id)) is not None:
        config = convert.config_of(header, model_id)
    else:
        where = resolve(model_id)
        try:
            revision = commit(model_id, revision)
        except UserError as problem:
            raise UserError(f"{problem}; known without the hub: {', '.join(shapes)}") from None
        try:
            if Path(where).is_dir():
                # Says what is wrong, and in which line.
                artifacts.read_object(Path(where) / "config.json", finite=False)
            with quiet():
                config = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False)
        except UserError as problem:
            raise UserError(f"model.id: {model_id}: {problem}") from None
        except Exception as problem:  # values of wrong types break it in many ways
            raise UserError(f"model.id: {model_id}: no usable configuration ({first_line(problem)})") from None
    config.name_or_path = model_id
    config._commit_hash = revision  # where its files are looked for (locate.at_hand)
    check_architecture(config, f"model.id: {model_id}")
    if where is not None:
        _tie(config, where, revision)
    return config


def check_builds(config: PretrainedConfig) -> None:
    """Raises UserError where transformers can't build the model of ``config``."""
    try:
        with torch.device("meta"):
            empty(config)
    except Exception as problem:  # values that don't fit each other break it in many ways
        where = getattr(config, "name_or_path", "") or "model"
        raise UserError(f"{where}: config.json describes no model that can be built ({problem})") from None


def _tie(config: PretrainedConfig, where: str, revision: str | None) -> None:
    """Whether the head is the embedding is what the tensors say, where they are on this machine."""
    folder = Path(where) if Path(where).is_dir() else cached(where, revision)
    if folder is not None:
        config.tie_word_embeddings = tied(folder, config)
