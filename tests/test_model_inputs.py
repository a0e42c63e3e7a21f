"""A padded batch says of each clip what the clip says alone, whatever the family; and nothing is random but dropout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgecompress import cost
from edgecompress.errors import ModelError
from tests.models import FAMILIES, VARIANT_NAMES, VARIANTS, noise_clip, tiny

CLIPS = [noise_clip(1.3, 0), noise_clip(0.4, 1), noise_clip(0.97, 2)]


@pytest.mark.parametrize(("family", "variant"), VARIANTS, ids=VARIANT_NAMES)
def test_a_clip_says_in_a_padded_batch_what_it_says_alone(family, variant):
    model = tiny(family, **variant)
    inputs = model.collate(CLIPS)
    together = model.states(inputs)
    assert len(together) == len(model.layers) + 1
    for row, clip in enumerate(CLIPS):
        frames = int(inputs.frames[row])
        alone = model.states(model.collate([clip], positions=inputs.length))
        for number, (batch, single) in enumerate(zip(together, alone, strict=True)):
            said, wanted = batch[row, :frames], single[0, :frames]
            difference = float((said - wanted).abs().max() / wanted.abs().max())
            assert difference < 1e-5, f"state {number} of clip {row} is off by {difference:.1e}"


@pytest.mark.parametrize(("family", "variant"), VARIANTS, ids=VARIANT_NAMES)
def test_the_states_of_one_clip_are_the_library_s_hidden_states(family, variant):
    model = tiny(family, **variant)
    clip = noise_clip(1.0)
    ours = model.states(model.collate([clip], positions=model.context_positions))
    theirs = model.hidden_states(model.features(clip))
    assert len(ours) == len(theirs)
    for number in range(len(theirs)):
        torch.testing.assert_close(ours[number], theirs[number], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_and_mask_count_what_audio_fills(family):
    model = tiny(family)
    inputs = model.collate(CLIPS)
    assert inputs.samples.tolist() == [clip.size for clip in CLIPS]
    assert inputs.mask.sum(1).tolist() == inputs.frames.tolist()
    assert inputs.mask.shape == model.states(inputs)[0].shape[:2]
    if model.context_positions is None:
        assert inputs.frames.tolist() == [cost.frames_of(model, clip.size) for clip in CLIPS]
    else:
        assert inputs.frames.tolist() == [65, 20, 49]


@pytest.mark.parametrize("family", FAMILIES)
def test_in_train_mode_no_layer_and_no_frame_is_dropped_at_random(family):
    off = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "final_dropout": 0.0}
    random = {"mask_time_prob": 0.9, "mask_time_length": 2, "mask_feature_prob": 0.9, "mask_feature_length": 2}
    drop = {"encoder_layerdrop": 0.9} if family == "whisper" else {**off, "layerdrop": 0.9, "feat_proj_dropout": 0.0}
    model = tiny(family, **random, **drop, apply_spec_augment=True).train()
    inputs = model.collate(CLIPS)
    first, again = model.states(inputs), model.states(inputs)
    calm = model.eval().states(inputs)
    for one, two, three in zip(first, again, calm, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
        torch.testing.assert_close(one, three, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_frames_say_nothing_of_their_audio_and_gradients_flow(family):
    model = tiny(family).train()
    inputs = model.collate(CLIPS)
    model.eval()
    hide = torch.zeros_like(inputs.mask)
    hide[0, 5:9] = True
    open_states, hidden_states = model.states(inputs), model.states(inputs, hide)
    assert float((open_states[0][0, 5:9] - hidden_states[0][0, 5:9]).abs().max()) > 1e-3
    torch.testing.assert_close(open_states[0][1:], hidden_states[0][1:])
    model.zero_grad()
    hidden_states[-1][inputs.mask].square().sum().backward()
    assert float(model.layers[0].up.weight.grad.abs().max()) > 0


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "whisper"])
@pytest.mark.parametrize("head", ["ForCTC", "ForSequenceClassification"])
def test_logits_of_a_padded_batch_are_those_of_the_clips_alone(family, head):
    model = tiny(family, head=head)
    inputs = model.collate(CLIPS)
    together = model.logits(inputs)
    for row, clip in enumerate(CLIPS):
        alone = model.logits(model.collate([clip]))[0]
        said = together[row, : alone.shape[0]] if head == "ForCTC" else together[row]
        torch.testing.assert_close(said, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone, model(model.features(clip)).logits[0], rtol=1e-4, atol=1e-5)


def test_whisper_s_batches_are_as_long_as_the_longest_clip_needs_and_cut_from_the_whole_context():
    model = tiny("whisper", max_source_positions=200)
    clip = noise_clip(0.5)
    short = model.collate([clip])
    assert (short.length, short.values.shape[2]) == (50, 100)
    np.testing.assert_allclose(short.values[0], model.features(clip)[0, :, :100], atol=1e-6)
    assert model.collate([noise_clip(9.0)]).length == 200


def test_a_bare_encoder_has_no_logits():
    model = tiny("hubert")
    with pytest.raises(ModelError, match="no logits"):
        model.logits(model.collate(CLIPS))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_takes_edits_and_costs_what_the_model_would(family):
    model = tiny(family)
    skeleton = model.skeleton()
    assert skeleton.device.type == "meta"
    assert model.device.type == "cpu"
    for each in (model, skeleton):
        each.keep_heads(1, [0, 3])
        each.keep_units(0, range(10))
        each.factor(2, "up", 8)
        each.keep_layers([0, 1])
    assert cost.measure(skeleton).macs == cost.measure(model).macs
    assert cost.parameters(skeleton).total == cost.parameters(model).total


def test_a_model_becomes_another_and_keeps_where_it_came_from():
    model, other = tiny("hubert", seed=1), tiny("hubert", num_hidden_layers=2, seed=2)
    inputs, source = model.collate(CLIPS), model.origin.source
    wanted = other.states(inputs)[-1]
    model.become(other)
    torch.testing.assert_close(model.states(inputs)[-1], wanted)
    assert len(model.layers) == 2
    assert model.origin.config["num_hidden_layers"] == 2
    assert model.origin.source is source


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_says_the_same_while_it_trains_as_when_it_is_used(family: str) -> None:
    """The fused kernel of a training without dropout against the explicit steps, with clips that are padded."""
    settings = {"dropout": 0.0} if family == "whisper" else {"hidden_dropout": 0.0, "activation_dropout": 0.0}
    model = tiny(
        family, attention_dropout=0.0, **settings, **({} if family == "whisper" else {"feat_proj_dropout": 0.0})
    )
    inputs = model.collate([noise_clip(1.0), noise_clip(0.6, seed=1)])
    with torch.no_grad():
        used = model.eval().states(inputs)[-1]
        training = model.train().states(inputs)[-1]
    assert not torch.equal(used, torch.zeros_like(used))
    torch.testing.assert_close(training[inputs.mask], used[inputs.mask], rtol=1e-4, atol=1e-5)
