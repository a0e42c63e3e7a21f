"""Costs are exact: published numbers, what a head and a unit weigh, and torch's own counter after every edit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from edgecompress import cost
from edgecompress.errors import ModelError
from edgecompress.model import Model, load, save
from tests.models import VARIANT_NAMES, VARIANTS, example, on_meta, tiny, tiny_config

PRUNED = ("hubert", "wav2vec2", "wavlm", "data2vec-audio", "whisper")


def empty_heads(model: Model) -> None:
    model.keep_heads(0, [])
    model.keep_heads(1, [1, 3])


def empty_units(model: Model) -> None:
    model.keep_units(0, [])
    model.keep_units(2, range(10, 40))


def factor_everything(model: Model) -> None:
    for matrix in ("q_proj", "k_proj", "v_proj", "out_proj", "up", "down"):
        model.factor(1, matrix, 7)
    model.keep_heads(1, [0, 2])
    model.keep_units(1, range(50))


def drop_layers(model: Model) -> None:
    model.keep_layers([1, 2])


EDITS = (empty_heads, empty_units, factor_everything, drop_layers)


def torch_counts(model: Model, inputs: torch.Tensor) -> int:
    """MACs by torch's counter; Whisper's decoder and MelHuBERT's map to clusters stay out."""
    encoder_only = (
        model.family in ("whisper", "melhubert") and model.anatomy.output_name(model.architecture) != "logits"
    )
    model.requires_grad_(False)  # the counter would hang hooks on weights that want gradients
    with FlopCounterMode(display=False) as counter:
        model.encode(inputs) if encoder_only else model(inputs)
    return counter.get_total_flops() // 2


def same_as_torch(model: Model, length: int = 9000) -> None:
    inputs = example(model, length=None if model.family == "whisper" else length)
    assert sum(cost.macs(model, length).values()) == torch_counts(model, inputs)


@pytest.mark.parametrize(("family", "variant"), VARIANTS, ids=VARIANT_NAMES)
def test_the_closed_form_is_what_torch_counts(family: str, variant: dict[str, object]) -> None:
    same_as_torch(tiny(family, **variant))  # type: ignore[arg-type]


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("family", PRUNED)
def test_the_closed_form_is_what_torch_counts_after_an_edit(family: str, edit: Callable[[Model], None]) -> None:
    model = tiny(family)
    before = sum(cost.macs(model, 9000).values())
    edit(model)
    same_as_torch(model)
    assert sum(cost.macs(model, 9000).values()) < before


@pytest.mark.parametrize("samples", [400, 719, 720, 16000, 23457])
def test_every_length_is_counted_to_the_last_frame(samples: int) -> None:
    same_as_torch(tiny("wavlm"), samples)


def test_adapters_of_wav2vec2_are_counted_too() -> None:
    same_as_torch(tiny("wav2vec2", head="ForCTC", add_adapter=True, num_adapter_layers=2, output_hidden_size=48))
    same_as_torch(tiny("wav2vec2", head="ForCTC", stable=True, adapter_attn_dim=8))


def test_a_trimmed_context_makes_whisper_cheaper() -> None:
    model = tiny("whisper")
    dense = cost.measure(model, seconds=0.5)
    model.keep_context(40)
    same_as_torch(model)
    trimmed = cost.measure(model)
    assert (dense.seconds, trimmed.seconds) == (2.0, 0.8)
    assert trimmed.macs.total < 0.4 * dense.macs.total


@pytest.fixture(scope="module")
def hubert_base() -> Model:
    return on_meta(transformers.HubertConfig())


def test_hubert_base_has_its_published_numbers(hubert_base: Model) -> None:
    assert cost.parameters(hubert_base).total == 94_371_712
    giga = [sum(cost.macs(hubert_base, 16000 * seconds).values()) / 1e9 for seconds in (1, 5, 10, 20)]
    assert giga == pytest.approx([6.911, 35.84, 74.07, 157.44], abs=0.005)
    measured = cost.measure(hubert_base)
    assert measured.seconds == 10
    assert measured.macs.per_second == pytest.approx(7.407e9, rel=1e-3)
    parts = {part: round(count / 1e9, 2) for part, count in measured.macs.parts.items()}
    assert parts == {
        "front_end": 24.54,
        "projection": 0.2,
        "position_conv": 2.36,
        "attention_projections": 14.13,
        "attention_scores": 4.59,
        "ffn": 28.25,
    }


