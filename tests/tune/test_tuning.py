from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lessons_drawn import samples
from safetensors.torch import load_file
from tiny import write_checkpoint

from mixprec.calibration.data import Calibration
from mixprec.checkpoint.formats import checkpoint_format
from mixprec.compress.stream import compress
from mixprec.core.errors import UserError
from mixprec.models.head import Head
from mixprec.models.model import Model
from mixprec.models.weights import norm_of
from mixprec.numerics.divergence import divergence
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import Plan
from mixprec.tune import distil
from mixprec.tune.distil import Distillation, Sample
from mixprec.tune.options import TuneOptions
from mixprec.tune.packed import tune_packed
from mixprec.tune.solved import SolvedTuning
from mixprec.tune.student import Plain, Student
from mixprec.tune.teacher import Teacher
from mixprec.tune.tuning import Lessons, Tuning, plain_of, recompute, samples_of
from mixprec.walk.states import States

EXACT = TuneOptions(dtype="float32", epochs=4, rate=0.02, norm_rate=0.01)


def planned(model: Model, format: str, method: str = "rtn", sparsity: str | None = None, **rules: str) -> Plan:
    said = [{"match": match, "format": kept} for match, kept in rules.items()]
    spec = {"default": format, "rules": said, "sparsity": sparsity}
    return build_plan(PlanSpec.model_validate(spec), model.decoder, model.id, method)


@pytest.fixture(scope="session")
def packed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in 3 bits, packed, its last MLP kept."""
    out = tmp_path_factory.mktemp("packed") / "checkpoint"
    model = Model(tiny_checkpoint)
    compress(model, planned(model, "w3g16", last_mlp="keep"), out, format=checkpoint_format("compressed-tensors"))
    return out


def kl(model: Model, original: Model, on: Calibration) -> float:
    """Mean KL on samples, by the models' own forward passes."""
    found, heads = [], [Head.of(each.load().model) for each in (model, original)]
    for tokens in on.tokens:
        with torch.no_grad():
            own, other = (
                each.load().model.base_model(tokens[None]).last_hidden_state[0, :-1] for each in (model, original)
            )
            found.append(divergence(own, heads[0], other, heads[1]))
    return float(torch.cat(found).mean())


def distillation(
    packed: Path, original: Path, lessons: Lessons, folder: Path, options: TuneOptions = EXACT
) -> Distillation:
    model = Model(packed, dtype=options.dtype)
    opened, source = model.checkpoint, Model(original, dtype=options.dtype).load()
    teacher = Teacher(source, lessons.tokens, States(10**9, folder / "states"))
    held = {
        each.weight_name: opened.held(each)
        for each in opened.inventory.linears
        if opened.layouts[each.address].container != "dense"
    }
    kinds = Tuning(lessons, options).kinds
    student = Student(model.load().model, held, plain_of(opened.inventory, opened.tensor), kinds)
    sets = samples_of(lessons.training), samples_of(lessons.validation)
    return Distillation(student, teacher, *sets, options, folder / "state.safetensors", "stamp")


def test_gradients_are_those_of_the_dense_weights_summed_over_their_codes(
    packed: Path, tiny_checkpoint: Path, lessons: Lessons, tmp_path: Path
) -> None:
    work = distillation(packed, tiny_checkpoint, lessons, tmp_path)
    work._optimizer.zero_grad()
    sample = work._training[0]
    loss = work._backward(0, sample, float(sample.counts.sum()))
    dense, original = Model(packed).load().model.requires_grad_(True), Model(tiny_checkpoint).load().model
    with torch.no_grad():
        log_p = original(sample.tokens[None]).logits[0, :-1].log_softmax(-1)
    log_q = dense(sample.tokens[None]).logits[0, :-1].log_softmax(-1)
    wanted = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    wanted.backward()
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-5)
    opened = Model(packed).checkpoint
    for linear in opened.inventory.linears:
        if opened.layouts[linear.address].container == "dense":
            continue
        codes, (scales, _) = opened.quantized(linear)
        towards = dense.get_parameter(linear.weight_name).grad * codes
        by_group = torch.stack([part.sum(1) for part in towards.split(16, dim=1)], 1) * scales.float()
        master = work._student.masters[f"{linear.weight_name}|scales"]
        torch.testing.assert_close(master.step.grad, by_group, rtol=1e-3, atol=1e-6)
    norm = work._student.masters["model.norm.weight|plain"]
    unit = dense.model.norm.weight.detach().abs().mean()
    torch.testing.assert_close(norm.step.grad, dense.model.norm.weight.grad * unit, rtol=1e-3, atol=1e-6)


