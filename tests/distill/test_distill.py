"""Distillation of tiny students: losses against float64 loops, what is kept, what a kill leaves, what is refused."""

from __future__ import annotations

import gc
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import mixprec as mp
from mixprec.core.errors import UserError
from mixprec.core.progress import Step
from mixprec.distill import lessons, run
from mixprec.distill.lessons import IGNORED, Lesson
from mixprec.traces import procedural, store

needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None or importlib.util.find_spec("peft") is None,
    reason=f"TRL and peft train; {run.INSTALL}",
)
ROWS = [
    {"id": str(n), "prompt": f"There were {n} apples.\n<think>\n", "output": f"So {n} are left.\n</think>\n\n{n}."}
    for n in range(9)
]
OPTIONS: dict[str, Any] = {"validation": 3, "epochs": 3, "batch": 2, "rate": 1e-2, "checks": 1, "dtype": "float32"}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("student") / "model")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one layer more, and an embedding that is padded by a few rows."""
    words = len(tiny.tokenizer()) + 8
    path = tmp_path_factory.mktemp("teacher") / "model"
    return tiny.write_checkpoint(path, steps=30, num_hidden_layers=3, vocab_size=words)


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    return tiny.write_traces(tmp_path / "traces.jsonl", *ROWS)


def distill(student: Path, traces: Path, out: Path, **given: Any) -> mp.Distilled:
    other = {name: given.pop(name) for name in ("teacher", "progress", "base_model") if name in given}
    return mp.distill(student, traces, out, options=mp.DistillOptions(**OPTIONS | given), **other)


def drawn(student: Path, traces: Path, **given: Any) -> lessons.Lessons:
    options = mp.DistillOptions(**OPTIONS | given)
    return lessons.draw(store.load(str(traces)), mp.Model(student).encoder, options, 256)


def logits(folder: Path, tokens: tuple[int, ...]) -> torch.Tensor:
    """(T - 1, words) float64: log-probabilities by the plain model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([tokens])).logits[0, :-1].double()
    return found


def loop(folder: Path, sample: list[Lesson], teacher: Path | None = None) -> float:
    """Mean loss per token that counts, one token at a time."""
    total, count = 0.0, 0
    for one in sample:
        own = logits(folder, one.tokens)
        original = None if teacher is None else logits(teacher, one.tokens)[:, : own.shape[1]].log_softmax(-1)
        for at, label in enumerate(one.labels[1:]):
            if label == IGNORED:
                continue
            log_q = own[at].log_softmax(-1)
            count += 1
            if original is None:
                total -= float(log_q[label])
            else:
                total += float((original[at].exp() * (original[at] - log_q)).sum())
    return total / count


@needs_trl
def test_a_student_learns_and_is_a_checkpoint_that_everything_takes(
    student: Path, traces: Path, tmp_path: Path
) -> None:
    made = distill(student, traces, tmp_path / "out")
    course, held = made.told["course"], list(drawn(student, traces).validation)
    assert course["before"] == pytest.approx(loop(student, held), rel=1e-5)
    assert course["written"] == pytest.approx(loop(tmp_path / "out", held), rel=1e-5)
    assert course["after"] < 0.9 * course["before"]
    assert course["after"] == min(loss for _, loss in course["validation"])
    assert [step for step, _ in course["training"]] == list(range(1, 10))
    assert made.speed and made.speed > 0

    old, new = (load_file(folder / "model.safetensors") for folder in (student, tmp_path / "out"))
    assert {n: (t.dtype, t.shape) for n, t in old.items()} == {n: (t.dtype, t.shape) for n, t in new.items()}
    model = mp.Model(tmp_path / "out")
    model.check()
    assert torch.isfinite(model.load().model(torch.tensor([[1, 2, 3]])).logits).all()
    assert not mp.Distilled.load(tmp_path / "out").checkpoint.plan.changed
    plan = mp.plan(model, "w3g16")
    assert (mp.compress(model, plan, tmp_path / "small").folder / "model.safetensors").is_file()

    losses = json.loads((tmp_path / "out" / "distillation" / "losses.json").read_text(encoding="utf-8"))
    assert losses["validation"] == course["validation"]
    assert (tmp_path / "out" / "distillation" / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / ".out.blocks").exists()
    assert "cross-entropy" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@needs_trl
def test_the_first_step_is_of_the_tokens_that_count_alone(student: Path, traces: Path, tmp_path: Path) -> None:
    sample = list(drawn(student, traces, validation=3, batch=6).training)
    expected = loop(student, sample)
    for given in ({"batch": 6}, {"batch": 6, "at_once": 3}, {"batch": 1, "packing": True, "tokens": 256}):
        made = distill(student, traces, tmp_path / "out", **given)
        assert made.told["course"]["training"][0][1] == pytest.approx(expected, rel=1e-5), given
        assert made.told["rows"] == (1 if "packing" in given else 6)
        shutil.rmtree(tmp_path / "out")


