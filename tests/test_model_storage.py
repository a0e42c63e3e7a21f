"""Checkpoints: config + edits + safetensors, loaded strictly, are the model; nothing is ever unpickled."""

from __future__ import annotations

import errno
import json
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgecompress.errors import ModelError
from edgecompress.model import Model, load, save
from tests.library import assert_same, library_network, ours, says
from tests.models import VARIANT_NAMES, VARIANTS, example, tiny


def compressed(family: str = "hubert", **variant: Any) -> Model:
    """A model with an edit of every kind, and a layer of each sort of emptiness."""
    model = tiny(family, **variant)
    model.keep_heads(0, [])
    model.keep_units(0, [])
    model.keep_heads(1, [1, 3])
    model.keep_units(1, range(0, 90, 2))
    model.factor(1, "q_proj", 5)
    model.factor(1, "down", 7)
    model.keep_layers([0, 1])
    return model


@pytest.mark.parametrize(("family", "variant"), VARIANTS, ids=VARIANT_NAMES)
def test_a_checkpoint_rebuilds_bit_equal(family: str, variant: dict[str, Any], tmp_path: Path) -> None:
    model = compressed(family, **variant)
    if family == "whisper":
        model.keep_context(60)
    save(model, tmp_path)
    rebuilt = load(tmp_path)
    inputs = example(model, batch=2)
    assert_same(says(rebuilt, inputs), says(model, inputs), tolerance=0)
    assert rebuilt.edits == model.edits
    assert rebuilt.origin.source == model.origin.source
    assert rebuilt.folded_parameters == model.folded_parameters
    assert list(rebuilt.state_dict()) == list(model.state_dict())


def test_saving_what_was_rebuilt_gives_the_same_bytes(tmp_path: Path) -> None:
    for family in ("wavlm", "whisper"):
        head = "ForConditionalGeneration" if family == "whisper" else "ForCTC"
        save(compressed(family, head=head), tmp_path / family)
        save(load(tmp_path / family), tmp_path / "again")
        for file in (tmp_path / family).iterdir():
            assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file


def test_config_and_the_other_files_of_the_folder_come_out_as_they_went_in(tmp_path: Path) -> None:
    library_network("whisper", head="ForConditionalGeneration").save_pretrained(tmp_path / "source")
    given = {
        "preprocessor_config.json": '{"feature_size": 80, "feature_extractor_type": "WhisperFeatureExtractor"}',
        "tokenizer.json": '{"version": "1.0", "é": "ü"}',
        "generation_config.json": '{"no_timestamps_token_id": 4}',
    }
    for name, text in given.items():
        (tmp_path / "source" / name).write_text(text, encoding="utf-8")
    model = load(tmp_path / "source")
    model.keep_context(40)
    model.keep_layers([1])
    save(model, tmp_path / "out")
    for name in ("config.json", *given):
        before, after = ((tmp_path / folder / name).read_text(encoding="utf-8") for folder in ("source", "out"))
        assert json.loads(after) == json.loads(before), name
    assert load(tmp_path / "out").context_positions == 40


def test_a_tied_matrix_is_stored_once_and_still_tied_after_a_rebuild(tmp_path: Path) -> None:
    model = tiny("whisper", head="ForConditionalGeneration")
    save(model, tmp_path)
    assert "proj_out.weight" not in load_file(tmp_path / "model.safetensors")
    rebuilt = load(tmp_path)
    assert rebuilt.network.proj_out.weight is rebuilt.network.model.decoder.embed_tokens.weight  # type: ignore


def test_a_checkpoint_is_text_and_safetensors_only(tmp_path: Path) -> None:
    save(compressed(), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "edits.json", "model.safetensors"}
    for name in ("config.json", "edits.json"):
        json.loads((tmp_path / name).read_text(encoding="utf-8"))


def test_nothing_is_pickled_or_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("pickle was used")

    library_network("hubert").save_pretrained(tmp_path / "source")
    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, never)
    for name in ("load", "save"):
        monkeypatch.setattr(torch, name, never)
    model = load(tmp_path / "source")
    model.keep_heads(0, [1])
    save(model, tmp_path / "out")
    assert load(tmp_path / "out").layers[0].heads == (1,)


def test_a_model_that_is_a_library_folders_is_saved_with_the_same_numbers(tmp_path: Path) -> None:
    network = library_network("wavlm", stable=True)
    save(ours(network), tmp_path)
    inputs = example(tiny("wavlm"))
    assert_same(says(load(tmp_path), inputs), says(network, inputs))


# --- strictness ------------------------------------------------------------------------------------------------------
def refused(folder: Path, match: str | None = None) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        load(folder)
    assert caught.value.hint


def drop_one(state: dict[str, torch.Tensor]) -> None:
    state.pop("encoder.layers.1.attention.q_proj.first.weight")


