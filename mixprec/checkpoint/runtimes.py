"""What runtimes load: per runtime, version and checkpoint format the bits, group sizes and shapes, and what is fused.

Read in the runtimes' own loaders and kernels, and seen by running what runs on a CPU:

vLLM 0.32      fuses q/k/v and gate/up into one matrix each, which has one scheme. compressed-tensors: 2 to 8 bits; on
               CUDA 4 and 8 bits through Marlin, all others through Humming, a package of its own (Turing or newer); on
               CPUs with AVX-512 4 bits alone, computing in 16-bit types, rows and columns in multiples of 32. GPTQ:
               4 and 8 bits, symmetric (4 on CPUs). No GGUF. Before 0.32: compressed-tensors 4 and 8 bits, GPTQ 2, 3,
               4, 8 bits. On GPUs a packed head of its own through Marlin (GPTQ's ``lm_head``; compressed-tensors since
               #37291), and of compressed-tensors an embedding that is no head in 2, 4, 8 bits symmetric, looked up row
               by row (#44340); one that is tied it doesn't load (#45535). AWQ (auto_awq.py in 0.33): Marlin where the
               groups are its own, else Triton's kernel, which has the same (awq_triton.py); no head.
transformers 5 compressed-tensors through the library, weights unpacked when first used: symmetric ones in any bits.
               Zero points it makes room for unpacked, and stops at packed ones. GPTQ through optimum and
               gptqmodel: one format, kept modules by a list (``modules_in_block_to_quantize``), no ``dynamic``, no
               head. Of compressed-tensors a packed head, no packed embedding: 5.23 initialises its weight, which isn't
               there. AWQ through gptqmodel, of groups of 16, 32, 64, 128 or whole rows.
llama.cpp      GGUF alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from mixprec.core.errors import UserError
from mixprec.models.decoder import Linear
from mixprec.numerics.formats import WHOLE_ROW

RuntimeName = Literal["transformers", "vllm", "llama.cpp"]
RUNTIMES: Final[tuple[str, ...]] = get_args(RuntimeName)

#: Where a runtime works: a CPU, or GPUs by generation with CUDA's compute capability (tenfold).
DEVICES: Final[dict[str, int | None]] = {
    "cpu": None,
    "pascal": 60,
    "volta": 70,
    "turing": 75,
    "ampere": 80,
    "ada": 89,
    "hopper": 90,
    "blackwell": 100,
}
DeviceName = Literal["cpu", "pascal", "volta", "turing", "ampere", "ada", "hopper", "blackwell"]

_ALL = frozenset(range(2, 9))
_NONE: frozenset[int] = frozenset()
_4 = frozenset({4})
_48 = frozenset({4, 8})
_GPTQ = frozenset({2, 3, 4, 8})


@dataclass(frozen=True)
class Loader:
    """What one runtime loads of one checkpoint format.

    ``symmetric``, ``asymmetric``: bits. ``groups``: bits -> group sizes, all that divide the columns for other bits;
    ``multiple``: of which rows and columns have to be multiples. ``fused``: linears that share their input need one
    format. ``uniform``: all packed modules need one format. ``capability``: the least compute capability of a GPU.
    ``outside``: what it loads of a packed embedding or head, by kind; nothing of others. ``refuses``: why it loads
    nothing of this format. ``needs``: what has to be installed besides.
    """

    symmetric: frozenset[int] = _ALL
    asymmetric: frozenset[int] = _ALL
    groups: Mapping[int, frozenset[int]] = field(default_factory=dict)
    multiple: int = 1
    fused: bool = False
    uniform: bool = False
    outside: Mapping[str, Loader] = field(default_factory=dict)
    capability: int = 0
    refuses: str = ""
    needs: str = ""

    def of(self, module: Linear) -> Loader:
        """What it loads of ``module``."""
        if module.layer:
            return self
        return self.outside.get(module.kind, Loader(refuses=f"it loads no packed {module.kind}"))


_MARLIN = dict.fromkeys(_ALL, frozenset({WHOLE_ROW, 32, 64, 128}))
_ANYTHING = Loader()
_HEAD = Loader(_48, _NONE, _MARLIN)
_AVX512 = "a CPU with AVX-512, and float16 or bfloat16: vLLM's 4-bit kernel is in no other build, and has no other type"

#: (runtime, first version, checkpoint format, on a GPU) -> what it loads; the newest version that fits counts.
_LOADERS: Final[dict[tuple[str, tuple[int, ...], str, bool], Loader]] = {
    ("vllm", (0, 32), "compressed-tensors", True): Loader(
        fused=True,
        outside={"head": _HEAD, "embedding": Loader(frozenset({2, 4, 8}), _NONE)},
        capability=75,
        needs="humming where a module has bits other than 4 and 8, 8 bits with zero points, or groups other than "
        "32, 64 and 128",
    ),
    ("vllm", (0, 32), "compressed-tensors", False): Loader(
        frozenset({4}), frozenset({4}), multiple=32, fused=True, needs=_AVX512
    ),
    ("vllm", (0, 32), "gptq", True): Loader(_48, _NONE, _MARLIN, fused=True, outside={"head": _HEAD}, capability=75),
    ("vllm", (0, 32), "gptq", False): Loader(frozenset({4}), _NONE, multiple=32, fused=True, needs=_AVX512),
    ("vllm", (0, 32), "gguf", True): Loader(refuses="vLLM has no GGUF loader from 0.32 on"),
    ("vllm", (0, 32), "gguf", False): Loader(refuses="vLLM has no GGUF loader from 0.32 on"),
    ("vllm", (0,), "compressed-tensors", True): Loader(_48, frozenset({4}), _MARLIN, fused=True, capability=75),
    ("vllm", (0,), "compressed-tensors", False): Loader(
        frozenset({4}), frozenset({4}), multiple=32, fused=True, needs=_AVX512
    ),
    ("vllm", (0,), "gptq", True): Loader(_GPTQ, _NONE, fused=True, outside={"head": _HEAD}, capability=60),
    ("vllm", (0,), "gptq", False): Loader(frozenset({4}), _NONE, multiple=32, fused=True, needs=_AVX512),
    ("vllm", (0,), "gguf", True): Loader(fused=True, capability=60),
    ("vllm", (0,), "gguf", False): Loader(refuses="vLLM reads GGUF on GPUs alone"),
    ("vllm", (0,), "awq", True): Loader(_NONE, _4, _MARLIN, fused=True, uniform=True, capability=75),
    ("vllm", (0,), "awq", False): Loader(_NONE, _4, multiple=32, fused=True, uniform=True, needs=_AVX512),
    **{
        ("transformers", (0,), "awq", gpu): Loader(
            _NONE, _4, {4: frozenset({WHOLE_ROW, 16, 32, 64, 128})}, uniform=True, needs="gptqmodel"
        )
        for gpu in (True, False)
    },
    ("transformers", (0,), "gguf", True): _ANYTHING,
    ("transformers", (0,), "gguf", False): _ANYTHING,
    **{
        ("transformers", (0,), "compressed-tensors", gpu): Loader(
            asymmetric=_NONE, outside={"head": Loader(asymmetric=_NONE)}, needs="compressed-tensors 0.19"
        )
        for gpu in (True, False)
    },
    **{
        ("transformers", (0,), "gptq", gpu): Loader(
            _GPTQ, _GPTQ, groups, multiple=32, uniform=True, needs="optimum and gptqmodel"
        )
        for gpu, groups in ((True, {}), (False, {4: frozenset({32, 64, 128, 256})}))
    },
    ("llama.cpp", (0,), "gguf", True): _ANYTHING,
    ("llama.cpp", (0,), "gguf", False): _ANYTHING,
    **{
        ("llama.cpp", (0,), name, gpu): Loader(refuses="llama.cpp loads GGUF files only; write checkpoint.format: gguf")
        for name in ("dense", "compressed-tensors", "gptq", "awq")
        for gpu in (True, False)
    },
}


def loader(runtime: str, format: str, version: str | None = None, device: str = "ampere") -> Loader:
    """What ``runtime`` loads of a checkpoint ``format``; ``version`` None: the newest one that is known.

    Raises UserError for an unknown runtime, version or device.
    """
    if runtime not in RUNTIMES:
        raise UserError(f"runtime: {runtime!r} is not one of {', '.join(RUNTIMES)}")
    if device not in DEVICES:
        raise UserError(f"device: {device!r} is not one of {', '.join(DEVICES)}")
    wanted = None if version is None else _parsed(version)
    found = [
        (first, loads)
        for (name, first, its_format, gpu), loads in _LOADERS.items()
        if name == runtime and its_format == format and gpu == (device != "cpu") and (wanted is None or first <= wanted)
    ]
    # What no table has is dense: every runtime but llama.cpp loads it.
    return max(found, key=lambda item: item[0])[1] if found else _ANYTHING


def _parsed(version: str) -> tuple[int, ...]:
    if not re.match(r"v?\d+(\.\d+)*", version):
        raise UserError(f"version: {version!r} is no version number such as 0.32")
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
