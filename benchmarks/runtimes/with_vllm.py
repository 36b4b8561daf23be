"""Load checkpoints in vLLM on a CPU; runs in the environment ``vllm`` of benchmarks/peers/build.sh.

    python with_vllm.py JOB.json RESULT.json

JOB: ``checkpoints`` (folders), ``dtype``, ``prompt`` (token ids), ``new_tokens``, ``passages`` (lists of token ids).
RESULT: folder -> ``greedy`` (the prompt's continuation) and ``nll`` (mean negative log-likelihood of the passages'
tokens but their first), or ``error``, what vLLM says.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from answers import write_answers

# int8 activations would be another arithmetic than the checkpoint's; the others keep it in one process and small.
os.environ |= {
    "VLLM_CPU_INT4_W4A8": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def look_at(folder: str, job: dict[str, Any]) -> dict[str, Any]:
    """What one checkpoint answers."""
    from vllm import LLM, SamplingParams

    longest = max(map(len, [job["prompt"], *job["passages"]])) + job["new_tokens"] + 1
    llm = LLM(
        folder, dtype=job["dtype"], enforce_eager=True, max_model_len=longest, max_num_seqs=4, disable_log_stats=True
    )
    greedy = SamplingParams(temperature=0, max_tokens=job["new_tokens"], ignore_eos=True)
    found = llm.generate([{"prompt_token_ids": job["prompt"]}], greedy, use_tqdm=False)
    scored = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    total, count = 0.0, 0
    for output in llm.generate([{"prompt_token_ids": ids} for ids in job["passages"]], scored, use_tqdm=False):
        for token, options in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True):
            total -= options[token].logprob
            count += 1
    return {"greedy": list(found[0].outputs[0].token_ids), "nll": total / max(1, count)}


if __name__ == "__main__":
    write_answers(json.loads(Path(sys.argv[1]).read_text()), look_at, Path(sys.argv[2]))
