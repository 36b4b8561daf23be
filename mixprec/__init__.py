"""mixprec: find out which weights a model reasons with, and spend the bits there.

The flow, one stage per verb and artifact (docs/architecture.md)::

    traces -> annotate -> attribute -> plan -> compress -> evaluate -> report

Importing it costs nothing and changes nothing: a public name brings its module, and torch with it, when it is used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from mixprec.core.version import VERSION

if TYPE_CHECKING:
    from mixprec.core.errors import UserError as UserError
    from mixprec.plan.schema import Plan as Plan

__version__ = VERSION

#: Public name -> the module that has it. Type checkers read the imports above; a test compares the two.
_PUBLIC: Final = {
    "Plan": "mixprec.plan.schema",
    "UserError": "mixprec.core.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mixprec' has no attribute {name!r}")
    found = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = found  # from now on it is found without this function
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


class _Front(ModuleType):
    """``mixprec.plan`` is what the table says, also after ``mixprec/plan/`` was imported: the import system would put
    the package in the place of the public name. Packages of such names are imported by their files' full names."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Front
