"""Every architecture of the list: gradients, codes, logits and bytes, on tiny models.

python benchmarks/architectures.py [--quick] [--only NAME …] --json OUT

Each is a random model from a configuration with its real structure (tests/architectures.py), on a CPU. MiniMax's error
is that of decays that it rounds to float32; XGLM computes in float32 at most, and is compared in that. --quick: fewer
spans and calibration samples, and times measured once.

Keys of OUT
    architectures              how many
    attribution_max_rel_error  largest difference of a span's gradients from those of full backpropagation through
                               transformers' own model in float64, over the reference's largest value
    gptq_codes_equal           share of the first block's codes, experts' included, that equal those of a float64 loop
                               over columns, for inputs that plain hooks gathered in an unmodified forward pass
    dense_logits_max_diff      of a compressed checkpoint that transformers loads, from the model compressed in memory
    roundtrip_failures         architectures whose checkpoint has other names, or other changed tensors, than it should
    resume_differences         those for which a compression that was stopped and resumed gives other bytes
    experts_time_ratio         CPU time of compressing a block of experts over that of a dense one with as many weights
    rows                       the same for each architecture, and its path of attribution
"""

from __future__ import annotations

import argparse

import machine
from architectures_figures import row, time_ratio, totals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, help="where the figures go")
    parser.add_argument("--quick", action="store_true", help="fewer spans and samples")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="architectures, by model_type")
    chosen = parser.parse_args()
    import architectures
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = {}
    for name in chosen.only or architectures.ALL:
        rows[name] = row(name, quick=chosen.quick)
        print(name, rows[name], flush=True)
    figures = {**totals(rows), "experts_time_ratio": time_ratio(1 if chosen.quick else 3), "rows": rows}
    machine.write(chosen.json, __file__, figures)


if __name__ == "__main__":
    main()
