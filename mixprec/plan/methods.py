"""The compression methods as records: what each can do, and what it looks at. How it solves: mixprec/compress/.

Who adds a method adds its record here and its solver in mixprec/compress/methods.py; no other file knows names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from mixprec.numerics.formats import AffineFormat, CodebookFormat, Format, GgmlFormat


@dataclass(frozen=True)
class Needs:
    """What a method looks at besides the weight.

    ``inputs``: of the linear: not at all, where there is calibration data, or always. ``second_moments``: all of them,
    where other methods take each input by itself. ``original_states``: also what the uncompressed model's linear gets.
    """

    inputs: Literal["none", "where there are any", "always"] = "none"
    second_moments: bool = False
    original_states: bool = False


@dataclass(frozen=True)
class Pace:
    """What solving a linear takes, for estimates (pipeline/reckoning.py).

    ``columns``: how often it goes through the columns one by one; ``products``: products of the weight with a matrix
    (in, in); ``weight``: seconds for each weight besides.
    """

    columns: float = 0.0
    products: float = 0.0
    weight: float = 2.6e-8


#: Column by column, with what is left of the error spread over the columns behind.
_BY_COLUMNS: Final = Pace(columns=1, products=1, weight=0)


@dataclass(frozen=True)
class MethodRecord:
    """One method. ``name``: in plans and recipes; ``title``: in tables of benchmarks; ``source``: what it is called
    where it was published, and the number on arXiv.

    ``formats``: the kinds that it rounds to; ``apart``: why these go with no other method, and this with no other
    formats. ``prunes``: it sets weights to zero, and asks for a sparsity. ``on_original_inputs``: the method that it
    is where a linear's inputs are those of the uncompressed model. ``packed``: the nearest method for grids of
    integers, which is proposed where a checkpoint can't hold its formats. ``pace``: what solving takes. ``guided``:
    rows are solved by whatever Hessian they are given, each part of them by one of its own. ``descends``: codes and
    scales may descend behind its pass (compress/descent.py). ``scales``: the inputs that linears share, by how much
    their channels matter.
    """

    name: str
    title: str
    source: tuple[str, str] | None = None
    needs: Needs = Needs()
    formats: tuple[type, ...] = (Format,)
    apart: str = ""
    prunes: bool = False
    on_original_inputs: str | None = None
    packed: str | None = None
    pace: Pace = Pace()
    guided: bool = False
    descends: bool = False
    scales: bool = False


METHODS: Final[dict[str, MethodRecord]] = {
    record.name: record
    for record in (
        MethodRecord("rtn", "RTN", formats=(Format, AffineFormat)),
        MethodRecord(
            "gptq",
            "GPTQ",
            ("GPTQ", "2210.17323"),
            Needs("always", second_moments=True),
            pace=_BY_COLUMNS,
            guided=True,
            descends=True,
        ),
        MethodRecord(
            "gptaq",
            "GPTAQ",
            ("GPTAQ", "2504.02692"),
            Needs("always", second_moments=True, original_states=True),
            on_original_inputs="gptq",  # it pays for how inputs differ from the original's
            pace=Pace(columns=1.5, products=4, weight=0),
            guided=True,
            descends=True,
        ),
        MethodRecord(
            "awq",
            "AWQ",
            ("AWQ", "2306.00978"),
            Needs("always", second_moments=True),
            pace=Pace(products=40, weight=2.6e-7),
            scales=True,
        ),
        MethodRecord(
            "anyk",
            "anyk",
            ("ANY4", "2507.04610"),
            Needs("always"),
            formats=(CodebookFormat,),
            apart="any4 and any3 need method anyk",
            packed="gptq",
            pace=Pace(weight=6e-7),
        ),
        MethodRecord(
            "ggml",
            "ggml",
            needs=Needs("where there are any"),
            formats=(GgmlFormat,),
            apart="llama.cpp's types, such as q4_k, and method ggml need one another",
            packed="rtn",
            pace=Pace(weight=8e-7),
        ),
        MethodRecord(
            "sparsegpt",
            "sparsegpt",
            ("SparseGPT", "2301.00774"),
            Needs("always", second_moments=True),
            prunes=True,
            pace=_BY_COLUMNS,
            guided=True,
        ),
        MethodRecord("wanda", "wanda", ("Wanda", "2306.11695"), Needs("always"), formats=(), prunes=True),
        MethodRecord("magnitude", "magnitude", formats=(), prunes=True),
    )
}


def _known(name: Any) -> str:
    if not isinstance(name, str) or name not in METHODS:
        *names, last = map(repr, METHODS)
        raise PydanticCustomError("method", "Input should be {expected}", {"expected": f"{', '.join(names)} or {last}"})
    return name


#: A method's name in a plan or a recipe.
Method = Annotated[str, BeforeValidator(_known, json_schema_input_type=Literal[tuple(METHODS)])]


def method_for(kind: type, default: Method) -> Method:
    """Who makes formats of this ``kind``: the method that makes no others, where there is one, else ``default``."""
    return next((name for name, each in METHODS.items() if each.apart and kind in each.formats), default)


def needing_inputs(names: Iterable[str]) -> set[str]:
    """The methods that can't do without the inputs of linears, so without calibration data."""
    return {name for name in names if METHODS[name].needs.inputs == "always"}


def using_inputs(names: Iterable[str]) -> set[str]:
    """The methods that look at the inputs of linears where there is calibration data."""
    return {name for name in names if METHODS[name].needs.inputs != "none"}


def solving(names: Iterable[str]) -> set[str]:
    """The methods that solve with all second moments of the inputs."""
    return {name for name in names if METHODS[name].needs.second_moments}


def wanting_original_states(names: Iterable[str]) -> set[str]:
    """The methods that look at what linears get in the uncompressed model too."""
    return {name for name in names if METHODS[name].needs.original_states}


def scaling(names: Iterable[str]) -> set[str]:
    """The methods that scale the inputs of linears."""
    return {name for name in names if METHODS[name].scales}


def guidable(names: Iterable[str]) -> set[str]:
    """The methods that can solve parts of the rows with Hessians of their own."""
    return {name for name in names if METHODS[name].guided}


def unguided(names: Iterable[str], where: str) -> str | None:
    """What is wrong with guidance, asked for in ``where``, of methods that all can't be guided; None where some can."""
    chosen = sorted(names)
    if guidable(chosen):
        return None
    can = ", ".join(sorted(guidable(METHODS)))
    return f"{where}: {', '.join(chosen) or 'no method'} can't be guided; leave it out, or compress by one of {can}"


def pruners() -> dict[str, MethodRecord]:
    """The methods that set weights to zero."""
    return {name: method for name, method in METHODS.items() if method.prunes}
