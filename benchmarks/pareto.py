"""Whole pipelines at equal size: mixprec's and each peer's, from the original model to the file.

python benchmarks/pareto.py [--quick] [--samples N] [--draws N] [--only JOB …] [--rows FILE] [--work FOLDER] --json OUT

SmolLM2-135M, or --model (a folder or .gguf file). All pipelines see the same calibration tokens: --samples x 512, half
WikiText-2 validation (--data) and half the bundled attribution traces. Evaluation: KL to the original on the bundled
held-out traces and WikiText-2 test (--passages of 512 tokens), which nothing is tuned, stopped or chosen on. What we
tune is solved and tuned on all calibration samples but the last 4, which decide when to stop: no pipeline sees more.
Only the linear modules of the blocks are compressed; embedding, head and norms stay in 16 bits, but for norms that are
tuned, for llama.cpp's mixtures, and for "embedding and blocks planned": it spends the bytes of a packed file of its
size on both, in a GGUF file, or those of the file of a mixture. SmolLM2's rows of 576 weights are no multiples of 256:
types with such blocks fit its down alone, and fall back elsewhere as llama.cpp's do (types of 3 bits to iq4_nl, q4_k to
q5_0, q6_k to q8_0). Its linears come from Q4_1: a type with a minimum for 32 weights finds them again, so that ours has
none of these; llama.cpp's mixtures have.

Peers run in environments of their own (benchmarks/peers/build.sh), with their own settings; one that is not there is
not measured. AutoRound tunes in bfloat16, as it does by default, with batches of 4, half of its default: half the time.

A job is PIPELINE@SIZE#DRAW: its size in effective bits of the linear modules, or the name of a mixture of llama.cpp;
its draw another order of the calibration samples, and another seed where a peer has one. benchmarks/pareto_pipelines.py
has all pipelines. Each job is a row: costs, sizes, and sums of KL by passage. Rows that were measured before, with the
same settings and by the same versions, are taken from --rows, and new ones are put there: many runs, on many days, add
up. CPU seconds are compared between rows of one machine only, which each row names.

    python benchmarks/pareto.py --only gptq@3.25 autoround200@3.25 --threads 1 --json OUT
    python benchmarks/pareto.py --only --json OUT      nothing new: the figures, the table and OUT's picture from rows

Intervals are over passages, the same for all pipelines, and over draws (of D draws D - 1 are drawn again). Ours is the
most complete of our pipelines that was measured at a size, whatever its KL; theirs the one with the least KL at no more
effective bits.

Keys of OUT (null: not measured)
    kl_ratio_vs_best_pipeline          our KL over that of the best peer's pipeline: the worst of 3.25, 3.5 and 4.0 bits
    kl_ratio_vs_best_pipeline_ci       its 95% interval; every key with _ci is the interval of the key without
    kl_ratio_vs_best_pipeline_325      at 3.25 effective bits
    kl_ratio_vs_best_pipeline_325_ci   95% interval
    kl_ratio_vs_best_pipeline_350      at 3.5
    kl_ratio_vs_best_pipeline_350_ci   95% interval
    kl_ratio_vs_best_pipeline_400      at 4.0
    kl_ratio_vs_best_pipeline_400_ci   95% interval
    pipelines                          size -> which of ours, and which peer's
    kl_ratio_equal_file                our KL over the best peer's at no more bytes on disk, embedding and head
                                       included, llama.cpp's files among them: the worst at the bytes of the peers'
                                       files of 3.25, 3.5 and 4.0 bits
    kl_ratio_equal_file_ci             95% interval
    kl_ratio_equal_file_325            at the bytes of their file of 3.25 bits
    kl_ratio_equal_file_325_ci         95% interval
    kl_ratio_equal_file_350            of 3.5
    kl_ratio_equal_file_350_ci         95% interval
    kl_ratio_equal_file_400            of 4.0
    kl_ratio_equal_file_400_ci         95% interval
    tune_gain                          KL of our tuned w3g64 over the same one untuned
    tune_gain_ci                       95% interval
    tune_gain_350                      the same of the plan at 3.5 bits
    tune_gain_350_ci                   95% interval
    tune_overfit                       tune_gain over the same ratio on calibration samples: above 1, more was gained
                                       there than on other text
    tune_overfit_350                   the same of the plan at 3.5 bits
    gap_recovered                      (KL of w3g64 by GPTQ - our KL at 3.5 bits) / KL of w3g64 by GPTQ
    gap_recovered_ci                   95% interval
    file_ratio_llamacpp                our GGUF file's KL over that of llama.cpp's quantizer at no more bytes: the worst
                                       mixture
    file_ratio_llamacpp_ci             95% interval
    file_ratio_llamacpp_q3_k_s         against Q3_K_S
    file_ratio_llamacpp_q3_k_s_ci      95% interval
    file_ratio_llamacpp_q3_k_m         against Q3_K_M
    file_ratio_llamacpp_q3_k_m_ci      95% interval
    file_ratio_llamacpp_iq3_s          against IQ3_S
    file_ratio_llamacpp_iq3_s_ci       95% interval
    file_ratio_llamacpp_iq4_xs         against IQ4_XS
    file_ratio_llamacpp_iq4_xs_ci      95% interval
    file_ratio_llamacpp_q4_k_m         against Q4_K_M
    file_ratio_llamacpp_q4_k_m_ci      95% interval
    guided_gain                        KL of guided GPTQ over plain GPTQ at w3g64
    guided_gain_ci                     95% interval
    behaviour_gain                     KL on backtracking spans, tuned with their tokens counting 8 times, over tuned
                                       with all alike
    behaviour_cost                     KL on all tokens, the same pair
    behaviour_cost_ci                  95% interval
    behaviour_gain_ci                  95% interval
    time_vs_autoround                  CPU seconds of our cheapest pipeline at 3.25 bits with less KL than AutoRound's
                                       200 iterations, over AutoRound's
    limit_ratio                        (forward pass + second moments) / all of plain GPTQ, CPU seconds in its faster
                                       type
    cpu_speedup_gptq_vs_llmcompressor  its CPU seconds over ours for GPTQ at w3g64, each in its faster type
    cpu_speedup_gptq_vs_gptqmodel      the same for GPTQModel
    table                              all pipelines that were measured
    measured                           how many rows there are
    model                              what was compressed
    samples                            calibration samples of 512 tokens
    passages                           passages of WikiText-2 test, 512 tokens each
    quick                              whether this was a quick run
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import machine
from pareto_figures import drawn, figures
from pareto_pipelines import jobs

ROOT = Path(__file__).resolve().parents[1]
SAMPLES, QUICK_SAMPLES = 32, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 samples, three pipelines at 3.25 bits, 4 passages")
    parser.add_argument("--data", default=os.environ.get("MIXPREC_DATA") or str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--model", default="smollm2-135m-instruct", help="folder or .gguf file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--passages", type=int, help="passages of 512 tokens of WikiText test; default 16")
    parser.add_argument("--samples", type=int, help=f"calibration samples of 512 tokens; default {SAMPLES}")
    parser.add_argument("--proposals", type=int, default=20, help="joint plans that an exchange measures at most")
    parser.add_argument("--draws", type=int, default=3, help="compressions of each pipeline")
    parser.add_argument(
        "--only", nargs="*", help="jobs by name, such as gptq@3.25; none: figures of the rows there are"
    )
    parser.add_argument("--rows", default=str(ROOT / "benchmarks" / "results" / "pareto_rows.json"))
    parser.add_argument("--work", default="runs/benchmark_pareto", help="outcomes of single jobs, kept")
    parser.add_argument("--json", required=True, help="where the figures go, and beside them the picture")
    arguments = parser.parse_args()
    arguments.samples = arguments.samples or (QUICK_SAMPLES if arguments.quick else SAMPLES)
    arguments.passages = arguments.passages or (4 if arguments.quick else 16)
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    from pareto_jobs import Pipelines
    from pareto_table import draw, table

    bench, every = Pipelines(arguments), jobs(arguments.quick, arguments.draws)
    for name in arguments.only if arguments.only is not None else every:
        bench.job(name)
        bench.keep()
    rows = drawn(bench.rows(dict.fromkeys([*every, *(arguments.only or ())])))
    machine.write(arguments.json, __file__, figures(rows, arguments) | {"table": table(rows)})
    draw(rows, Path(arguments.json).with_suffix(""))


if __name__ == "__main__":
    main()