@needs_trl
def test_packed_traces_do_not_see_one_another(student: Path, traces: Path, tmp_path: Path) -> None:
    """The same steps as of all rows at once, so the same weights."""
    both = [
        distill(student, traces, tmp_path / name, epochs=2, **given).folder
        for name, given in (("rows", {"batch": 6}), ("packed", {"batch": 1, "packing": True, "tokens": 256}))
    ]
    one, other = (load_file(folder / "model.safetensors") for folder in both)
    before = load_file(student / "model.safetensors")
    moved = max(float((one[name] - before[name]).abs().max()) for name in one)
    apart = max(float((one[name] - other[name]).abs().max()) for name in one)
    assert apart < 1e-2 * moved  # AdamW's steps make much of rounding


@needs_trl
@pytest.mark.parametrize("at_once", [1, 3])
def test_predictions_are_learned_as_a_float64_loop_has_them(
    student: Path, teacher: Path, traces: Path, tmp_path: Path, at_once: int
) -> None:
    made = distill(student, traces, tmp_path / "out", teacher=teacher, batch=6, at_once=at_once)
    course, found = made.told["course"], drawn(student, traces)
    assert course["objective"].startswith("KL")
    assert course["before"] == pytest.approx(loop(student, list(found.validation), teacher), rel=1e-5)
    assert course["training"][0][1] == pytest.approx(loop(student, list(found.training), teacher), rel=1e-5)
    assert course["written"] == pytest.approx(loop(tmp_path / "out", list(found.validation), teacher), rel=1e-5)
    assert course["after"] < 0.9 * course["before"]
    assert made.told["teacher"]["model"] == str(teacher)


@needs_trl
def test_gradients_are_those_of_the_divergence(student: Path, teacher: Path, traces: Path, tmp_path: Path) -> None:
    from mixprec.distill.trainer import Training

    found = drawn(student, traces, batch=6)
    loaded = mp.Model(student).load()
    loaded.model.requires_grad_(True)
    options = mp.DistillOptions(**OPTIONS | {"batch": 6, "at_once": 6})
    training = Training(loaded, mp.Model(teacher).load(), found, options, tmp_path / "work", "cpu")
    inputs = training._trainer.data_collator([{"input_ids": o.tokens, "labels": o.labels} for o in found.training])
    training._trainer.compute_loss(loaded.model, dict(inputs)).backward()

    plain = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float64)
    losses = []
    for one in found.training:
        own = plain(torch.tensor([one.tokens])).logits[0, :-1].log_softmax(-1)
        original = logits(teacher, one.tokens)[:, : own.shape[1]].log_softmax(-1)
        each = (original.exp() * (original - own)).sum(-1)
        losses += [each[at] for at, label in enumerate(one.labels[1:]) if label != IGNORED]
    torch.stack(losses).mean().backward()
    expected = dict(plain.named_parameters())
    for name, parameter in loaded.model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), expected[name].grad, rtol=1e-3, atol=1e-6)


@needs_trl
def test_adapters_are_merged_and_move_linear_modules_only(student: Path, traces: Path, tmp_path: Path) -> None:
    made = distill(student, traces, tmp_path / "out", lora=4, epochs=4)
    old, new = (load_file(folder / "model.safetensors") for folder in (student, made.folder))
    assert old.keys() == new.keys()
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved == {name for name in old if name.endswith("_proj.weight")}
    change = new["model.layers.0.mlp.up_proj.weight"] - old["model.layers.0.mlp.up_proj.weight"]
    assert torch.linalg.matrix_rank(change.double(), rtol=1e-4) == 4
    course = made.told["course"]
    assert course["written"] == pytest.approx(loop(made.folder, list(drawn(student, traces).validation)), rel=1e-5)


def stop_after(steps: int) -> Callable[[Step], None]:
    def listen(step: Step) -> None:
        if step.what == "distill" and step.done == steps:
            raise KeyboardInterrupt

    return listen


