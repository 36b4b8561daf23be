"""Names of a package that bring their modules when they are used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


def attributes(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of ``package`` (PEP 562), whose names are in ``modules``: name -> module.

    A name stays what the table says also after a module of the package that is called the same was imported: the
    import system would put the module in its place. Such modules are imported by their full names.
    """

    class Package(ModuleType):
        def __setattr__(self, name: str, value: Any) -> None:
            if not (name in modules and isinstance(value, ModuleType)):
                super().__setattr__(name, value)

    itself = sys.modules[package]
    itself.__class__ = Package

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(modules[name]), name)
        setattr(itself, name, found)  # from now on it is found without this function
        return found

    return get, lambda: sorted({*vars(itself), *modules})
