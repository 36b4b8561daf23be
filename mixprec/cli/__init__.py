"""The command line: verbs only. Each one calls a stage; ``mixprec run`` walks them all."""

from __future__ import annotations

import io
import signal
import sys
from typing import Annotated

import typer
from rich.text import Text

from mixprec.cli.base import app, out
from mixprec.core import environment, processes, progress
from mixprec.core.errors import UserError, from_disk
from mixprec.core.memory import ran_out
from mixprec.core.progress import PlainConsole
from mixprec.core.version import VERSION

# Importing them registers their verbs, in the order of --help.
# isort: off
from mixprec.cli import quantize, recipes, tracing, annotating, importance, sensitivity, allocation  # noqa: F401
from mixprec.cli import compression, tuning, distilling, checkpoints, benchmarks, export, watching  # noqa: F401
# isort: on

#: Verbs that share their work under ``accelerate launch``.
_PARALLEL = ("attribute", "sensitivity", "ablate", "compress", "tune", "distill")


#: What verbs that work on no recipe can be told; mixprec run says it of its stages, with amounts (pipeline/memory.py).
_LESS_MEMORY = (
    "what lowers it, where the verb has it: --stream, a lower --memory-gb or --batch, fewer --samples or --max-tokens, "
    "--dtype bfloat16. 'mixprec explain' says what the stages of a recipe take. What is finished is kept"
)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"mixprec {VERSION}")
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    verb = context.invoked_subcommand
    if processes.count() > 1 and verb not in _PARALLEL:
        raise UserError(
            f"mixprec {verb} works in one process; of all verbs only {', '.join(_PARALLEL)} shares its work between "
            "several: start mixprec without accelerate launch or torchrun"
        )


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 the user's error, 130 Ctrl-C or SIGTERM, 1 ours (with its trace)."""
    environment.settle()
    errors = PlainConsole(stderr=True)
    progress.speak()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal or pipe without UTF-8 ends no run that has done its work
        sys.stdout.reconfigure(errors="backslashreplace")
    if processes.count() == 1:  # a launcher ends its processes itself, also where they wait for one another
        # As Ctrl-C: peers and servers that were started end too.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = app(standalone_mode=False, prog_name="mixprec")
        if code == 130:  # typer turns Ctrl-C into a code
            raise KeyboardInterrupt
    except (UserError, OSError) as caught:
        # Whatever file or disk refuses, wherever it was met, is the user's to mend; other system errors are ours.
        problem = caught if isinstance(caught, UserError) else from_disk(caught)
        if problem is None:
            raise
        which = "" if processes.is_main() else f"process {processes.rank()}: "
        errors.print(Text("error:", style="red"), which + str(problem), soft_wrap=True)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        errors.print("stopped; what is finished is kept: the same command continues")
        sys.exit(130)
    except Exception as problem:
        if told := ran_out(problem):
            errors.print(Text("error:", style="red"), f"{told}; {_LESS_MEMORY}", soft_wrap=True)
            sys.exit(2)
        # Usage errors of typer's own parser know how to show themselves and carry exit code 2.
        show = getattr(problem, "show", None)
        if show is None:
            raise
        show()
        sys.exit(getattr(problem, "exit_code", 2))
    sys.exit(code if isinstance(code, int) else 0)
