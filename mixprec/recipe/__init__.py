"""A recipe: one YAML file, one experiment. It reads whole: no includes; unknown keys are errors, all told at once."""

from mixprec.recipe.files import DATA_VARIABLE, catalogue, data_folder, find, load, locate
from mixprec.recipe.parts import (
    CheckpointSpec,
    CompressSpec,
    EvaluateSpec,
    ImportanceSpec,
    ModelSpec,
    TracesSpec,
    Variant,
)
from mixprec.recipe.schema import Recipe

__all__ = [
    "DATA_VARIABLE",
    "CheckpointSpec",
    "CompressSpec",
    "EvaluateSpec",
    "ImportanceSpec",
    "ModelSpec",
    "Recipe",
    "TracesSpec",
    "Variant",
    "catalogue",
    "data_folder",
    "find",
    "load",
    "locate",
]