def test_wavlm_and_data2vec_base_have_their_published_parameters() -> None:
    assert cost.parameters(on_meta(transformers.WavLMConfig())).total == 94_381_936
    assert cost.parameters(on_meta(transformers.Data2VecAudioConfig())).total == 93_164_288


def test_the_superb_protocol_gives_the_published_sum(hubert_base: Model) -> None:
    lengths = cost.superb_lengths()
    assert len(lengths) == 32
    assert sum(lengths) / 16000 == pytest.approx(224.86, abs=0.01)
    plain = sum(sum(cost.macs(hubert_base, samples).values()) for samples in lengths)
    assert plain / 1e9 == pytest.approx(1665.5, abs=0.1)
    assert round(cost.superb(hubert_base) / 1e9) == 1668


def test_a_head_a_unit_and_a_layer_weigh_what_they_should() -> None:
    model = on_meta(transformers.HubertConfig())

    def lost_by(edit: Callable[[], None]) -> int:
        before = cost.parameters(model).total
        edit()
        return before - cost.parameters(model).total

    assert lost_by(lambda: model.keep_layers(range(11))) == 7_087_872
    assert lost_by(lambda: model.keep_heads(3, range(9))) == 3 * 196_800
    assert lost_by(lambda: model.keep_units(3, range(3070))) == 2 * 1_537


@pytest.mark.parametrize("family", PRUNED)
def test_bytes_are_those_of_the_file_that_save_writes(family: str, tmp_path: Path) -> None:
    model = tiny(family, head="ForConditionalGeneration" if family == "whisper" else "ForCTC")
    model.keep_heads(0, [])
    model.factor(2, "up", 5)
    save(model, tmp_path)
    assert cost.measure(model).bytes == (tmp_path / "model.safetensors").stat().st_size


def test_a_half_precision_source_and_its_first_edit_are_counted_alike(tmp_path: Path) -> None:
    """Else the first edit of a half-precision folder would seem to double the model."""
    transformers.HubertModel(tiny_config("hubert")).half().save_pretrained(tmp_path)
    model = load(tmp_path)
    before = cost.measure(model).bytes
    model.keep_units(0, range(90))
    assert model.origin.source_bytes < cost.measure(model).bytes < before


def test_an_exported_whisper_has_no_decoder_in_it() -> None:
    model = tiny("whisper", head="ForConditionalGeneration")
    exported = cost.of_export(model, model.max_seconds or 0, 1000)
    encoder = sum(parameter.numel() for parameter in model.encoder_module.parameters())
    assert (exported.parameters.total, exported.bytes) == (encoder, 1000)
    assert cost.measure(model).parameters.total > encoder


def test_zeros_count_as_stored_but_not_as_nonzero() -> None:
    model = tiny("hubert")
    before = cost.measure(model)
    with torch.no_grad():
        model.layers[0].up.weight[:10] = 0  # type: ignore[union-attr]
    after = cost.measure(model)
    assert before.parameters.nonzero - after.parameters.nonzero == 640
    assert (after.parameters.total, after.bytes) == (before.parameters.total, before.bytes)


def test_whisper_exports_its_encoder_only_and_counts_it_so() -> None:
    model = tiny("whisper", head="ForConditionalGeneration")
    assert cost.exported_parameters(model).total == sum(p.numel() for p in model.encoder_module.parameters())
    assert cost.parameters(model).total == sum(p.numel() for p in model.network.parameters())


def test_audio_too_short_for_one_frame_is_refused() -> None:
    with pytest.raises(ModelError, match="399 samples are too few"):
        cost.macs(tiny("hubert"), 399)