def test_what_is_measured_is_what_is_written(
    packed: Path, tiny_checkpoint: Path, lessons: Lessons, tmp_path: Path
) -> None:
    tuning, original = Tuning(lessons, EXACT), Model(tiny_checkpoint)
    tune_packed(tuning, Model(packed), original, tmp_path / "tuned")
    course = tuning.course
    assert course is not None
    assert course.best[1] < 0.9 * course.before
    assert course.before == pytest.approx(kl(Model(packed), original, lessons.validation), rel=1e-4)
    assert course.best[1] == pytest.approx(kl(Model(tmp_path / "tuned"), original, lessons.validation), rel=1e-4)
    before, after = (load_file(folder / "model.safetensors") for folder in (packed, tmp_path / "tuned"))
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        moves = name.endswith(("weight_scale", "norm.weight"))
        assert torch.equal(tensor, before[name]) != moves, name
        assert tensor.dtype == before[name].dtype
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (packed, tmp_path / "tuned")]
    assert sizes[0] == sizes[1]


def test_who_holds_a_models_weights_keeps_them(
    packed: Path, tiny_checkpoint: Path, lessons: Lessons, tmp_path: Path
) -> None:
    model, solved = Model(tiny_checkpoint), Model(packed)
    held = [each.load().model for each in (model, solved)]
    before = [{name: tensor.clone() for name, tensor in each.state_dict().items()} for each in held]
    tune_packed(Tuning(lessons, EXACT), solved, model, tmp_path / "again")
    tuning = SolvedTuning(lessons, EXACT, solved_on=lessons.training)
    compress(model, planned(model, "w3g16", "rtn"), tmp_path / "tuned", format=checkpoint_format("dense"), tune=tuning)
    for each, was in zip(held, before, strict=True):
        assert all(torch.equal(tensor, was[name]) for name, tensor in each.state_dict().items())


@pytest.mark.parametrize(("format", "default"), [("awq", "w4g16_asym"), ("mlx", "w4g32")])
def test_other_packed_formats_are_tuned_and_stay_what_they_are(
    tiny_checkpoint: Path, lessons: Lessons, tmp_path: Path, format: str, default: str
) -> None:
    model = Model(tiny_checkpoint)
    compress(
        model,
        planned(model, default, **({"*_down": "keep"} if format == "mlx" else {"last_mlp": "keep"})),
        tmp_path / "start",
        format=checkpoint_format(format),
    )
    gentle = EXACT.model_copy(update={"rate": 0.003, "norm_rate": 0.001})
    tune_packed(Tuning(lessons, gentle), Model(tmp_path / "start"), model, tmp_path / "tuned")
    before, after = (Model(tmp_path / name).checkpoint for name in ("start", "tuned"))
    assert after.container == format
    assert after.layouts == before.layouts
    packed = [each for each in before.inventory.linears if before.layouts[each.address].container != "dense"]
    for one, other in ((before.held(each).quantized, after.held(each).quantized) for each in packed):
        assert torch.equal(one.codes, other.codes)  # of scales and offsets those that may move do
    assert kl(Model(tmp_path / "tuned"), model, lessons.validation) < kl(
        Model(tmp_path / "start"), model, lessons.validation
    )


