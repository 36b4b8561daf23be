"""Each target's syntax read back without the target: what does a file say about each module of a model?

Written from the targets' documents and sources, not from the exporters: first match or last match, search or fullmatch.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import gguf
import yaml


class Grid(NamedTuple):
    bits: int
    group_size: int
    symmetric: bool


#: A module's name -> its grid, or None where it is left as it is.
Reading = dict[str, Grid | None]


def gptqmodel(text: str, names: Iterable[str]) -> Reading:
    """The first rule that matches from the name's start, negative ones first; linear modules outside blocks never."""
    config = json.loads(text)
    rules = sorted(config["dynamic"].items(), key=lambda rule: not rule[0].startswith("-:"))

    def read(name: str) -> Grid | None:
        if name == "lm_head":
            return None
        for key, override in rules:
            if re.match(key[2:], name):
                return None if key.startswith("-:") else _grid({**config, **override}, "sym")
        return _grid(config, "sym")

    return {name: read(name) for name in names}


def llmcompressor(text: str, names: Iterable[str]) -> Reading:
    """Groups by their targets, ``re:`` matching from the name's start or a whole name, less what is ignored."""
    (stage,) = yaml.safe_load(text).values()
    (modifiers,) = stage.values()
    *_, last = modifiers.values()

    def hit(name: str, target: str) -> bool:
        return bool(re.match(target[3:], name)) if target.startswith("re:") else name == target

    def read(name: str) -> Grid | None:
        found = [
            group["weights"]
            for group in last["config_groups"].values()
            if any(hit(name, target) for target in group["targets"])
        ]
        ignored = any(hit(name, target) for target in last["ignore"])
        assert len(found) + ignored <= 1, f"{name} is named {len(found) + ignored} times"
        if not found:
            return None
        weights = found[0]
        assert (weights["strategy"] == "channel") == ("group_size" not in weights)
        return Grid(weights["num_bits"], weights.get("group_size", -1), weights["symmetric"])

    return {name: read(name) for name in names}


def autoround(text: str, names: Iterable[str]) -> Reading:
    """Every pattern that is found in a name, the last one counts; dots are no wildcards; the scheme for the others."""
    config = json.loads(text)

    def read(name: str) -> Grid | None:
        if name == "lm_head":
            return None
        found = config["scheme"]
        for key, layer in config["layer_config"].items():
            assert "\\" not in key, "AutoRound would escape it again"
            if re.search(key.replace(".", r"\."), name):
                found = {**config["scheme"], **layer}
        return None if found["bits"] >= 16 else _grid(found, "sym")

    return {name: read(name) for name in names}


def modelopt(text: str, names: Iterable[str]) -> Reading:
    """Entries in order, each replacing what came before, over the names of quantizers."""
    config = json.loads(text)

    def read(name: str) -> Grid | None:
        found: Grid | None = Grid(8, -1, True)  # what a quantizer has unless told otherwise
        for entry in config["quant_cfg"]:
            if fnmatch.fnmatch(f"{name}.weight_quantizer", entry["quantizer_name"]):
                found = _modelopt_grid(entry["cfg"]) if "cfg" in entry else None
            assert not (fnmatch.fnmatch(f"{name}.input_quantizer", entry["quantizer_name"]) and "cfg" in entry)
        return found

    return {name: read(name) for name in names}


def _modelopt_grid(cfg: dict[str, Any]) -> Grid:
    blocks = cfg.get("block_sizes")
    assert blocks is not None or cfg["axis"] == 0
    return Grid(cfg["num_bits"], blocks["-1"] if blocks else -1, True)


def llamacpp(text: str, names: Iterable[str], layers: int) -> dict[str, str]:
    """Module -> ggml type: words ``pattern=type``, the pattern searched for in GGUF's name of the tensor."""
    rules = [word.split("=") for word in text.split()]
    known = {kind.name.lower() for kind in gguf.GGMLQuantizationType}
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    found = {}
    for name in names:
        tensor = table.get_name(f"{name}.weight", try_suffixes=(".weight",))
        kinds = [kind for pattern, kind in rules if re.search(pattern, tensor)]
        assert len(kinds) <= 1
        assert set(kinds) <= known
        found[name] = kinds[0] if kinds else ""
    return found


def _grid(config: dict[str, Any], symmetric: str) -> Grid:
    return Grid(config["bits"], config["group_size"], config[symmetric])


READERS: dict[str, Callable[[str, Iterable[str]], Reading]] = {
    "gptqmodel": gptqmodel,
    "llmcompressor": llmcompressor,
    "autoround": autoround,
    "modelopt": modelopt,
}
