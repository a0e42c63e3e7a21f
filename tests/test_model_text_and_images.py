"""BERT and ViT: loaded from the library's folders, compressed, costed and rebuilt as the speech families are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from edgecompress import (
    Distill,
    DropLayers,
    Factorize,
    PruneFfn,
    PruneFrontEnd,
    PruneHeads,
    PruneWeights,
    cost,
)
from edgecompress.errors import ModelError, TechniqueError
from edgecompress.model import Model, load, save
from edgecompress.techniques import Context, compress
from edgecompress.techniques.targets import Target
from edgecompress.training.settings import Training
from tests.calling import Call
from tests.library import assert_differ, assert_same, library_network, ours, says
from tests.models import (
    HIDDEN,
    OTHER_FAMILIES,
    OTHER_NAMES,
    OTHER_VARIANTS,
    VIT_IS_THERE,
    clips_of,
    example,
    noise_clip,
    on_meta,
    tiny,
    tiny_config,
)

every_variant = pytest.mark.parametrize(("family", "variant"), OTHER_VARIANTS, ids=OTHER_NAMES)
every_family = pytest.mark.parametrize("family", OTHER_FAMILIES)
needs_vit = pytest.mark.skipif(not VIT_IS_THERE, reason="this transformers keeps ViT's parts elsewhere")
EXAMPLE_TOKENS = 17


def cut(model: Model) -> None:
    """An edit of every kind that these families can have."""
    model.keep_heads(0, [])
    model.keep_heads(1, [0, 3])
    model.keep_units(0, [])
    model.keep_units(1, range(10, 50))
    for matrix in ("q_proj", "k_proj", "v_proj", "out_proj", "up", "down"):
        model.factor(2, matrix, 5)  # type: ignore[arg-type]
    model.keep_layers([0, 2])


def torch_counts(model: Model, inputs: torch.Tensor) -> int:
    model.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model(inputs)
    return counter.get_total_flops() // 2


# --- folders ---------------------------------------------------------------------------------------------------------
@every_variant
def test_a_folder_of_the_librarys_is_loaded_and_says_the_same(
    family: str, variant: dict[str, Any], tmp_path: Path
) -> None:
    network = library_network(family, **variant)
    network.save_pretrained(tmp_path)
    model = load(tmp_path)
    inputs = example(model, batch=2)
    assert_same(says(model, inputs), says(network, inputs))
    assert set(model.state_dict()) == set(network.state_dict())


@every_variant
def test_a_checkpoint_is_rebuilt_bit_equal(family: str, variant: dict[str, Any], tmp_path: Path) -> None:
    model = tiny(family, **variant)
    cut(model)
    save(model, tmp_path)
    again = load(tmp_path)
    inputs = example(model, batch=2)
    assert_same(says(again, inputs), says(model, inputs), tolerance=0)
    assert again.edits == model.edits
    assert cost.measure(model).bytes == (tmp_path / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("name", "pooled"),
    [
        ("BertForMaskedLM", False),
        ("BertForPreTraining", True),
        pytest.param("ViTForMaskedImageModeling", False, marks=needs_vit),
    ],
)
def test_pretraining_heads_stay_behind_and_a_folder_without_a_pooler_has_none(
    name: str, pooled: bool, tmp_path: Path
) -> None:
    config = tiny_config("bert" if name.startswith("Bert") else "vit", encoder_stride=8)
    network = getattr(transformers, name)(config).eval()
    network.save_pretrained(tmp_path / "given")
    model = load(tmp_path / "given")
    assert model.architecture == model.anatomy.prefix + "Model"
    assert (model.network.pooler is not None) == pooled
    inputs = example(model)
    with torch.no_grad():
        assert torch.allclose(model.encode(inputs), network.base_model(inputs).last_hidden_state, atol=1e-5)
    save(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert_same(says(again, inputs), says(model, inputs), tolerance=0)
    assert ("pooler" in cost.measure(again).macs.parts) == pooled


@needs_vit
def test_a_vocabulary_and_an_image_processor_travel_with_the_model(tmp_path: Path) -> None:
    library_network("bert").save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "vocab.txt").write_text("[PAD]\nword\n")
    save(load(tmp_path / "bert"), tmp_path / "saved")
    assert (tmp_path / "saved" / "vocab.txt").read_text() == "[PAD]\nword\n"
    library_network("vit").save_pretrained(tmp_path / "vit")
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (tmp_path / "vit" / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert load(tmp_path / "vit").origin.preprocessor == settings


@pytest.mark.skipif(VIT_IS_THERE, reason="this transformers keeps ViT's parts where we look")
def test_a_transformers_that_keeps_parts_elsewhere_is_named() -> None:
    with pytest.raises(ModelError, match="keeps the parts of ViTModel elsewhere") as caught:
        tiny("vit")
    assert caught.value.hint == "install a newer transformers"


def test_a_decoder_is_refused() -> None:
    with pytest.raises(ModelError, match="as a decoder") as caught:
        tiny("bert", is_decoder=True)
    assert caught.value.hint


def test_a_folder_with_weights_of_more_layers_is_refused(tmp_path: Path) -> None:
    for family in OTHER_FAMILIES:
        library_network(family).save_pretrained(tmp_path / family)
        config = tmp_path / family / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 2}))
        with pytest.raises(ModelError, match="no place for 16 weights of encoder layers"):
            load(tmp_path / family)


# --- what goes in ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("family", "given", "said"),
    [
        ("bert", noise_clip(0.1), "bert takes tokens, not audio"),
        ("bert", np.zeros((2, 3), dtype=np.int64), r"bert takes tokens, not int64 of shape \(2, 3\)"),
        ("bert", np.array([3, 50]), "token numbers from 3 to 50, wanted 0 to 49"),
        ("bert", np.array([-1]), "token numbers from -1"),
        ("bert", np.zeros(41, dtype=np.int64), "41 tokens, wanted 1 to 40"),
        ("bert", np.zeros(0, dtype=np.int64), "0 tokens"),
        ("vit", noise_clip(0.1), "vit takes images, not audio"),
        ("vit", np.zeros((3, 32, 31), dtype=np.float32), r"not float32 of shape \(3, 32, 31\)"),
        ("vit", np.zeros((3, 32, 32), dtype=np.uint8), "not uint8"),
    ],
)
@needs_vit
def test_what_a_family_does_not_take_is_refused_in_one_line(family: str, given: np.ndarray, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        tiny(family).features(given)
    assert caught.value.hint


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("head", ["Model", "ForSequenceClassification", "ForTokenClassification"])
def test_a_text_says_in_company_what_it_says_alone(head: str, edited: bool) -> None:
    model = tiny("bert", head=head)
    if edited:
        cut(model)
    texts = clips_of(model)
    together = model.collate(texts)
    assert together.mask.sum(1).tolist() == [len(text) for text in texts]
    states = model.states(together)[-1]
    logits = model.logits(together) if head != "Model" else None
    for row, text in enumerate(texts):
        alone = model.collate([text])
        assert torch.allclose(states[row, : len(text)], model.states(alone)[-1][0], atol=1e-5)
        if logits is not None:
            wanted = model.logits(alone)[0]
            assert torch.allclose(logits[row, : len(text)] if wanted.dim() == 2 else logits[row], wanted, atol=1e-5)
    unmasked = model.base(together.values).last_hidden_state
    assert not torch.allclose(unmasked[0, : len(texts[0])], states[0, : len(texts[0])], atol=1e-2)


def test_a_mask_of_texts_means_what_the_librarys_means() -> None:
    network = library_network("bert")
    model = ours(network)
    inputs = example(model, batch=2)
    mask = (torch.arange(EXAMPLE_TOKENS) < torch.tensor([6, EXAMPLE_TOKENS])[:, None]).long()
    masked = says(model, inputs, attention_mask=mask)
    assert_same(masked, says(network, inputs, attention_mask=mask))
    assert_differ(masked, says(model, inputs))


@needs_vit
def test_images_are_batched_as_they_are() -> None:
    model = tiny("vit", head="ForImageClassification")
    images = clips_of(model)
    inputs = model.collate(images)
    assert (inputs.length, inputs.padded) == (17, False)
    alone = torch.cat([model(model.features(image)).logits for image in images])
    assert torch.allclose(model.logits(inputs), alone, atol=1e-5)


# --- what it costs ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("edited", [False, True])
@every_variant
def test_the_closed_form_is_what_torch_counts(family: str, variant: dict[str, Any], edited: bool) -> None:
    model = tiny(family, **variant)
    if edited:
        cut(model)
    assert sum(cost.macs(model, EXAMPLE_TOKENS).values()) == torch_counts(model, example(model, length=EXAMPLE_TOKENS))


@needs_vit
def test_base_models_have_their_published_numbers() -> None:
    bert, vit = on_meta(transformers.BertConfig()), on_meta(transformers.ViTConfig())
    assert (cost.parameters(bert).total, cost.parameters(vit).total) == (109_482_240, 86_389_248)
    assert sum(cost.macs(vit, 1).values()) == torch_counts(vit, torch.zeros(1, 3, 224, 224, device="meta"))
    assert cost.measure(vit).macs.total / 1e9 == pytest.approx(17.56, abs=0.005)
    tokens = torch.zeros(1, 512, dtype=torch.long, device="meta")
    assert cost.measure(bert, tokens=512).macs.total == torch_counts(bert, tokens)
    assert cost.measure(bert, tokens=512).macs.total / 1e9 == pytest.approx(48.32, abs=0.005)


@needs_vit
def test_a_cost_says_what_one_pass_takes() -> None:
    bert, vit, hubert = (cost.measure(tiny(family)) for family in ("bert", "vit", "hubert"))
    assert [(one.seconds, one.tokens, one.pixels) for one in (bert, vit, hubert)] == [
        (None, 40, None),
        (None, None, (32, 32)),
        (10.0, None, None),
    ]
    assert [one.macs.per_second is None for one in (bert, vit, hubert)] == [True, True, False]


@needs_vit
@pytest.mark.parametrize(
    ("family", "asked", "said"),
    [
        ("bert", {"seconds": 2.0}, "bert takes tokens: it has no length in seconds"),
        ("vit", {"seconds": 2.0}, "vit takes images: it has no length in seconds"),
        ("vit", {"tokens": 2}, "vit takes images: it has no length in tokens"),
        ("hubert", {"tokens": 2}, "hubert takes audio: it has no length in tokens"),
        ("bert", {"tokens": 41}, "41 tokens: bert takes 1 to 40"),
        ("bert", {"tokens": 0}, "0 tokens: bert takes 1 to 40"),
    ],
)
def test_a_length_of_another_kind_is_refused(family: str, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        cost.measure(tiny(family), **asked)


def test_a_protocol_of_audio_is_not_asked_of_text() -> None:
    with pytest.raises(ModelError, match="bert takes tokens, not audio"):
        cost.superb(tiny("bert"))


# --- techniques ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "technique",
    [
        PruneHeads(ratio=0.5, score="reconstruction"),
        PruneFfn(ratio=0.5, score="reconstruction", scope="global"),
        Factorize(energy=0.8, by="activations", matrices="all"),
        PruneWeights(ratio=0.5, score="activation"),
        DropLayers(by="similarity", count=1),
        DropLayers(by="effect", count=1),
        PruneFfn(target=Target(macs=0.9)),
        Distill(width=32, heads=2, layers=2, training=Training(steps=0)),
    ],
    ids=lambda technique: f"{technique.kind}-{getattr(technique, 'score', getattr(technique, 'by', ''))}",
)
@every_variant
def test_inputs_of_the_familys_own_kind_calibrate(
    family: str, variant: dict[str, Any], technique: Any, tmp_path: Path
) -> None:
    model = tiny(family, **variant)
    inputs = example(model)
    dense = says(model, inputs)
    compress(model, [technique], Context(clips=clips_of(model), seed=1))
    said = says(model, inputs)
    assert all(bool(value.isfinite().all()) for value in said.values())
    name = "logits" if "logits" in said else "last_hidden_state"
    assert said[name].shape != dense[name].shape or not torch.allclose(said[name], dense[name], atol=1e-3)
    save(model, tmp_path)
    assert_same(says(load(tmp_path), inputs), said, tolerance=0)


@every_family
def test_a_thinner_copy_of_full_width_is_the_model_itself(family: str) -> None:
    """Slices that keep everything must put every parameter in its place."""
    model = tiny(family)
    inputs = example(model)
    dense = says(model, inputs)
    compress(model, [Distill(width=HIDDEN, training=Training(steps=0))])
    assert_same(says(model, inputs), dense)


@every_family
def test_techniques_that_need_audio_say_so(family: str) -> None:
    audio = Context(clips=[noise_clip(0.5)])
    with pytest.raises(TechniqueError, match=f"{family} takes (tokens|images), not audio"):
        compress(tiny(family), [PruneHeads(ratio=0.5, score="activation")], audio)
    with pytest.raises(TechniqueError, match=f"trains on audio, and {family} takes (tokens|images)"):
        compress(tiny(family), [Distill(training=Training(steps=1))], audio)
    with pytest.raises(TechniqueError, match="no length in seconds"):
        compress(tiny(family), [PruneFfn(target=Target(macs=0.9, seconds=2))])
    with pytest.raises(TechniqueError, match="front"):
        compress(tiny(family), [PruneFrontEnd(ratio=0.5)])


# --- the command line ------------------------------------------------------------------------------------------------
def test_inspect_shows_them_in_their_own_units(call: Call, tmp_path: Path) -> None:
    for family in OTHER_FAMILIES:
        library_network(family).save_pretrained(tmp_path / family)
    text = call("inspect", tmp_path / "bert", "--tokens", "20").out
    assert "MACs for 20 tokens" in text
    assert "per second" not in text
    assert "position_conv" not in text
    if VIT_IS_THERE:
        assert "MACs for an image of 32 x 32 pixels" in call("inspect", tmp_path / "vit").out
    facts = json.loads(call("inspect", tmp_path / "bert", "--json").out)
    assert (facts["seconds"], facts["tokens"], facts["macs"]["per_second"]) == (None, 40, None)
