"""Run each installed peer under a random plan that mixprec exported, and see that every module came out as planned.

python benchmarks/peers/check_export.py [--peers NAME …] [--seed N] [--work FOLDER]

A tiny Llama is made whose weights tell grids apart. Of the checkpoint that the peer made of it: kept modules and all
other tensors are the source's, byte for byte; the values of each group number 2^bits at most, and more than half of
that where bits are few, else the error is that of so many bits; groups are not finer (the values of one are of one
grid) and not coarser (those of two neighbours are of two); rows of one sign use half of a symmetric grid and all of an
asymmetric one. AWQ scales kept modules and norms, and clips: of its results only the values are counted.

Exit code 1 where a peer did something else, with the modules named. Peers without an environment are passed over.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from mixprec.contrib.export import TARGETS
from mixprec.contrib.peers.client import PEERS, PeerFailed, missing, run_peer, write_tokens
from mixprec.models.decoder import Decoder
from mixprec.models.maps import decoder_of
from mixprec.numerics.formats import KEEP, Format, Keep
from mixprec.plan.schema import ModulePlan, Plan

METHODS = {
    "llmcompressor": ("gptq", "awq", "rtn"),
    "gptqmodel": ("gptq", "gptaq", "awq", "rtn"),
    "autoround": ("rtn", "autoround"),
    "modelopt": ("rtn",),
}
#: Formats that each peer can hold, groups that divide 128 and 192 and are as long as 2^bits values of the small grids.
FORMATS = {
    "llmcompressor": ("w2g32", "w3g32", "w4g64", "w8g64", "w3", "w3g64_asym", "w4g32_asym", "keep"),
    "gptqmodel": ("w2g32", "w3g32", "w4g64", "w8g64", "w3", "w3g64_asym", "w4g32_asym", "keep"),
    "autoround": ("w2g32", "w3g32", "w4g64", "w8g64", "w3", "w3g64_asym", "w4g32_asym", "keep"),
    "modelopt": ("w2g32", "w3g32", "w4g64", "w8g64", "w3", "keep"),
}
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
SAMPLES, LENGTH = 8, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where models, plans, checkpoints and logs stay; default: nowhere")
    arguments = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for peer in arguments.peers:
            reason = missing(peer)
            if reason:
                print(f"{peer}: passed over: {reason}")
                continue
            for method in METHODS[peer]:
                problems = check(peer, method, work, arguments.seed)
                failed |= bool(problems)
                print(f"{peer} {method}: {'as planned' if not problems else ''}")
                print("".join(f"  {problem}\n" for problem in problems), end="", flush=True)
    sys.exit(failed)


def check(peer: str, method: str, work: Path, seed: int = 0) -> list[str]:
    """Run one peer under a random plan; what it did otherwise, one line per module."""
    source = work / "source"
    if not source.is_dir():
        write_source(source, work / "tokens.safetensors")
    modules = decoder_of(AutoConfig.from_pretrained(source))
    plan = random_plan(modules, formats_of(peer, method), str(source), seed, shared=method == "awq")
    text = TARGETS[peer](plan, modules, method)
    path = work / f"{peer}_{method}.plan"
    path.write_text(text, encoding="utf-8")
    job = {"peer": peer, "method": method, "model": source, "out": work / f"{peer}_{method}_{seed}", "plan": path}
    shutil.rmtree(job["out"], ignore_errors=True)
    job |= {"calibration": work / "tokens.safetensors", "settings": {"iters": 2} if method == "autoround" else {}}
    try:
        run_peer({key: str(value) if isinstance(value, Path) else value for key, value in job.items()})
    except PeerFailed as problem:
        return [str(problem)]
    before = load_file(source / "model.safetensors")
    after = load_file(Path(job["out"]) / "model.safetensors")
    return list(differences(plan, before, after, scaled=method == "awq", far=method == "gptaq"))


def formats_of(peer: str, method: str) -> list[str]:
    """What the peer can hold: GPTQModel's AWQ has one format for all that isn't kept."""
    return ["w3g32", "keep"] if (peer, method) == ("gptqmodel", "awq") else list(FORMATS[peer])


def random_plan(modules: Decoder, formats: list[str], model: str, seed: int, shared: bool = False) -> Plan:
    """Any format for any module, each of ``formats`` at least once.

    ``shared``: modules with one input have one format or are kept, and what follows such a group that is all kept is
    kept too, as AWQ wants it.
    """
    generator = random.Random(seed)
    names = formats + generator.choices(formats, k=len(modules.linears) - len(formats))
    generator.shuffle(names)
    chosen = {module.address: name for module, name in zip(modules.linears, names, strict=True)}
    groups = modules.groups if shared else []
    for group in groups:
        grids = [module.address for module in group if chosen[module.address] != "keep"]
        chosen |= dict.fromkeys(grids, chosen[grids[0]] if grids else "keep")
    for front, behind in zip(groups[::2], groups[1::2], strict=True):
        if all(chosen[module.address] == "keep" for module in front):
            chosen |= {module.address: "keep" for module in behind}
    planned = {address: ModulePlan(format=name) for address, name in chosen.items()}
    return Plan(model=model, method="rtn", modules=planned)


def differences(
    plan: Plan, before: dict[str, Tensor], after: dict[str, Tensor], scaled: bool, far: bool = False
) -> Iterator[str]:
    """What is not as planned; ``scaled``: the weights were scaled before they were quantized. ``far``: they went far
    from their points, as GPTAQ, which makes up for earlier modules' errors too, lets them."""
    planned = {f"{address}.weight": format for address, format in plan.formats.items()}
    if before.keys() != after.keys():
        yield f"other tensors: {sorted(before.keys() ^ after.keys())[:4]}"
    for name, weight in before.items():
        format = planned.get(name, KEEP)
        if isinstance(format, Keep):
            if not scaled and not torch.equal(weight, after[name]):
                yield f"{name}: keep, but other bytes"
            if name in planned and min(len(values.unique()) for values in after[name].reshape(-1, 64)) <= 32:
                yield f"{name}: keep, but on a grid"
        elif isinstance(format, Format):
            for problem in off_grid(weight, after[name], format, scaled, far):
                yield f"{name}: {format}, but {problem}"


