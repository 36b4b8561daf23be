"""What runtimes load: the one table of facts, each with the version and the place where it was read or seen.

The table in docs/checkpoints.md is made of it (``scripts/update_runtimes.py``). What no row has, nobody here knows.
"""

from __future__ import annotations

from typing import Final

from mixprec.checkpoint.loaders import ALL, NONE, Fact, Loader, Runtime, Where
from mixprec.numerics.formats import WHOLE_ROW

RUNTIMES: Final[dict[str, Runtime]] = {
    "transformers": Runtime("transformers", "5.23", "compressed-tensors"),
    "vllm": Runtime("vLLM", "0.33", "compressed-tensors"),
    "sglang": Runtime("SGLang", "0.5.23", "compressed-tensors"),
    "llama.cpp": Runtime("llama.cpp", "", "gguf"),
    "mlx": Runtime("MLX (mlx-lm)", "0.32", "mlx", "apple"),
}

_4, _48, _GPTQ = frozenset({4}), frozenset({4, 8}), frozenset({2, 3, 4, 8})
_MLX, _MLX_GROUPS = frozenset({2, 3, 4, 5, 6, 8}), frozenset({32, 64, 128})
_MLX_ANY = dict.fromkeys(_MLX, _MLX_GROUPS | {WHOLE_ROW})  # rows of these lengths, as its format sees to
_GPUS: Final[tuple[Where, ...]] = ("cuda",)
_CPUS: Final[tuple[Where, ...]] = ("cpu",)
_BOTH: Final[tuple[Where, ...]] = ("cuda", "cpu")
_ALL: Final[tuple[Where, ...]] = ("cuda", "apple", "cpu")

_ANYTHING = Loader()
_MARLIN = dict.fromkeys(ALL, frozenset({WHOLE_ROW, 32, 64, 128}))
_MARLIN_HEAD = Loader(_48, NONE, groups=_MARLIN)
_ON_MLX = Loader(_MLX, _MLX, _MLX, _MLX_ANY)
_AVX512 = "a CPU with AVX-512, and float16 or bfloat16: vLLM's 4-bit kernel is in no other build, and has no other type"
_AMX = "a CPU with AMX"


def _no(reason: str) -> Loader:
    return Loader(refuses=reason)


_VLLM = (
    Fact("vllm", (0,), "dense", _BOTH, _ANYTHING, "0.32, seen on a CPU"),
    Fact(
        "vllm", (0, 32), "compressed-tensors", _GPUS,
        Loader(
            fused=True,
            outside={"head": _MARLIN_HEAD, "embedding": Loader(frozenset({2, 4, 8}), NONE)},
            capability=75,
            needs="humming where a module has bits other than 4 and 8, 8 bits with zero points, or groups other than "
            "32, 64 and 128",
        ),
        "0.33, compressed_tensors_wNa16.py, kernels/linear/mixed_precision; head #37291, embedding #44340, no tied one "
        "#45535",
    ),
    Fact(
        "vllm", (0,), "compressed-tensors", _GPUS, Loader(_48, _4, groups=_MARLIN, fused=True, capability=75), "0.31"
    ),
    Fact(
        "vllm", (0,), "compressed-tensors", _CPUS, Loader(_4, _4, multiple=32, fused=True, needs=_AVX512),
        "0.33, kernels/linear/mixed_precision/cpu.py; 0.32 seen on a CPU",
    ),
    Fact(
        "vllm", (0, 32), "gptq", _GPUS,
        Loader(_48, NONE, groups=_MARLIN, fused=True, outside={"head": _MARLIN_HEAD}, capability=75),
        "0.33, auto_gptq.py, marlin_utils.py",
    ),
    Fact("vllm", (0,), "gptq", _GPUS, Loader(_GPTQ, NONE, fused=True, outside={"head": _MARLIN_HEAD}, capability=60),
         "0.31"),
    Fact("vllm", (0,), "gptq", _CPUS, Loader(_4, NONE, multiple=32, fused=True, needs=_AVX512),
         "0.33, auto_gptq.py, cpu.py; 0.32 seen on a CPU"),
    Fact("vllm", (0,), "awq", _GPUS, Loader(NONE, _4, groups=_MARLIN, fused=True, uniform=True, capability=75),
         "0.33, auto_awq.py, awq_triton.py"),
    Fact("vllm", (0,), "awq", _CPUS, Loader(NONE, _4, multiple=32, fused=True, uniform=True, needs=_AVX512),
         "0.33, auto_awq.py, cpu.py"),
    Fact("vllm", (0, 32), "gguf", _GPUS, Loader(capability=60, needs="vllm-gguf-plugin"),
         "vllm-gguf-plugin 0.0.5, quantization/config.py; #39612"),
    Fact("vllm", (0,), "gguf", _GPUS, Loader(capability=60), "0.31"),
    Fact("vllm", (0,), "gguf", _CPUS, _no("vLLM reads GGUF on GPUs alone"), "vllm-gguf-plugin 0.0.5"),
    Fact("vllm", (0,), "mlx", _BOTH, _no("vLLM reads no files of MLX; write compressed-tensors"),
         "0.33, quantization/__init__.py"),
)  # fmt: skip

