"""Verbs on what lies on the disk as it is: status, verify, reproduce."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from mixprec.cli.base import Data, app, epilog, out
from mixprec.core.errors import UserError, listed

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


@app.command(epilog=epilog("mixprec status runs/quickstart", "watch mixprec status runs/quickstart"))
def status(folder: RunFolder) -> None:
    """Say what of a run is done, what it is at, what is left and for how long. Works from any machine that sees it."""
    from mixprec.pipeline.status import status as function

    found = function(folder)
    at = f": {found.who}" if found.who else ""
    out.print(f"{folder}: {found.state}{at}, last heard of {_time(found.quiet)} ago", soft_wrap=True)
    if found.why:
        out.print(found.why, soft_wrap=True)
    table = Table("stage", "", "time", box=box.SIMPLE_HEAD)
    for name, seconds in found.done.items():
        table.add_row(name, "done", "was there" if seconds is None else _time(seconds))
    if found.running:
        step = (
            f"{found.step['what']}: {found.step['done']} of {found.step['total']} {found.step['unit']}"
            if found.step
            else ""
        )
        table.add_row(found.running, "running" if found.who else "unfinished", step)
    for name in found.beside:
        table.add_row(name, "running" if found.who else "unfinished", "")
    for name in found.left:
        table.add_row(name, "left", "")
    out.print(table)
    if found.state == "running":
        out.print(f"left: {'unknown' if found.seconds_left is None else 'about ' + _time(found.seconds_left)}")
    elif found.state != "done":
        out.print("the same command continues it")


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@app.command(epilog=epilog("mixprec verify runs/quickstart", "mixprec verify runs/quickstart/variants/ours/checkpoint"))
def verify(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A checkpoint, or a run.")]) -> None:
    """Compare every file of a checkpoint or a run with what was written down of it. Exit code 2 where one changed."""
    from mixprec.pipeline.verify import verify as function

    found = function(folder)
    out.print(f"{folder}: {found.files} files are as mixprec wrote them", soft_wrap=True)
    if found.unknown:
        shown = ", ".join(found.unknown[:10]) + (f" and {len(found.unknown) - 10} more" if found.unknown[10:] else "")
        out.print(f"nothing is written down of {len(found.unknown)}: {shown}", soft_wrap=True)


@app.command(epilog=epilog("mixprec reproduce runs/quickstart --out again"))
def reproduce(
    folder: RunFolder,
    to: Annotated[Path | None, typer.Option("--out", help="Where it runs; default: RUN-again.")] = None,
    data: Data = None,
) -> None:
    """Run a finished run's recipe once more, and compare every file with it. Exit code 2 where one is another."""
    from mixprec.pipeline.reproduce import reproduce as function

    where = to or folder.with_name(f"{folder.name}-again")
    found = function(folder, where, data)
    for name, (then, now) in found.unlike.items():
        out.print(f"{name}: {then} then, {now} now", soft_wrap=True)
    if not found.equal:
        told = [f"{name}: other bytes" for name in found.other] + [
            f"{name}: only in {folder}" for name in found.missing
        ]
        told += [f"{name}: only in {where}" for name in found.added]
        raise UserError(listed(str(where), told))
    out.print(f"{where}: {found.same} files, all with the bytes of {folder}", soft_wrap=True)
