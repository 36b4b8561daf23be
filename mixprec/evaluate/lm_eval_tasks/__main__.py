"""Prints the folder that lm_eval's --include_path takes."""

from __future__ import annotations

from mixprec.evaluate.lm_eval_tasks import FOLDER

if __name__ == "__main__":
    print(FOLDER)
