"""GGUF models that are split, incomplete, or hold what transformers' reader passes over: read whole, or refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny
import torch
from plan_made import plan_for

from mixprec.checkpoint.compare import diff
from mixprec.checkpoint.formats import FORMATS
from mixprec.checkpoint.opening import open_checkpoint
from mixprec.compress.stream import compress
from mixprec.core.errors import UserError
from mixprec.models import locate
from mixprec.models.config import load_config
from mixprec.models.gguf.parts import files_of
from mixprec.models.model import Model

Tensors = Sequence[gguf.ReaderTensor]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Converted models go into a folder of the test's own."""
    monkeypatch.setenv("MIXPREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module", params=["tied", "untied"])
def whole(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A model in one file, with nothing beside it."""
    folder = tmp_path_factory.mktemp("whole")
    shape = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "tie_word_embeddings": request.param == "tied"}
    loaded = tiny.build(**shape)
    loaded.model.save_pretrained(folder / "source")
    loaded.tokenizer.save_pretrained(folder / "source")
    plan = plan_for(folder / "source", "w4g32")
    compress(Model(folder / "source"), plan, folder / "out", format=FORMATS["gguf"])
    return Path(shutil.copy(folder / "out" / "model.gguf", folder / "tiny.gguf"))


def rewrite(
    source: Path,
    out: Path,
    change: Callable[[Tensors], Iterable[tuple[str, np.ndarray, Any]]] | None = None,
    more: Callable[[gguf.GGUFWriter], object] = lambda _: None,
    **options: Any,
) -> Path:
    """Write a GGUF file anew, its tensors changed by ``change``, metadata added by ``more``."""
    reader = gguf.GGUFReader(source)
    architecture = reader.get_field("general.architecture").contents()
    writer = gguf.GGUFWriter(out, architecture, **options)
    for field in reader.fields.values():
        if field.name != "general.architecture" and not field.name.startswith("GGUF."):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    more(writer)
    for name, data, kind in (
        change(reader.tensors) if change else ((t.name, t.data, t.tensor_type) for t in reader.tensors)
    ):
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.fixture
def split(whole: Path, tmp_path: Path) -> list[Path]:
    """The same in four parts; the head, or the last norm, is in the last."""
    (tmp_path / "split [4]").mkdir()
    rewrite(whole, tmp_path / "split [4]" / "tiny.gguf", split_max_tensors=6)
    return sorted((tmp_path / "split [4]").iterdir())


def logits(model_id: Path) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = Model(model_id).load().model(input_ids=torch.arange(2, 40)[None]).logits
    return found


def test_any_part_stands_for_the_whole_model(whole: Path, split: list[Path]) -> None:
    assert len(split) == 4
    expected = logits(whole)
    for given in (*split, split[0].parent):
        assert torch.equal(logits(given), expected)
    read = open_checkpoint(split[2])
    assert {difference.error for difference in diff(open_checkpoint(whole), read).values()} == {0.0}
    assert open_checkpoint(split[0].parent).layouts == read.layouts


def test_linked_parts_as_in_the_hubs_cache(whole: Path, split: list[Path], tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    snapshot.mkdir()
    blobs.mkdir()
    for number, part in enumerate(split):
        (snapshot / part.name).symlink_to(part.rename(blobs / f"{number:064x}"))
    assert torch.equal(logits(snapshot / split[1].name), logits(whole))


def test_a_part_that_is_missing_is_named(split: list[Path], cache: Path) -> None:
    split[2].unlink()
    for given in (split[0], split[3], split[0].parent):
        for read in (locate.resolve, lambda path: open_checkpoint(Path(path))):
            with pytest.raises(UserError, match=r"tiny-00003-of-00004\.gguf: no such file; .* 4 parts, of which all"):
                read(str(given))
    with pytest.raises(UserError, match="part 5 of 4 by its name"):
        files_of(split[0].with_name("tiny-00005-of-00004.gguf"))
    assert not list(cache.rglob("*.safetensors"))


def test_parts_of_other_names_or_of_several_models(whole: Path, split: list[Path], tmp_path: Path) -> None:
    renamed = tmp_path / "first.gguf"
    shutil.copy(split[0], renamed)
    with pytest.raises(UserError, match=r"first\.gguf: says that it is part 1 of 4; parts are named NAME-00001-of"):
        locate.resolve(str(renamed))
    shutil.copy(split[0], split[1])
    with pytest.raises(UserError, match=r"tiny-00002-of-00004\.gguf: says that it is part 1 of 4"):
        locate.resolve(str(split[0]))
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    rewrite(
        whole,
        swapped / "tiny.gguf",
        lambda tensors: [(t.name, t.data, t.tensor_type) for t in tensors[::-1]],
        split_max_tensors=6,
    )
    shutil.copy(swapped / split[3].name, split[3])
    shutil.copy(swapped / split[1].name, split[1])
    with pytest.raises(UserError, match="is there twice, in 4 parts"):
        locate.resolve(str(split[0]))


def test_a_cache_of_another_reading_is_not_used(split: list[Path], cache: Path) -> None:
    """Version 0.1.0 took the first part alone for the model, and named what it made after that part's hash."""
    from mixprec.core.artifacts import sha256_file

    old = cache / "models" / f"{split[0].stem}-{sha256_file(split[0])[:12]}"
    old.mkdir(parents=True)
    (old / "config.json").write_text("{}")
    assert locate.resolve(str(split[0])) != str(old)


def without(*names: str) -> Callable[[Tensors], Iterable[tuple[str, np.ndarray, Any]]]:
    return lambda tensors: [(t.name, t.data, t.tensor_type) for t in tensors if t.name not in names]


def added(name: str, *shape: int) -> Callable[[Tensors], Iterable[tuple[str, np.ndarray, Any]]]:
    made = (name, np.full(shape, 2, np.float32), gguf.GGMLQuantizationType.F32)
    return lambda tensors: [*((t.name, t.data, t.tensor_type) for t in tensors), made]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("blk.1.ffn_up.weight"), r"missing weights: 1, first model\.layers\.1\.mlp\.up_proj\.weight"),
        (without("token_embd.weight"), r"missing weights: 1, first model\.embed_tokens\.weight"),
        (added("blk.0.attn_q.bias", 64), r"tensors that llama does not read: 1, first blk\.0\.attn_q\.bias"),
        (added("blk.2.attn_norm.weight", 64), r"does not read: 1, first blk\.2\.attn_norm\.weight"),
        (added("rope_freqs.weight", 8), r"rope_freqs\.weight scales the rotary embedding.*give the original"),
    ],
)
def test_incomplete_files_and_tensors_that_nobody_reads(
    whole: Path, tmp_path: Path, cache: Path, change: Callable[[Tensors], Any], message: str
) -> None:
    file = rewrite(whole, tmp_path / "changed.gguf", change)
    with pytest.raises(UserError, match=rf"changed\.gguf: .*{message}"):
        Model(file).load()
    assert not list(cache.rglob("*.safetensors"))


def test_a_factor_alone_scales_the_rotary_embedding_as_linear(whole: Path, tmp_path: Path) -> None:
    file = rewrite(whole, tmp_path / "linear.gguf", more=lambda writer: writer.add_rope_scaling_factor(4.0))
    assert load_config(str(file)).rope_parameters | {"rope_theta": 1} == {
        "rope_type": "linear",
        "factor": 4.0,
        "rope_theta": 1,
    }


def test_a_scaled_rotary_embedding_that_is_not_read(whole: Path, tmp_path: Path) -> None:
    def more(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)

    file = rewrite(whole, tmp_path / "yarn.gguf", more=more)
    with pytest.raises(UserError, match="scale the rotary embedding as yarn by 4, its configuration as none"):
        Model(file).load()
    assert open_checkpoint(file).layouts  # its weights can be read all the same