def test_a_killed_call_continues_and_ends_with_the_same_bytes(
    packed: Path, tiny_checkpoint: Path, lessons: Lessons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune_packed(Tuning(lessons, EXACT), Model(packed), Model(tiny_checkpoint), tmp_path / "whole")
    step = Distillation._step

    def killed(self: Distillation, number: int) -> float:
        if number == 8:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(Distillation, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        tune_packed(Tuning(lessons, EXACT), Model(packed), Model(tiny_checkpoint), tmp_path / "out")
    monkeypatch.setattr(Distillation, "_step", step)
    taken: list[int] = []
    monkeypatch.setattr(Distillation, "_step", lambda self, number: taken.append(number) or step(self, number))
    tune_packed(Tuning(lessons, EXACT), Model(packed), Model(tiny_checkpoint), tmp_path / "out")
    assert taken[0] == 6
    whole, out = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(whole[name], out[name]) for name in whole)
    assert not (tmp_path / ".out.blocks").exists()


@pytest.mark.parametrize(
    ("format", "method", "written", "skip"),
    [
        ("w3g16", "rtn", "dense", 6),
        ("w2g16_asym", "gptq", "dense", 6),
        ("any2g16", "anyk", "dense", 6),
        # These two are so near to the original that samples 6 to 8 gain nothing from what 0 to 5 teach.
        ("q4_0", "ggml", "gguf", 9),
        ("w2g16", "gptaq", "dense", 9),
    ],
)
def test_what_was_solved_is_tuned_before_it_is_packed(
    tiny_checkpoint: Path, tmp_path: Path, format: str, method: str, written: str, skip: int
) -> None:
    model, lessons = Model(tiny_checkpoint), Lessons(samples(6), samples(3, skip=skip))
    tuning = SolvedTuning(
        lessons, EXACT.model_copy(update={"zeros": True, "rate": 1e-3, "norm_rate": 1e-3}), solved_on=lessons.training
    )
    given: dict[str, Any] = {"calibration": lessons.training, "format": checkpoint_format(written)}
    reports = compress(model, planned(model, format, method), tmp_path / "tuned", tune=tuning, **given)
    assert tuning.course is not None
    assert tuning.course.best[1] < tuning.course.before
    found = kl(Model(tmp_path / "tuned"), Model(tiny_checkpoint), lessons.validation)
    assert tuning.course.best[1] == pytest.approx(found, rel=1e-3)
    assert all(report.relative_error > 0 for report in reports.values() if method != "ggml")
    assert not (tmp_path / ".tuned.blocks").exists()


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "gemma2", "gemma3_text"])
def test_norms_and_biases_of_other_families_move(architecture: str, tmp_path: Path, lessons: Lessons) -> None:
    folder = write_checkpoint(tmp_path / "model", architecture, steps=60)
    model = Model(folder)
    tuning = SolvedTuning(lessons, EXACT.model_copy(update={"biases": True}))
    compress(model, planned(model, "w2g16"), tmp_path / "tuned", tune=tuning)
    before, after = (load_file(each / "model.safetensors") for each in (folder, tmp_path / "tuned"))
    plain = plain_of(model.decoder, model.checkpoint.tensor)
    assert any(name.endswith(".bias") for name in plain) == (architecture == "qwen2")
    for name in plain:
        assert not torch.equal(before[name], after[name]), name


