"""What importing mixprec costs and changes: nothing heavy is loaded before it is needed, and nothing is set."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mixprec
from mixprec.core import environment
from mixprec.models.locate import BUNDLED, bundled
from mixprec.models.model import Model

#: What takes from a tenth of a second to seconds to import, or is needed by one stage alone.
HEAVY = (
    "accelerate", "compressed_tensors", "datasets", "gguf", "huggingface_hub", "matplotlib", "numpy", "scipy",
    "tokenizers", "torch", "transformers",
)  # fmt: skip

_RUN = """
import json, os, sys
sys.argv = ["mixprec", *json.loads(sys.argv[1])]
before = dict(os.environ)
code = 0
try:
    {what}
except SystemExit as end:
    code = end.code
loaded = sorted({{name.partition(".")[0] for name in sys.modules}})
changed = sorted(name for name in os.environ if os.environ[name] != before.get(name))
print("\\n" + json.dumps([code, loaded, changed]))
"""


def loaded_by(what: str, *arguments: str) -> tuple[set[str], list[str]]:
    """The heavy packages that a fresh interpreter has after ``what``, and the variables that it has set."""
    environ = {name: value for name, value in os.environ.items() if name not in environment.VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", _RUN.format(what=what), json.dumps(arguments)],
        env=environ | {"PYTHONPATH": str(Path(mixprec.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    code, loaded, changed = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stdout + done.stderr
    return set(HEAVY) & set(loaded), changed


def test_importing_mixprec_loads_and_sets_nothing() -> None:
    assert loaded_by("import mixprec") == (set(), [])


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["ablate", "--help"]])
def test_help_and_version_load_nothing_heavy(arguments: list[str]) -> None:
    loaded, changed = loaded_by("from mixprec.cli import main; main()", *arguments)
    assert loaded == set()
    assert set(changed) == set(environment.VARIABLES)


#: What arithmetic on recipes, models' headers and texts may use.
LIGHT = {"numpy", "huggingface_hub", "gguf", "tokenizers"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["validate", "quickstart"],
        ["validate", "table3_llama_8b"],
        ["check", "table3_llama_8b", "--runtime", "transformers"],
        ["annotate", "bundled:attribution", "--out", "{folder}/spans.jsonl"],
        ["ls"],
        ["inspect", BUNDLED],
        ["inspect", "{gguf}"],
    ],
    ids=" ".join,
)
def test_verbs_that_compute_with_no_tensor_need_no_torch(arguments: list[str], tmp_path: Path) -> None:
    Model(BUNDLED).folder  # noqa: B018 (the first use converts the model, which takes torch)
    told = [each.format(folder=tmp_path, gguf=bundled()) for each in arguments]
    loaded, _ = loaded_by("from mixprec.cli import main; main()", *told)
    assert loaded <= LIGHT


@pytest.mark.parametrize(
    "module",
    [
        "mixprec.core.artifacts",
        "mixprec.models.decoder",
        "mixprec.models.labels",
        "mixprec.numerics.formats",
        "mixprec.plan.schema",
        "mixprec.plan.rules",
        "mixprec.plan.pareto",
        "mixprec.calibration.spec",
        "mixprec.sensitivity.spec",
        "mixprec.checkpoint.names",
        "mixprec.checkpoint.runtimes",
        "mixprec.recipe",
    ],
)
def test_words_and_numbers_need_no_torch(module: str) -> None:
    loaded, changed = loaded_by(f"import {module}")
    assert (loaded - {"numpy"}, changed) == (set(), [])


@pytest.mark.parametrize("module", ["mixprec.api.calibrating", "mixprec.api.make"])
def test_compressing_brings_nothing_that_draws(module: str) -> None:
    loaded, _ = loaded_by(f"import {module}")
    assert "torch" in loaded
    assert "matplotlib" not in loaded


def test_the_environment_is_settled_once_and_the_users_own_values_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_DYNAMIC", "TRUE")
    monkeypatch.delenv("MKL_CBWR", raising=False)
    environment.settle()
    assert os.environ["MKL_DYNAMIC"] == "TRUE"
    assert os.environ["MKL_CBWR"] == "AUTO"


def test_every_public_name_is_there_and_known_to_type_checkers() -> None:
    """The table of names, the imports for type checkers and dir() say the same."""
    checked = {
        f"{node.module}.{name.name}"
        for branch in ast.walk(ast.parse(Path(mixprec.__file__).read_text(encoding="utf-8")))
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert checked == {f"{module}.{name}" for name, module in mixprec._PUBLIC.items()}
    for name, module in mixprec._PUBLIC.items():
        assert getattr(mixprec, name) is getattr(sys.modules[module], name)
        assert name in dir(mixprec)
    everything: dict[str, object] = {}
    exec("from mixprec import *", everything)
    assert everything.keys() - {"__builtins__"} == mixprec._PUBLIC.keys()
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        mixprec.nothing_of_this_name  # noqa: B018


def test_a_public_name_stays_when_the_package_of_the_same_name_is_imported() -> None:
    """``mixprec.plan`` the function, and ``mixprec/plan/``: the import system sets the package on its parent."""
    loaded_by(
        "import mixprec; found = mixprec.plan; assert callable(found); from mixprec.plan import schema; "
        "from mixprec.plan.schema import Plan; import mixprec.plan.rules; "
        "assert mixprec.plan is found and schema.Plan is Plan"
    )
