"""A recipe: one YAML file, one experiment. It reads whole: no includes; unknown keys are errors, all told at once."""

from mixprec.recipe.files import DATA_VARIABLE, GIVE_DATA, catalogue, data_folder, find, in_data, load, locate, read
from mixprec.recipe.own import (
    BASE,
    OWN,
    AgreementSpec,
    DistillSpec,
    GenerateSpec,
    ShiftSpec,
    calibrates_on_own,
)
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
    "BASE",
    "DATA_VARIABLE",
    "GIVE_DATA",
    "OWN",
    "AgreementSpec",
    "CheckpointSpec",
    "CompressSpec",
    "DistillSpec",
    "EvaluateSpec",
    "GenerateSpec",
    "ImportanceSpec",
    "ModelSpec",
    "Recipe",
    "ShiftSpec",
    "TracesSpec",
    "Variant",
    "calibrates_on_own",
    "catalogue",
    "data_folder",
    "find",
    "in_data",
    "load",
    "locate",
    "read",
]
