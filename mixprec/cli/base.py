"""What the verbs share: the application, the types of their options, the examples under their help."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from mixprec.core.errors import UserError
from mixprec.core.progress import PlainConsole

if TYPE_CHECKING:
    from mixprec.models.model import Model
    from mixprec.plan.schema import Plan
    from mixprec.results.calibration import Calibration

# Heavy imports (torch, transformers) stay inside the verbs, so that --help and mistakes answer at once.

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find out which weights a language model reasons with, and spend the bits there.",
    epilog="Start with: [bold]mixprec run quickstart[/bold]   then open runs/quickstart/report.html",
    add_completion=False,
)
out = PlainConsole()

RecipeName = Annotated[str, typer.Argument(help="Recipe file, or its name in 'mixprec ls'.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Change a key: --set model.dtype=bfloat16")]
Data = Annotated[Path | None, typer.Option(help="Folder of data: sources (or MIXPREC_DATA).")]
ModelId = Annotated[str, typer.Option(help="Bundled name, hub id, folder or GGUF file.")]
Revision = Annotated[str | None, typer.Option(help="Hub revision of the model.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps (attribute, trace, bench), or auto for several GPUs.")]
Dtype = Annotated[str, typer.Option(help="Type to compute in: float32, bfloat16, float16.")]
SpanRule = Annotated[str, typer.Option(help="How annotations become spans: paper, released or aligned.")]
BaseModel = Annotated[
    str | None, typer.Option(metavar="OWNER/NAME", help="The model's id on the hub, for the card of a local one.")
]


class Runtime(StrEnum):
    """Names of mixprec.checkpoint.facts.RUNTIMES, which can't be imported for --help."""

    transformers = "transformers"
    vllm = "vllm"
    sglang = "sglang"
    llama_cpp = "llama.cpp"
    mlx = "mlx"


def epilog(*examples: str) -> str:
    """Examples under a verb's help."""
    return "\n\n".join(["[bold]Examples[/bold]", *(escape(example) for example in examples)])


def alone(verb: Callable[..., None]) -> Callable[..., None]:
    """Let a verb have the folder of its ``--out`` to itself while it works."""

    @functools.wraps(verb)
    def held(**options: Any) -> None:
        from mixprec.core import locks

        with locks.folder(options["to"], shared=True) if options["to"] else nullcontext():
            verb(**options)

    return held


@contextmanager
def as_options(*arguments: str) -> Iterator[None]:
    """Errors inside that begin with one of these ``arguments`` of a function begin with its option instead."""
    try:
        yield
    except UserError as problem:
        name, rest = re.match(r"(\w*)(.*)", str(problem), re.DOTALL).groups()  # type: ignore[union-attr]
        if name not in arguments:
            raise
        raise UserError(f"--{name.replace('_', '-')}{rest}") from None


def pairs(option: str, given: Iterable[str], example: str) -> dict[str, str]:
    """Name and text of an option that is given several times as name=text."""
    found = [(text, text.partition("=")) for text in given]
    wrong = next((text for text, (_, equals, _) in found if not equals), None)
    if wrong is not None:
        raise UserError(f"{option} {wrong!r}: write name=text, for example {example}")
    return {name: value for _, (name, _, value) in found}


def template_arguments(given: Iterable[str]) -> dict[str, Any]:
    """Arguments of a chat template, with YAML's values: false is no text."""
    from mixprec.core import parsing

    found = pairs("--template-argument", given, "enable_thinking=false")
    try:
        return {name: parsing.parse_yaml(value) for name, value in found.items()}
    except parsing.Malformed as problem:
        raise UserError(f"--template-argument: {problem}") from None


def typed_options(context: typer.Context) -> set[str]:
    """Names of the parameters that stand on the command line; all others have their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def model_in(plan: Path) -> str:
    """The model that a plan.json is for. Raises UserError for other files."""
    from mixprec.core import artifacts

    data = artifacts.parse_json(artifacts.read_text(plan), plan)  # whether it was edited is said where it is read whole
    if not isinstance(data, dict) or not isinstance(data.get("model"), str):
        raise UserError(f"{plan}: key 'model' is missing; is this a plan.json, from 'mixprec plan'?")
    return str(data["model"])


def read_plan(file: Path, where: str | None = None, revision: str | None = None) -> tuple[Plan, Model]:
    """A plan.json and its model, which lies ``where`` or at the plan's own address."""
    from mixprec.models.model import Model
    from mixprec.plan.schema import load_plan

    model = Model(where or model_in(file), revision=revision)
    return load_plan(file, model.decoder), model


def calibrated(model: Model, **options: Any) -> Calibration:
    """The calibration set of a verb's options, those of mixprec.calibrate, with warnings about it in the terminal."""
    from mixprec.api.calibrating import calibrate
    from mixprec.core.progress import console

    found = calibrate(model, **options)
    for warning in found.warnings:
        console.print(warning)
    return found


def scores_in(path: Path | None) -> Any:
    from mixprec.importance import artifact

    return None if path is None else artifact.scores_of(artifact.load(path))