_SGLANG = (
    Fact("sglang", (0,), "dense", _BOTH, _ANYTHING, "0.5.23"),
    Fact(
        "sglang", (0,), "compressed-tensors", _GPUS,
        Loader(_48, _4, groups=_MARLIN, fused=True, outside={"head": _MARLIN_HEAD}, capability=80),
        "0.5.23, compressed_tensors_wNa16.py, marlin_utils.py; --quantization humming takes one group of all linears",
    ),
    Fact(
        "sglang", (0,), "gptq", _GPUS,
        Loader(_48, NONE, groups=_MARLIN, fused=True, outside={"head": _MARLIN_HEAD}, capability=80),
        "0.5.23, gptq/gptq.py",
    ),
    Fact("sglang", (0,), "gptq", _CPUS, Loader(_4, NONE, fused=True, uniform=True, needs=_AMX),
         "0.5.23, gptq/schemes/gptq_cpu.py"),
    Fact("sglang", (0,), "awq", _GPUS,
         Loader(NONE, _4, groups=_MARLIN, fused=True, uniform=True, capability=80), "0.5.23, awq/awq.py"),
    Fact("sglang", (0,), "awq", _CPUS, Loader(NONE, _4, fused=True, uniform=True, needs=_AMX),
         "0.5.23, awq/schemes/awq_cpu.py"),
    Fact("sglang", (0,), "gguf", _GPUS, Loader(capability=60), "0.5.23, gguf.py"),
    Fact("sglang", (0,), "mlx", _BOTH, _no("SGLang reads files of MLX on Apple's GPUs alone, with SGLANG_USE_MLX=1"),
         "0.5.23, mlx.py"),
)  # fmt: skip

_TRANSFORMERS = (
    Fact("transformers", (0,), "dense", _ALL, _ANYTHING, "5.23, seen on a CPU"),
    Fact(
        "transformers", (0,), "compressed-tensors", _ALL,
        Loader(asymmetric=NONE, outside={"head": Loader(asymmetric=NONE)}, needs="compressed-tensors 0.19"),
        "5.23, seen on a CPU: weights are unpacked when first used; it stops at packed zero points (a uniform plan "
        "loads with dequantize=True) and at a packed embedding",
    ),
    Fact("transformers", (0,), "gptq", _GPUS,
         Loader(_GPTQ, _GPTQ, multiple=32, uniform=True, needs="optimum and gptqmodel"), "5.23, quantizer_gptq.py"),
    Fact(
        "transformers", (0,), "gptq", _CPUS,
        Loader(_GPTQ, _GPTQ, groups={4: frozenset({32, 64, 128, 256})}, multiple=32, uniform=True,
               needs="optimum and gptqmodel"),
        "5.23 with gptqmodel 7.7, seen on a CPU: where formats are mixed it stops at the shapes",
    ),
    Fact(
        "transformers", (0,), "awq", _GPUS,
        Loader(NONE, _4, groups={4: frozenset({WHOLE_ROW, 16, 32, 64, 128})}, uniform=True, needs="gptqmodel"),
        "5.23, integrations/awq.py; gptqmodel 7.7, qlinear/torch_awq.py",
    ),
    Fact(
        "transformers", (0,), "awq", _CPUS,
        Loader(NONE, _4, groups={4: frozenset({32, 64, 128})}, uniform=True, needs="gptqmodel"),
        "5.23 with gptqmodel 7.7, seen on a CPU: torch's 4-bit kernel has no whole rows",
    ),
    Fact("transformers", (0,), "gguf", _ALL, _ANYTHING, "5.23, seen on a CPU: dequantized"),
    Fact("transformers", (0,), "mlx", _ALL, _no("transformers reads no files of MLX; write compressed-tensors"),
         "5.23, quantizers/auto.py: quant_method is missing"),
)  # fmt: skip

_LLAMA_CPP = (
    Fact("llama.cpp", (0,), "gguf", _ALL, _ANYTHING, "xllamacpp 2026.10, seen on a CPU"),
    *(
        Fact("llama.cpp", (0,), name, _ALL, _no("llama.cpp loads GGUF files only; write checkpoint.format: gguf"),
             "convert_hf_to_gguf.py makes them of dense ones")
        for name in ("dense", "compressed-tensors", "gptq", "awq", "mlx")
    ),
)  # fmt: skip

_ON_MLX_LM = (
    Fact("mlx", (0,), "dense", _ALL, _ANYTHING, "mlx-lm 0.32.2, seen on a CPU"),
    Fact(
        "mlx", (0,), "mlx", _ALL, Loader(_MLX, _MLX, _MLX, _MLX_ANY, outside={"head": _ON_MLX, "embedding": _ON_MLX}),
        "mlx 0.32.4 with mlx-lm 0.32.2, seen on a CPU; mlx/ops.cpp",
    ),
    Fact("mlx", (0,), "awq", _ALL, Loader(NONE, _4, groups={4: _MLX_GROUPS}, uniform=True),
         "mlx-lm 0.32.2, utils.py (_transform_awq_weights), seen on a CPU; offsets are rounded"),
    Fact("mlx", (0,), "gptq", _ALL, _no("mlx-lm stops at g_idx, which GPTQ's layout has here; write mlx"),
         "mlx-lm 0.32.2, utils.py"),
    Fact("mlx", (0,), "compressed-tensors", _ALL, _no("mlx-lm takes packed words for grids of its own; write mlx"),
         "mlx-lm 0.32.2, utils.py"),
    Fact("mlx", (0,), "gguf", _ALL, _no("mlx-lm reads safetensors alone; write mlx"), "mlx-lm 0.32.2, utils.py"),
)  # fmt: skip

FACTS: Final[tuple[Fact, ...]] = (*_TRANSFORMERS, *_VLLM, *_SGLANG, *_LLAMA_CPP, *_ON_MLX_LM)
