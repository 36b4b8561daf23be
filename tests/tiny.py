"""A decoder of a few thousand weights with a tokenizer, on disk, and traces that its tokenizer was made for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from mixprec.models.encoding import Encoder
from mixprec.models.load import LoadedModel

SHAPE: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}

_SENTENCES = (
    ("initializing", "Okay, I need to find how many apples are left."),
    ("deduction", "There were six apples and two are gone, so four are left."),
    ("backtracking", "Wait, that is not right, let me go back."),
    ("uncertainty_estimation", "I am not sure whether the pears count too."),
    ("example_testing", "For example, take two apples and one pear."),
    ("adding_knowledge", "I recall that a pear is no apple."),
)
TRACES = tuple(
    {
        "id": f"apples-{number}",
        "dataset": "toy",
        "prompt": f"There were {number + 4} apples.\n<think>\n",
        "output": " ".join(text for _, text in sentences) + "\n</think>\n\nFour.",
        "annotated": " ".join(
            f'["{behaviour.replace("_", "-")}"] {text} ["end-section"]' for behaviour, text in sentences
        ),
    }
    for number, sentences in enumerate([_SENTENCES, _SENTENCES[::-1], _SENTENCES[1:4], _SENTENCES[3:]])
)
TEXT = "Six apples and four pears lie on the table. Two apples are gone, and nobody knows where they went.\n" * 3


def tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with character offsets: any text goes through it; ``bos`` puts <s> in front."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([TEXT, *(trace["output"] for trace in TRACES)], trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def encoder(bos: bool = True) -> Encoder:
    """The tokenizer as mixprec uses it."""
    words = tokenizer(bos)
    return Encoder(words, len(words))


def build(architecture: str = "llama", *, seed: int = 0, bos: bool = True, **options: Any) -> LoadedModel:
    """A tiny random model with its tokenizer; ``options`` are keys of its configuration."""
    torch.manual_seed(seed)
    words = tokenizer(bos)
    config = AutoConfig.for_model(architecture, **{**SHAPE, "vocab_size": len(words), **options})
    return LoadedModel(
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), Encoder(words, config.vocab_size)
    )


def write_checkpoint(folder: Path, architecture: str = "llama", *, steps: int = 0, **options: Any) -> Path:
    """Write ``build``'s model to a folder; after so many steps of training it knows TRACES by heart."""
    loaded = build(architecture, **options)
    learn(loaded, steps)
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def learn(loaded: LoadedModel, steps: int) -> None:
    """Train on TRACES: random weights predict nothing that quantization could spoil."""
    optimizer = torch.optim.Adam(loaded.model.parameters(), lr=1e-2)
    texts = [trace["prompt"] + trace["output"] + "</s>" for trace in TRACES]
    ids = [loaded.tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
    for step in range(steps):
        text = ids[step % len(ids)]
        loaded.model(input_ids=text, labels=text).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def write_traces(path: Path, *traces: Mapping[str, Any]) -> Path:
    """Write a trace file, by default TRACES."""
    rows = traces or TRACES
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_recipe(path: Path, model: Path, on: Path, **parts: Any) -> Path:
    """Write a recipe (JSON is YAML) that walks every stage on the model and the traces; ``parts`` replace its keys."""
    ranked = {"least_important": "last_*"}
    recipe = {
        "title": "tiny",
        "model": {"id": str(model)},
        "traces": {"source": str(on)},
        "importance": {"preset": "paper", "compare": ["released"]},
        "variants": {
            "original": {"plan": {"default": "keep"}},
            "uniform": {"description": "all in 2 bits", "plan": {"default": "w2g16"}},
            "least": {"plan": {"default": "keep", "rules": [{"match": ranked, "format": "w3g16"}]}},
        },
        "evaluate": {"traces": {"source": str(on)}, "text": str(path.parent / "text.txt"), "text_tokens": 32},
    }
    (path.parent / "text.txt").write_text(TEXT, encoding="utf-8")
    merged = {key: value for key, value in (recipe | parts).items() if value is not None}
    path.write_text(json.dumps(merged, indent=1), encoding="utf-8")
    return path
