"""Outputs that exist: files of many tools, read into rows, and rows matched to the questions that they answer.

Known are this project's own generations, samples of lm-evaluation-harness, details of lighteval, OpenAI's batch files
and completions, numbered texts as the paper's authors released them, and plain JSON with keys of many names.
"""

from __future__ import annotations

from mixprec.evaluate.outputs.asked import Options
from mixprec.evaluate.outputs.files import OutputFile, read
from mixprec.evaluate.outputs.matching import Matched, benchmarks_in, match, opened
from mixprec.evaluate.outputs.rows import KEYS, Output, Row

__all__ = ["KEYS", "Matched", "Options", "Output", "OutputFile", "Row", "benchmarks_in", "match", "opened", "read"]
