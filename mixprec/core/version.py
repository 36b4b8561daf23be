"""The version of mixprec: the package's metadata, ``--version``, stages and artifacts have it from here."""

from typing import Final

VERSION: Final = "0.1.0"