def off_grid(weight: Tensor, found: Tensor, format: Format, scaled: bool = False, far: bool = False) -> Iterator[str]:
    """How values (out, in), half of whose rows have one sign, are not those of a format."""
    columns = weight.shape[1]
    group = columns if format.group_size == -1 else format.group_size
    half = len(weight) // 2
    counts = torch.tensor([len(values.unique()) for values in found.reshape(-1, group)]).reshape(len(found), -1)
    levels = 2**format.bits
    if counts.max() > levels:
        yield f"a group has {counts.max()} values, not {levels} at most"
    if format.bits <= 4 and counts[half:].max() <= levels // 2:
        yield f"no group has more than {counts[half:].max()} of {levels} values"
    if format.bits <= 4 and evenly_spaced(found[half:].reshape(-1, group)) < 0.7:
        yield "a group has more than one grid"
    if format.bits <= 4 and group < columns:
        wide = torch.tensor([len(values.unique()) for values in found[half:, : 2 * group]])
        if wide.float().mean() <= levels:
            yield "two groups together have one grid"
    if scaled:
        return
    error = float((found - weight)[half:].norm() / weight[half:].norm()) * (levels - 1)
    # Compensation moves weights off their points by more than a fine grid's steps; a grid that is off by one step has
    # an error of 3.5, and one of 4 bits in the place of 8 has 17.
    if not 0.4 < error < (2.8 if format.bits <= 4 else 30 if far else 12):
        yield f"its error is {error:.2f} times that of {format.bits} bits"
    # Rows whose weights are positive but for a small one in each group; GPTQ makes a few more negative.
    one_sided = float(counts[:half].float().mean()) / levels
    if format.bits in (3, 4) and format.symmetric != (one_sided < 0.75):
        yield f"groups of one sign use {one_sided:.2f} of a {'' if format.symmetric else 'a'}symmetric grid"


def evenly_spaced(groups: Tensor) -> float:
    """The share of groups whose values lie apart by multiples of the smallest distance, as those of one grid do."""
    found = 0
    for group in groups:
        gaps = group.unique().diff()
        steps = gaps / gaps.min() if len(gaps) else gaps
        found += bool(((steps - steps.round()).abs() < 0.05).all())
    return found / len(groups)


def write_source(folder: Path, tokens: Path) -> None:
    """A random Llama; the first half of each matrix's rows is positive but for every 16th weight, slightly negative."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE), dtype=torch.float32)
    with torch.no_grad():
        for module in decoder_of(model.config).linears:
            weight = model.get_submodule(module.address).weight
            weight.uniform_(-0.1, 0.1)
            positive = weight[: len(weight) // 2].abs_()
            positive[:, ::16] = -0.005
    model.save_pretrained(folder)
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", metadata={"format": "pt"})
    words = {f"w{number}": number for number in range(SHAPE["vocab_size"])}
    core = {"version": "1.0", "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"}}
    core |= {"added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}}
    core |= {"truncation": None, "padding": None, "normalizer": None, "post_processor": None, "decoder": None}
    (folder / "core.json").write_text(json.dumps(core), encoding="utf-8")
    PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "core.json"), bos_token="w1", eos_token="w2", pad_token="w3"
    ).save_pretrained(folder)
    (folder / "core.json").unlink()
    write_tokens(tokens, torch.randint(4, SHAPE["vocab_size"], (SAMPLES, LENGTH)))


if __name__ == "__main__":
    main()