def add_one(state: dict[str, torch.Tensor]) -> None:
    state["encoder.layers.1.attention.q_proj.third.weight"] = torch.zeros(3)


def reshape_one(state: dict[str, torch.Tensor]) -> None:
    state["encoder.layers.1.feed_forward.output_dense.first.weight"] = torch.zeros(7, 44)


def dense_again(state: dict[str, torch.Tensor]) -> None:
    state.pop("encoder.layers.1.attention.q_proj.first.weight")
    state.pop("encoder.layers.1.attention.q_proj.second.weight")
    state["encoder.layers.1.attention.q_proj.weight"] = torch.zeros(32, 64)


@pytest.mark.parametrize("change", [drop_one, add_one, reshape_one, dense_again])
def test_every_tensor_must_be_there_with_its_shape_and_no_other(
    change: Callable[[dict[str, torch.Tensor]], None], tmp_path: Path
) -> None:
    save(compressed(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    refused(tmp_path, "do not fit the edits")


def test_numbers_of_another_type_are_refused(tmp_path: Path) -> None:
    save(compressed(), tmp_path)
    half = {name: tensor.half() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(half, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"torch\.float16, wanted torch\.float32"):
        load(tmp_path)


def test_a_source_without_a_mask_vector_gives_the_same_checkpoint_twice(tmp_path: Path) -> None:
    library_network("hubert").save_pretrained(tmp_path / "source")
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    (tmp_path / "source" / "config.json").write_text(json.dumps({**config, "mask_time_prob": 0.05}))
    for name in ("first", "second"):
        save(load(tmp_path / "source"), tmp_path / name)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
    assert "masked_spec_embed" in load_file(tmp_path / "first" / "model.safetensors")


def test_a_truncated_or_missing_weight_file_is_refused(tmp_path: Path) -> None:
    save(compressed(), tmp_path)
    weights = tmp_path / "model.safetensors"
    for size in (weights.stat().st_size - 1, 5000, 4, 0):
        weights.write_bytes(weights.read_bytes()[:size])
        refused(tmp_path, "do not fit the edits")
    weights.unlink()
    refused(tmp_path, "has no model.safetensors")


NO_SUCH_LAYER = {"kind": "keep_heads", "layer": 9, "heads": []}
FOREIGN: dict[str, Callable[[dict[str, Any]], object]] = {
    "another version": lambda document: document.update(schema="edgecompress.edits/99"),
    "no schema": lambda document: document.pop("schema"),
    "no edits": lambda document: document.pop("edits"),
    "no source": lambda document: document.pop("source"),
    "an unknown edit": lambda document: document["edits"].append({"kind": "keep_dreams", "layer": 0}),
    "an unknown field": lambda document: document["edits"][0].update(why="because"),
    "edits as text": lambda document: document.update(edits="keep_heads"),
    "a layer that never was": lambda document: document["edits"].append(NO_SUCH_LAYER),
    "a head that never was": lambda document: document["edits"][2].update(heads=[1, 4]),
    "heads out of order": lambda document: document["edits"][2].update(heads=[3, 1]),
    "a unit that never was": lambda document: document["edits"][3].update(units=[1, 960]),
    "a rank of nothing": lambda document: document["edits"][4].update(rank=0),
    "no layer at all": lambda document: document["edits"][6].update(layers=[]),
    "a context": lambda document: document["edits"].append({"kind": "keep_context", "positions": 3}),
    "edits forgotten": lambda document: document["edits"].pop(),
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN.keys())
def test_edits_that_are_not_this_models_are_refused(change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    save(compressed(), tmp_path)
    document = json.loads((tmp_path / "edits.json").read_text(encoding="utf-8"))
    change(document)
    (tmp_path / "edits.json").write_text(json.dumps(document), encoding="utf-8")
    refused(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_an_edits_file_that_is_not_a_json_object_is_refused(text: str, tmp_path: Path) -> None:
    save(compressed(), tmp_path)
    (tmp_path / "edits.json").write_text(text)
    refused(tmp_path, "edits.json")


def test_the_edits_of_another_checkpoint_are_refused(tmp_path: Path) -> None:
    save(compressed("hubert"), tmp_path / "mine")
    other = tiny("hubert")
    other.keep_units(0, range(30))
    save(other, tmp_path / "other")
    (tmp_path / "mine" / "edits.json").write_bytes((tmp_path / "other" / "edits.json").read_bytes())
    refused(tmp_path / "mine", "do not fit the edits")


def test_what_the_system_says_of_a_write_is_not_hidden_behind_a_librarys_error(tmp_path: Path) -> None:
    small = tiny("hubert")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))  # no file may be larger: like a disk that fills
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save(small, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert str(caught.value.filename).endswith("model.safetensors")