def test_tokens_count_by_their_weights(packed: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    one = samples(1)
    weights = torch.zeros(one.tokens.shape)
    weights[:, 5] = 1
    weighted = samples(1, weights=weights)
    work = distillation(packed, tiny_checkpoint, Lessons(weighted, samples(2, skip=6)), tmp_path)
    sample = work._training[0]
    found = work._backward(0, sample, float(sample.counts.sum()))
    whole = distillation(packed, tiny_checkpoint, Lessons(one, samples(2, skip=6)), tmp_path / "b")
    only = Sample(one.tokens[0], torch.nn.functional.one_hot(torch.tensor(4), 23).float())
    assert found == pytest.approx(whole._backward(0, only, 1.0), rel=1e-5)
    assert found != pytest.approx(whole._backward(0, whole._training[0], 23.0), rel=1e-2)


def test_running_blocks_twice_changes_nothing(
    packed: Path, tiny_checkpoint: Path, lessons: Lessons, tmp_path: Path
) -> None:
    plain = distillation(packed, tiny_checkpoint, lessons, tmp_path / "plain")
    lean = distillation(packed, tiny_checkpoint, lessons, tmp_path / "lean")
    recompute(lean._student.model)
    for each in (plain, lean):
        each._step(0)
    first, second = plain._student.state(), lean._student.state()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_loss_that_is_nan_goes_back_at_half_the_rate(
    packed: Path, tiny_checkpoint: Path, lessons: Lessons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    work = distillation(packed, tiny_checkpoint, lessons, tmp_path)
    backward, failures = work._backward, iter([math.nan, math.nan])

    def sometimes(number: int, sample: Sample, total: float) -> float:
        return backward(number, sample, total) + (next(failures, 0.0) if work._done == 4 else 0.0)

    monkeypatch.setattr(work, "_backward", sometimes)
    course = work.run(lambda _: None)
    assert course.rate == 0.25
    assert course.best[1] < course.before
    assert capsys.readouterr().err.count("NaN or infinite: back, at half the rate") == 2
    never = distillation(packed, tiny_checkpoint, lessons, tmp_path / "never")
    monkeypatch.setattr(never, "_backward", lambda *_: math.inf)
    with pytest.raises(UserError, match=r"lower tune\.rate"):
        never.run(lambda _: None)


def test_what_gains_nothing_is_refused(
    packed: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], lessons: Lessons,
) -> None:  # fmt: skip
    monkeypatch.setattr(distil.Distillation, "_schedule", lambda self, number: -1.0)  # uphill
    with pytest.raises(UserError, match="gained nothing"):
        tune_packed(Tuning(lessons, EXACT), Model(packed), Model(tiny_checkpoint), tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()
    model = Model(tiny_checkpoint)
    plan = planned(model, "w3g16", last_mlp="keep")
    tuning = SolvedTuning(lessons, EXACT)
    written = checkpoint_format("compressed-tensors")
    compress(model, plan, tmp_path / "solved", tune=tuning, format=written)
    assert "nothing was gained" in capsys.readouterr().err
    same = (load_file(folder / "model.safetensors") for folder in (packed, tmp_path / "solved"))
    first, second = same
    assert all(torch.equal(first[name], second[name]) for name in first)


def refused(match: str, act: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=match):
        act()


def test_what_can_not_be_tuned_is_said(packed: Path, tiny_checkpoint: Path, tmp_path: Path, lessons: Lessons) -> None:
    model, original = Model(packed), Model(tiny_checkpoint)
    refused("is among those that are tuned on", lambda: Lessons(samples(6), samples(3, skip=4)))
    nothing_counts = torch.zeros(3, samples(3).tokens.shape[1])
    nothing_counts[:, 0] = 1  # nothing predicts a first token
    refused("no token counts", lambda: Lessons(samples(6), samples(3, skip=6, weights=nothing_counts)))
    solved = {"solved_on": samples(2, skip=7)}
    refused("is among those", lambda: SolvedTuning(lessons, EXACT, **solved))
    refused("is written dense", lambda: tune_packed(Tuning(lessons), original, original, tmp_path / "out"))
    refused("quantized already", lambda: tune_packed(Tuning(lessons), model, model, tmp_path / "out"))
    other = Model(write_checkpoint(tmp_path / "other", intermediate_size=64))
    refused("is not what", lambda: tune_packed(Tuning(lessons), model, other, tmp_path / "out"))
    words = Model(write_checkpoint(tmp_path / "words"))
    path = tmp_path / "words" / "tokenizer.json"
    swapped = json.loads(path.read_text())
    vocabulary = swapped["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(swapped))
    refused("has another tokenizer", lambda: tune_packed(Tuning(lessons), model, words, tmp_path / "out"))
    nothing = SolvedTuning(lessons, TuneOptions(norms=False))
    pruned = planned(original, "keep", "magnitude", sparsity="0.5")
    refused("no module is in a format", lambda: compress(original, pruned, tmp_path / "pruned", tune=nothing))


def test_a_norm_is_where_the_map_says(tiny_checkpoint: Path) -> None:
    loaded, model = Model(tiny_checkpoint).load(), Model(tiny_checkpoint)
    plain = plain_of(model.decoder, model.checkpoint.tensor)
    norm = plain["model.norm.weight"]
    assert isinstance(norm, Plain)
    assert torch.equal(norm.tensor, norm_of(loaded.model).weight)
