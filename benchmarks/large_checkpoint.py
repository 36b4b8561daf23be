"""Random weights in the shape of R1-Distill-Llama-8B, with fewer blocks: for memory and time, not for quality.

python benchmarks/large_checkpoint.py FOLDER [--blocks 3]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mixprec.core import environment

environment.settle()  # before torch is imported

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from mixprec.models.config import load_config

SHAPE = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"


def write(folder: Path, blocks: int) -> None:
    """bfloat16, one file a block and one for the rest; weights as large as a trained model's."""
    config = load_config(SHAPE)
    config.num_hidden_layers = blocks
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    parts: dict[str, list[str]] = {}
    for name in shapes:
        part = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        parts.setdefault(part, []).append(name)
    index = {}
    for number, names in enumerate(parts.values(), 1):
        shard = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        tensors = {name: random(shapes[name], generator) for name in names}
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        index |= dict.fromkeys(names, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def random(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Norms are ones, matrices have the usual scale of 0.02."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=3)
    arguments = parser.parse_args()
    write(arguments.folder, arguments.blocks)
