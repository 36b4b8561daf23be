"""Why a path is no checkpoint that mixprec reads: what it is instead, and what to do.

Looks at names of files and the first bytes of some; loads nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from mixprec.core import parsing
from mixprec.models.gguf.parts import gguf_in, is_gguf

_CONFIG: Final = "config.json"
_WEIGHTS: Final = ("model.safetensors", "model.safetensors.index.json")
_ADAPTER: Final = "adapter_config.json"
#: Files that hold a tokenizer's vocabulary.
_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
_LFS: Final = b"version https://git-lfs"
#: No pointer of git-lfs is longer.
_POINTER_BYTES: Final = 1024
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt")
#: Suffix -> what such a file holds.
_FOREIGN: Final = {
    ".onnx": "ONNX",
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".tflite": "TensorFlow Lite",
    ".npz": "MLX or NumPy",
    ".llamafile": "llamafile",
    ".mlmodel": "Core ML",
    ".exe": "a program",
}
_SAVE: Final = "load it with transformers' AutoModelForCausalLM and save it with save_pretrained"


def of_folder(folder: Path) -> str | None:
    """Why a folder is no checkpoint that is read, and what to do; None where it is one.

    A folder with a configuration alone passes: plans need no weights.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    names = {path.name for path in files}
    pointers = [path.name for path in files if is_pointer(path)]
    if pointers:
        return f"{_some(pointers)}: pointers of git-lfs, not the files themselves; run: git lfs pull"
    if has_weights(folder):
        described = _CONFIG in names or gguf_in(folder) is not None
        return None if described else "no config.json in this folder, beside the weights; fetch it"
    found = _other_weights(folder, files)
    if found is None and _CONFIG not in names:
        found = _without_config(folder, names)
    return found


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights in files that mixprec reads."""
    return any((folder / name).is_file() for name in _WEIGHTS) or gguf_in(folder) is not None


def missing_weights(folder: Path) -> str:
    """What to do about a folder without weights."""
    unfinished = any(folder.rglob("*.incomplete"))
    return "the download was not finished; fetch it again" if unfinished else "there are no weights; fetch them"


def of_file(path: Path, *, any_name: bool = False) -> str | None:
    """Why a file is no model, and what to do; None for a GGUF file, with ``any_name`` or one that GGUF files have."""
    with path.open("rb") as file:
        begins = file.read(len(_LFS))
    if begins != _LFS and (is_gguf(path) or (any_name and begins.startswith(b"GGUF"))):
        return None
    if begins.startswith(b"GGUF"):
        return "a GGUF file by its content; give it a name that ends in .gguf"
    if begins == _LFS:
        return "a pointer of git-lfs, not the file itself; run: git lfs pull"
    if path.suffix == ".safetensors" or path.name == _CONFIG:
        return f"one file of a checkpoint; give its folder, {path.parent}"
    if path.suffix in _PICKLES:
        return f"pickled weights, which can run code and are not read; {_SAVE}, and give that folder"
    return "a file, but no GGUF file; give a checkpoint's folder, a .gguf file or a hub id"


def without_tokenizer(folder: Path) -> str | None:
    """What to do about a folder without a tokenizer; None where there is one."""
    if any((folder / name).is_file() for name in _TOKENIZERS):
        return None
    return f"no tokenizer in this folder; copy {_TOKENIZERS[0]} and tokenizer_config.json of the model's origin there"


def is_pointer(path: Path) -> bool:
    """Whether git left a pointer where git-lfs has a file."""
    if path.stat().st_size > _POINTER_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(len(_LFS)) == _LFS


def _other_weights(folder: Path, files: Iterable[Path]) -> str | None:
    """What to say of weights in files that mixprec does not read; None where there are none."""
    names = [path.name for path in files]
    if _ADAPTER in names:
        return _adapter(folder)
    ggufs = [path.name for path in files if is_gguf(path)]
    if ggufs:
        return f"{len(ggufs)} GGUF files; give the one that is meant, such as {folder / ggufs[0]}"
    consolidated = [name for name in names if name.startswith("consolidated")]
    if consolidated:
        return (
            f"{_some(consolidated)}: weights under the names of their makers, such as Mistral's or Meta's; "
            "fetch the files for transformers (config.json, model*.safetensors)"
        )
    tensors = [name for name in names if name.endswith(".safetensors")]
    if tensors:
        return (
            f"weights in {_some(tensors)}; read are {_WEIGHTS[0]}, or the files that {_WEIGHTS[1]} names; fetch those"
        )
    pickles = [path.name for path in files if path.suffix in _PICKLES and path.name != "training_args.bin"]
    if pickles:
        return f"weights in {_some(pickles)}, pickles, which can run code and are not read; {_SAVE}"
    foreign = {_FOREIGN[path.suffix] for path in files if path.suffix in _FOREIGN}
    if foreign:
        return f"weights of {' and '.join(sorted(foreign))}; give the model that they were made from, in safetensors"
    return None


def _without_config(folder: Path, names: set[str]) -> str:
    patterns = (f"*/{_CONFIG}", f"snapshots/*/{_CONFIG}")
    below = sorted(path.parent for pattern in patterns for path in folder.glob(pattern))
    if below:
        return f"no config.json in this folder; it lies below, give {below[0]}"
    if not any(folder.iterdir()):
        return "this folder is empty"
    if names & set(_TOKENIZERS):
        return "a tokenizer alone, without config.json and weights; give the model's folder"
    return "no config.json in this folder; it is no checkpoint"


def _adapter(folder: Path) -> str:
    try:
        said = parsing.parse_json((folder / _ADAPTER).read_bytes().decode("utf-8"), finite=False)
    except ValueError:
        said = {}
    said = said if isinstance(said, dict) else {}
    kind, base = said.get("peft_type") or "an unknown kind", said.get("base_model_name_or_path") or "its base model"
    return (
        f"an adapter ({kind}) for {base}, no model; merge it first (peft: AutoPeftModelForCausalLM.from_pretrained(…)"
        ".merge_and_unload().save_pretrained(…)) and give the merged folder"
    )


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
