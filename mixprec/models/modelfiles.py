"""The files in a checkpoint's folder: which go along with a copy, and which of them say what the model is.

All that changes what a model reads or writes does both: configuration, defaults of generation, tokenizer, chat
templates, processors, code that the configuration names.
"""

from __future__ import annotations

from pathlib import Path

from mixprec.core import artifacts, seals
from mixprec.core.errors import UserError

#: What mixprec writes into a checkpoint: what it was made from.
CARD = "mixprec.json"
#: The model card: every checkpoint gets its own.
README = "README.md"
#: What mixprec writes into a student's checkpoint beside these: how its losses went.
CURVES = ("distillation/losses.json", "distillation/losses.png")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_TEMPLATES = "additional_chat_templates"
#: Changes what a model reads or writes.
_READ = ("*.json", "*.jinja", "*.model", "*.tiktoken", "vocab.txt", "merges.txt", f"{_TEMPLATES}/*.jinja")
#: For people.
_TERMS = ("*.txt", "LICENSE*", "NOTICE*", "USE_POLICY*")
_CODE = "*.py"
#: What is fetched from the hub beside weights.
SIDE_FILES = (*_READ, *_TERMS, _CODE)
#: Describe other weights than a copy has: how the source's were packed, its shards, an adapter beside them.
_OF_THE_WEIGHTS = frozenset(
    {CARD, INDEX, "quantize_config.json", "quant_config.json", "hf_quant_config.json", "adapter_config.json"}
)


def side_files(folder: Path) -> list[Path]:
    """The files that go along with new weights, in order; templates lie in a folder of their own."""
    patterns = (*_READ, *_TERMS, *([_CODE] if code(folder) else []))
    return [path for path in _matching(folder, patterns) if path.name not in _OF_THE_WEIGHTS]


def identity(folder: Path) -> str:
    """Fingerprint of all that changes what the model in ``folder`` reads or writes; licences and cards don't."""
    files = _identifying(folder)
    return artifacts.fingerprint([(name, artifacts.sha256_file(path)) for name, path in files.items()])


def states(folder: Path) -> dict[str, seals.State]:
    """What the file system knows of the files that ``identity`` is made of, by their names."""
    return {name: seals.state(path) for name, path in _identifying(folder).items()}


def _identifying(folder: Path) -> dict[str, Path]:
    patterns = (*_READ, *([_CODE] if code(folder) else []))
    files = [*_weights(folder), *(path for path in _matching(folder, patterns) if path.name != CARD)]
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: names[name] for name in sorted(names)}


def code(folder: Path) -> list[str]:
    """What the configurations name of code beside them (``auto_map``). mixprec runs none of it."""
    found: set[str] = set()
    for path in _matching(folder, ("*config.json",)):
        try:
            named = artifacts.read_object(path, finite=False).get("auto_map")
        except UserError:  # who needs this file says what is wrong with it
            continue
        values = named.values() if isinstance(named, dict) else [named]
        for value in values:
            found.update(each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str))
    return sorted(found)


def left_behind(folder: Path) -> list[str]:
    """Files that neither go along nor are read as weights: other formats, training states, pictures."""
    own = (folder / name for name in (CARD, INDEX, README, *CURVES))
    known = {*_weights(folder), *side_files(folder), *own}
    paths = (path for path in folder.rglob("*") if path.is_file() and path not in known)
    names = (path.relative_to(folder) for path in paths)
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def said_of_the_rest(folder: Path) -> list[str]:
    """Sentences for the user: which files stay behind, and which code was not run."""
    said = []
    if rest := left_behind(folder):
        more = f" and {len(rest) - 3} more" if len(rest) > 3 else ""
        said.append(f"{len(rest)} files that are no part of the model stay behind: {', '.join(rest[:3])}{more}")
    if named := code(folder):
        said.append(
            f"the configuration names code ({', '.join(named)}); none of it was run: the weights were read as the "
            "architecture that config.json names. The code goes along"
        )
    return said


def _weights(folder: Path) -> list[Path]:
    """The files that weights are read from: one, or shards, or GGUF."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    shards = [path for path in _matching(folder, ("*.safetensors",)) if not path.name.startswith(_OTHER_WEIGHTS)]
    return shards or _matching(folder, ("*.gguf",))


#: The same weights under other names, and those of an adapter.
_OTHER_WEIGHTS = ("consolidated", "adapter")


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def chat_templates(folder: Path) -> dict[str, str]:
    """Name -> text of the tokenizer's chat templates; files go before what tokenizer_config.json has."""
    files = {path.stem: path for path in _matching(folder, (f"{_TEMPLATES}/*.jinja",))}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    if files:
        return {name: artifacts.read_text(files[name]) for name in sorted(files)}
    path = folder / "tokenizer_config.json"
    said = artifacts.read_object(path, finite=False).get("chat_template") if path.is_file() else None
    if isinstance(said, str):
        return {"default": said}
    rows = said if isinstance(said, list) else []
    named = {row.get("name"): row.get("template") for row in rows if isinstance(row, dict)}
    return {name: text for name, text in named.items() if isinstance(name, str) and isinstance(text, str)}
