"""Write docs/architectures.md from tests/architectures.py. python scripts/update_architectures.py [--check]"""

from __future__ import annotations

import sys
from pathlib import Path

import generated

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architectures.md"
sys.path.append(str(ROOT / "tests"))

_HEAD = """# Architectures

Each of these is tested on a tiny random model from a configuration with its real structure (`tests/architectures.py`):
what its modules are called, loading, walking, compression and what transformers loads of it
(`tests/models/test_architectures.py`), and [attribution](importance.md#any-architecture) against full
backpropagation through transformers' own model (`tests/importance/test_any_architecture.py`). They are no limit: any
decoder that `AutoModelForCausalLM` builds is discovered. Mixtures of experts may have experts
[dropped](compression.md#dropping-experts) (`tests/compress/test_dropping.py`). AWQ wants to know where scales fold
([yes](compression.md#awq-and-protected-modules): `tests/compress/test_folding_anywhere.py`); others it refuses by name.

Calibration and sensitivity take blocks one by one. Of every architecture that is discovered it is tried once, without
its weights, whether that gives what the whole model computes; where blocks hand something to one another besides hidden
states, such as Zaya's routers or keys that Gemma 4's blocks share, the model is refused by name, and RTN is what
compresses it (`tests/walk/test_whole.py`).

"""
_KINDS = ("Text models", "Others, which nothing here was made for", "Text decoders inside multimodal models")


def page() -> str:
    """docs/architectures.md as the tests have it."""
    import architectures
    import torch

    from mixprec.models.discover.building import class_of
    from mixprec.models.maps import decoder_of

    text = _HEAD
    with torch.device("meta"):
        for title, names in zip(_KINDS, (architectures.TEXT, architectures.OTHERS, architectures.WRAPPED), strict=True):
            text += f"## {title}\n\n| `model_type` | class | attribution | experts | AWQ |\n|---|---|---|---|---|\n"
            for name in names:
                config = architectures.config_of(name)
                kind = class_of(config)
                assert kind is not None
                decoder = decoder_of(config)
                awq = all(group.source is not None for group in decoder.groups)
                path = architectures.PATHS.get(name, "packed")
                told = " | ".join("yes" if each else "" for each in (decoder.experts, awq))
                text += f"| `{name}` | {kind.__name__} | {path} | {told} |\n"
            text += "\n"
    return text + "<!-- Written by scripts/update_architectures.py. -->\n"


if __name__ == "__main__":
    generated.main(PAGE, page)
