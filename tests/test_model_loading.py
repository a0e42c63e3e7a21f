"""Loading: every family, front end, encoder and head says what the library's own module says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import edgecompress
from edgecompress import cost
from edgecompress.errors import AudioError, ModelError
from edgecompress.model import load, save
from edgecompress.model.forms import form_of
from tests.library import assert_differ, assert_same, library_network, says
from tests.models import FAMILIES, VARIANT_NAMES, VARIANTS, example, filled_mask, noise_clip, tiny

every_variant = pytest.mark.parametrize(("family", "variant"), VARIANTS, ids=VARIANT_NAMES)
waveform_variant = pytest.mark.parametrize(
    ("family", "variant"), [each for each in VARIANTS if each[0] != "whisper"], ids=VARIANT_NAMES[:-3]
)


def saved(folder: Path, family: str, **variant: Any) -> Any:
    """A library network, saved by the library into ``folder``."""
    network = library_network(family, **variant)
    network.save_pretrained(folder)
    return network


@every_variant
def test_a_loaded_model_says_what_the_librarys_own_module_says(
    family: str, variant: dict[str, Any], tmp_path: Path
) -> None:
    network = saved(tmp_path, family, **variant)
    model = load(tmp_path)
    inputs = example(model, batch=2)
    assert_same(says(model, inputs), says(network, inputs))
    assert (model.family, model.architecture) == (family, type(network).__name__)


@waveform_variant
def test_a_mask_means_what_it_means_to_the_library(family: str, variant: dict[str, Any], tmp_path: Path) -> None:
    network = saved(tmp_path, family, **variant)
    model = load(tmp_path)
    inputs = example(model, batch=2, length=6000)
    mask = filled_mask(model, 6000, [6000, 3500])
    ours = says(model, inputs, attention_mask=mask)
    assert_same(ours, says(network, inputs, attention_mask=mask))
    assert_differ(ours, says(model, inputs))


@pytest.mark.parametrize("length", [400, 719, 720, 4321])
@pytest.mark.parametrize("family", FAMILIES[:4])
def test_any_length_from_400_samples_on_is_taken(family: str, length: int, tmp_path: Path) -> None:
    network = saved(tmp_path, family)
    model = load(tmp_path)
    inputs = example(model, length=length)
    assert_same(says(model, inputs), says(network, inputs))


@pytest.mark.parametrize("stable", [False, True])
def test_wavlm_says_the_same_beyond_its_nearest_buckets(stable: bool, tmp_path: Path) -> None:
    """Far frames share buckets on a logarithmic scale, and frames beyond the greatest distance share one."""
    network = saved(tmp_path, "wavlm", stable=stable, num_buckets=16, max_bucket_distance=12)
    model = load(tmp_path)
    inputs = example(model, length=16000)
    assert_same(says(model, inputs), says(network, inputs))


@pytest.mark.parametrize("family", FAMILIES[:4])
def test_weight_norm_is_folded_and_its_gains_are_still_counted(family: str, tmp_path: Path) -> None:
    network = saved(tmp_path, family)
    model = load(tmp_path)
    published = sum(parameter.numel() for parameter in network.parameters())
    assert model.folded_parameters == (0 if family == "data2vec-audio" else 16)  # one gain for each of 16 taps
    assert sum(parameter.numel() for parameter in model.parameters()) == published - model.folded_parameters
    assert cost.parameters(model).total == published
    assert not [name for name in model.state_dict() if "parametrizations" in name or name.endswith("weight_g")]


def test_all_other_weights_keep_the_names_that_the_library_gives_them(tmp_path: Path) -> None:
    for family in FAMILIES:
        network = saved(tmp_path / family, family)
        theirs = {name for name in network.state_dict() if "pos_conv_embed.conv.parametrizations" not in name}
        extra = set(load(tmp_path / family).state_dict()) - theirs
        assert extra <= {"encoder.pos_conv_embed.conv.weight"}
        assert theirs <= set(load(tmp_path / family).state_dict())


def test_a_loaded_model_still_behaves_as_its_torch_module(tmp_path: Path) -> None:
    saved(tmp_path, "hubert", head="ForCTC")
    model = load(tmp_path)
    assert isinstance(model, nn.Module)
    assert isinstance(model.lm_head, nn.Linear)
    assert model.config.hidden_size == 64
    assert not model.training
    model.load_state_dict({name: torch.zeros_like(value) for name, value in model.state_dict().items()})
    assert all(not parameter.any() for parameter in model.parameters())
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = model.nonsense


def test_a_model_can_be_trained_a_step(tmp_path: Path) -> None:
    saved(tmp_path, "wavlm", head="ForCTC")
    model = load(tmp_path)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.layers[1].matrix("q_proj").weight.detach().clone()  # type: ignore[union-attr]
    model(example(model), labels=torch.tensor([[3, 5]])).loss.backward()
    optimizer.step()
    assert not torch.equal(before, model.layers[1].matrix("q_proj").weight)  # type: ignore[arg-type]


def test_whisper_generates_what_the_library_generates(tmp_path: Path) -> None:
    network = saved(tmp_path, "whisper", head="ForConditionalGeneration")
    model = load(tmp_path)
    inputs = example(model, batch=2)
    wanted = network.generate(inputs, max_new_tokens=6)
    assert torch.equal(model.generate(inputs, max_new_tokens=6), wanted)
    model.keep_heads(0, [])
    model.keep_layers([0])
    assert model.generate(inputs, max_new_tokens=6).shape[0] == 2


def test_a_clone_shares_nothing(tmp_path: Path) -> None:
    saved(tmp_path, "wavlm")
    model = load(tmp_path)
    inputs = example(model)
    before = says(model, inputs)
    twin = model.clone()
    twin.keep_heads(0, [1])
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert model.edits == ()
    assert_same(says(model, inputs), before, tolerance=0)


def test_weights_in_several_files_are_taken(tmp_path: Path) -> None:
    network = library_network("hubert")
    network.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model = load(tmp_path)
    inputs = example(model)
    assert_same(says(model, inputs), says(network, inputs))
    assert model.origin.source_bytes == sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))


def test_half_precision_weights_become_single_precision(tmp_path: Path) -> None:
    network = library_network("whisper", head="ForConditionalGeneration").half()
    network.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    inputs = example(model)
    assert_same(says(model, inputs), says(network.float(), inputs))


def test_the_folder_is_the_source_with_a_hash_of_its_weights(tmp_path: Path) -> None:
    saved(tmp_path / "mine", "hubert")
    model = edgecompress.load(tmp_path / "mine")
    again = edgecompress.load(str(tmp_path / "mine"))
    assert model.origin.source == again.origin.source
    assert model.origin.source.name == "mine"
    assert not model.origin.source.random_weights
    assert len(model.origin.source.sha256) == 64


def test_a_pretraining_head_is_left_off(tmp_path: Path) -> None:
    saved(tmp_path, "wav2vec2")
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "architectures": ["Wav2Vec2ForPreTraining"]}))
    assert load(tmp_path).architecture == "Wav2Vec2Model"


@every_variant
def test_the_form_that_leaves_torch_says_what_the_library_says(
    family: str, variant: dict[str, Any], tmp_path: Path
) -> None:
    network = saved(tmp_path, family, **variant)
    model = load(tmp_path)
    inputs = example(model, batch=2)
    theirs = says(network, inputs)
    task_head = variant.get("head", "Model") not in ("Model", "ForConditionalGeneration", "ForPreTraining")
    name = "logits" if task_head else "last_hidden_state"
    wanted = theirs[name] if family != "whisper" or name == "logits" else theirs["encoder_last_hidden_state"]
    form = form_of(model, None if model.anatomy.front_end_kind == "convolutions" else "features").module(model)
    assert_same({"output": form(inputs)}, {"output": wanted})
    assert not form.training


@pytest.mark.parametrize("head", ["Model", "ForConditionalGeneration"])
def test_whispers_form_takes_shorter_audio_as_a_shorter_context_does(head: str, tmp_path: Path) -> None:
    saved(tmp_path, "whisper", head=head)
    model = load(tmp_path)
    inputs = example(model, length=90)
    said = form_of(model).module(model)(inputs)
    model.keep_context(45)
    assert_same({"output": said}, {"output": model.encode(inputs)})


@pytest.mark.parametrize("family", FAMILIES)
def test_clips_become_inputs_in_their_order(family: str, tmp_path: Path) -> None:
    saved(tmp_path, family)
    model = load(tmp_path)
    clips = [noise_clip(seconds, seed) for seed, seconds in enumerate((0.5, 0.3, 0.9))]
    batches = list(model.batches(clips, size=2))
    assert [len(batch) for batch in batches] == ([2, 1] if family == "whisper" else [1, 1, 1])
    assert torch.equal(torch.cat(batches)[2:] if family == "whisper" else batches[2], model.features(clips[2]))
    frames = model.encode(batches[-1]).shape[1]
    assert frames == (model.context_positions or (clips[2].size - 400) // 320 + 1)


def test_a_clip_too_short_for_one_frame_is_refused() -> None:
    model = tiny("hubert")
    with pytest.raises(AudioError, match="too short"):
        model.features(noise_clip(399 / 16000))
    assert model.encode(model.features(noise_clip(400 / 16000))).shape == (1, 1, 64)


# --- what cannot be loaded -------------------------------------------------------------------------------------------
def refused(folder: Path | str, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        load(folder)
    assert caught.value.hint


def test_no_such_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "no such model folder")
    refused("./nothing/here", "no such model folder")


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "has no config.json")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is not a family"),
        ({"model_type": None}, "is not a family"),
        ({"architectures": ["HubertForFlying"]}, "'HubertForFlying' is not supported"),
        ({"architectures": ["BertModel"]}, "'BertModel' is not supported"),
    ],
)
def test_another_architecture_is_refused(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    saved(tmp_path, "hubert")
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, **change}))
    refused(tmp_path, match)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\xff"])
def test_a_config_that_is_not_a_json_object_is_refused(text: str, tmp_path: Path) -> None:
    saved(tmp_path, "hubert")
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    refused(tmp_path, "config.json is not")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "hubert")
    weights = tmp_path / "model.safetensors"
    for size in (weights.stat().st_size // 2, 100, 4, 0):
        weights.write_bytes(weights.read_bytes()[:size])
        refused(tmp_path, "the weights do not load")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, "hubert")
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 4}))
    refused(tmp_path, "weights are missing")
    (tmp_path / "config.json").write_text(json.dumps({**settings, "intermediate_size": 128}))
    refused(tmp_path, "have another shape|do not load")


def test_a_folder_that_has_only_a_pickle_is_refused_and_the_pickle_is_not_opened(tmp_path: Path) -> None:
    saved(tmp_path, "hubert")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + bytes(tmp_path / "ran") + b"'\ntR.")
    refused(tmp_path, "only as a pickle")
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "hubert")
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, "has no model.safetensors")


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    library_network("hubert").save_pretrained(tmp_path, max_shard_size="100KB")
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    refused(tmp_path, "safetensors is missing")


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden_size": "big"},
        {"conv_dim": [8]},
        {"hidden_act": "gulu"},
        {"architectures": [None]},
        {"num_attention_heads": 3},
    ],
)
def test_a_config_that_cannot_be_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    library_network("hubert").save_pretrained(tmp_path / "folder")
    save(load(tmp_path / "folder"), tmp_path / "checkpoint")
    for folder in (tmp_path / "folder", tmp_path / "checkpoint"):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **wrong}))
        with pytest.raises(ModelError) as caught:
            load(folder)
        assert caught.value.hint


def test_weights_of_more_layers_than_the_config_has_are_refused(tmp_path: Path) -> None:
    library_network("hubert").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(ModelError, match=r"no place for .* weights of encoder layers"):
        load(tmp_path)


def test_a_feature_extractor_inside_a_processor_config_is_found(tmp_path: Path) -> None:
    library_network("hubert").save_pretrained(tmp_path)
    nested = {
        "feature_extractor": {"do_normalize": False, "sampling_rate": 16000},
        "processor_class": "Wav2Vec2Processor",
    }
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    clip = noise_clip(0.2, 1)
    model = load(tmp_path)
    assert torch.equal(model.features(clip)[0], torch.from_numpy(clip))
    save(model, tmp_path / "again")
    assert torch.equal(load(tmp_path / "again").features(clip)[0], torch.from_numpy(clip))