@needs_trl
@pytest.mark.parametrize("lora", [0, 2])
def test_a_killed_run_goes_on_to_the_same_bytes(student: Path, traces: Path, tmp_path: Path, lora: int) -> None:
    whole = distill(student, traces, tmp_path / "whole", lora=lora)
    with pytest.raises(KeyboardInterrupt):
        distill(student, traces, tmp_path / "killed", lora=lora, progress=stop_after(5))
    work = tmp_path / ".killed.blocks" / "training"
    assert (work / "checkpoint-3" / "whole").exists()
    half = work / "checkpoint-6"  # as a kill leaves one
    half.mkdir()
    (half / "trainer_state.json").write_text("{", encoding="utf-8")
    steps: list[int] = []
    again = distill(student, traces, tmp_path / "killed", lora=lora, progress=lambda step: steps.append(step.done))
    assert steps[:3] == [0, 3, 4]
    assert again.told["course"] == whole.told["course"]
    for name in ("model.safetensors", "mixprec.json", "README.md", "distillation/losses.png"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    steps.clear()
    same = distill(student, traces, tmp_path / "killed", lora=lora, progress=lambda step: steps.append(step.done))
    assert (steps, same.speed, same.told) == ([], None, again.told)


@needs_trl
def test_what_gains_nothing_is_not_written_and_ends_early(student: Path, traces: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"not written: .*cross-entropy on 3 .* not below after 6 steps; .*lower --rate"
    ):
        distill(student, traces, tmp_path / "out", rate=3.0, patience=1)
    assert not (tmp_path / "out").exists()


@needs_trl
def test_the_best_step_is_kept_not_the_last(student: Path, traces: Path, tmp_path: Path) -> None:
    made = distill(student, traces, tmp_path / "out", epochs=12, rate=0.1, patience=60)
    course = made.told["course"]
    assert 0 < course["kept_step"] < course["steps"]
    assert course["validation"][-1][1] > course["after"]
    held = list(drawn(student, traces).validation)
    assert course["written"] == pytest.approx(loop(made.folder, held), rel=1e-5)


@needs_trl
def test_callers_seeds_stay(student: Path, traces: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    distill(student, traces, tmp_path / "out", epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


@needs_trl
def test_other_tokenizers_and_templates_are_refused(student: Path, traces: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(student, other)
    file = other / "tokenizer.json"
    said = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = said["model"]["vocab"]
    first, second = list(vocabulary)[50:52]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(UserError, match=r"another tokenizer .*leave --teacher out: traces are text"):
        distill(student, traces, tmp_path / "out", teacher=other)
    with pytest.raises(UserError, match=r"--chat-template: .*no chat template; leave the option out"):
        distill(student, traces, tmp_path / "out", chat_template=True)


@needs_trl
def test_bad_students_targets_and_limits_are_refused(student: Path, traces: Path, tmp_path: Path) -> None:
    model = mp.Model(student)
    packed = mp.compress(model, mp.plan(model, "w4g16"), tmp_path / "packed", format="compressed-tensors")
    with pytest.raises(UserError, match="quantized already"):
        distill(packed.folder, traces, tmp_path / "out")
    experts = tiny.write_checkpoint(tmp_path / "experts", "mixtral", num_local_experts=2)
    with pytest.raises(UserError, match="mixtures of experts"):
        distill(experts, traces, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="mixprec did not make it"):
        distill(student, traces, tmp_path / "mine")
    with pytest.raises(UserError, match="more than the models' context of 256"):
        distill(student, traces, tmp_path / "out", tokens=512)
    with pytest.raises(UserError, match="a --batch that 3 divides"):
        distill(student, traces, tmp_path / "out", batch=4, at_once=3)
    with pytest.raises(UserError, match="owner/name"):
        distill(student, traces, tmp_path / "out", base_model="no id")
    long = tiny.write_traces(tmp_path / "long.jsonl", *ROWS, {"id": "x", "prompt": "Why?", "output": "so " * 300})
    with pytest.raises(UserError, match="1 of 10 traces are longer than 256 tokens"):
        distill(student, long, tmp_path / "out")


def test_a_missing_package_says_how_to_install_it(
    student: Path, traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_PACKAGES", ("no_such_package",))
    with pytest.raises(UserError, match=r"no_such_package not installed; run: pip install 'mixprec\[distill\]'"):
        distill(student, traces, tmp_path / "out")


@pytest.mark.slow
@needs_trl
def test_the_bundled_model_learns_procedural_traces(tmp_path: Path) -> None:
    file = tmp_path / "traces.jsonl"
    mp.make_traces(file, count=8, seed=3, kinds=[next(iter(procedural.KINDS))])
    options = mp.DistillOptions(validation=2, epochs=1, batch=2, rate=1e-4, checks=1, dtype="float32")
    made = mp.distill("smollm2-135m-instruct", file, tmp_path / "out", options=options)
    assert made.told["course"]["written"] < made.told["course"]["before"]


@needs_trl
def test_nothing_of_the_training_stays_in_memory(student: Path, traces: Path, tmp_path: Path) -> None:
    """Gradients and the optimizer's state are three times the weights, and stages of a recipe follow."""
    gc.collect()
    before = {id(each) for each in parts()}
    distill(student, traces, tmp_path / "out")
    assert not [type(each).__name__ for each in parts() if id(each) not in before]


def parts() -> list[Any]:
    """Models and optimizers in memory."""
    kinds = (torch.optim.Optimizer, torch.nn.Module)
    return [each for each in gc.get_objects() if issubclass(type(each), kinds)]
