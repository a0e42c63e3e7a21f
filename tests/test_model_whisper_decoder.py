"""Whisper in parts that an app can run: the encoder once, the decoder token by token, equal to the library's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgecompress import paths
from edgecompress.audio import read_clip
from edgecompress.errors import ModelError
from edgecompress.exporters import Order, Written, export
from edgecompress.exporters.onnx import OnnxExporter
from edgecompress.model import Model, load
from edgecompress.model.decoding import greedy_tokens, rules
from edgecompress.model.decoding import transcribe as in_torch
from edgecompress.model.forms import Form
from edgecompress.model.whisper_forms import StepForm, cache_form, fixed_step_form, part_forms, step_form
from edgecompress.transcript import Runner, read, transcribe
from tests.library import library_network, ours
from tests.models import example, noise_clip, tiny
from tests.runtimes_here import in_litert, in_onnxruntime, in_openvino

POSITIONS, CAPACITY = 60, 20
TOKENS = 12


def whisper(seed: int = 2, **settings: Any) -> Model:
    """A tiny Whisper that writes text, with a tiny generation_config."""
    more = {"decoder_layers": 2, "max_target_positions": CAPACITY, **settings}
    return ours(library_network("whisper", seed=seed, head="ForConditionalGeneration", **more))


def pruned(seed: int = 2) -> Model:
    """One that has lost some of everything."""
    model = whisper(seed)
    model.keep_heads(0, [1, 3])
    model.keep_heads(1, [])
    model.keep_units(2, range(0, 96, 3))
    model.keep_layers([0, 1])
    model.keep_context(POSITIONS)
    return model


EDITS: dict[str, Callable[[Model], None]] = {
    "untouched": lambda model: None,
    "heads": lambda model: model.keep_heads(0, [1, 3]),
    "no heads": lambda model: model.keep_heads(1, []),
    "units": lambda model: model.keep_units(1, [0, 5, 50]),
    "layers": lambda model: model.keep_layers([0, 2]),
    "channels": lambda model: model.keep_channels(0, range(0, 64, 2)),
    "context": lambda model: model.keep_context(40),
    "low rank": lambda model: model.factor(0, "up", 8),
}


def fed(form: Form, tensors: tuple[torch.Tensor, ...]) -> dict[str, np.ndarray]:
    return {port.name: tensor.numpy() for port, tensor in zip(form.inputs, tensors, strict=True)}


def assert_answers(run: Runner, form: Form, model: Model, tensors: tuple[torch.Tensor, ...]) -> None:
    """What runs says what the library says, in the ports' types and shapes."""
    feeds = fed(form, tensors)
    said, wanted = run(feeds), form.answer(model, feeds)
    for port in form.outputs:
        got = said[port.name]
        assert str(got.dtype) == port.dtype
        fixed = [(size, given) for size, given in zip(port.shape, got.shape, strict=True) if isinstance(size, int)]
        assert all(size == given for size, given in fixed), port
        np.testing.assert_allclose(got, wanted[port.name], atol=2e-5, rtol=1e-5, err_msg=port.name)


def of_module(form: Form, model: Model) -> Runner:
    module = form.module(model)

    def run(feeds: Any) -> dict[str, np.ndarray]:
        with torch.no_grad():
            said = module(*(torch.from_numpy(feeds[port.name]) for port in form.inputs))
        return {port.name: tensor.numpy() for port, tensor in zip(form.outputs, said, strict=True)}

    return run


def feeds_of_steps(form: StepForm, model: Model) -> list[tuple[torch.Tensor, ...]]:
    """Batches of 1 to 3, with nothing, something and all of the room remembered; one token and more."""
    shapes = ((1, 2, 0), (3, 1, 0), (2, 3, 9), (3, 1, CAPACITY - 1), (1, 5, CAPACITY - 5))
    return [form.example_after(model, *shape, seed=number) for number, shape in enumerate(shapes)]


@pytest.mark.parametrize("edit", EDITS)
def test_cross_keys_and_values_are_those_that_the_librarys_decoder_remembers(edit: str) -> None:
    model = whisper()
    EDITS[edit](model)
    for form in (cache_form(model), cache_form(model, log_mel=True)):
        length = 2 * int(model.context_positions or 0) if form.unit == "mel_frames" else 12000
        assert_answers(of_module(form, model), form, model, form.example(model, 2, length))


@pytest.mark.parametrize("layers", [1, 3])
def test_steps_answer_what_the_librarys_decoder_answers_with_the_same_cache(layers: int) -> None:
    model = whisper(decoder_layers=layers)
    form, fixed = step_form(model), fixed_step_form(model)
    for tensors in feeds_of_steps(form, model):
        assert_answers(of_module(form, model), form, model, tensors)
    for position in (0, 1, 9, CAPACITY - 1):
        assert_answers(of_module(fixed, model), fixed, model, fixed.example_at(model, 2, position, position))


def test_a_shorter_cache_than_the_decoder_has_positions_for_answers_the_same() -> None:
    model = whisper()
    form = fixed_step_form(model, capacity=10, positions=30)
    assert form.inputs[2].shape == (2, "batch", 4, 10, 16)
    assert form.inputs[4].shape == (2, "batch", 4, 30, 16)
    assert_answers(of_module(form, model), form, model, form.example_at(model, 1, 9))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("edit", EDITS)
def test_tokens_are_those_of_the_whole_model_in_torch(edit: str, seed: int) -> None:
    model = whisper(seed)
    EDITS[edit](model)
    heard = example(model, batch=3, seed=seed)
    wanted = greedy_tokens(model, model.encode(heard), TOKENS)
    encode = of_module(cache_form(model), model)
    feeds = {"input_features": heard.numpy()}
    grown = transcribe(encode, of_module(step_form(model), model), feeds, rules(model), max_new_tokens=TOKENS)
    step = of_module(fixed_step_form(model), model)
    fixed = transcribe(encode, step, feeds, rules(model), max_new_tokens=TOKENS, capacity=CAPACITY)
    assert grown == fixed == wanted
    assert max(map(len, wanted)) > 1


def test_a_transcript_ends_where_the_cache_is_full() -> None:
    model = whisper()
    feeds = {"input_features": example(model).numpy()}
    encode = of_module(cache_form(model), model)
    step = of_module(fixed_step_form(model, capacity=7), model)
    assert all(len(row) <= 5 for row in transcribe(encode, step, feeds, rules(model), capacity=7))


def test_a_model_that_writes_no_text_has_no_such_parts() -> None:
    for model in (tiny("whisper"), tiny("whisper", head="ForAudioClassification"), tiny("hubert")):
        for make in (part_forms, cache_form, step_form, fixed_step_form):
            with pytest.raises(ModelError, match="writes no text"):
                make(model)


# --- in the runtimes -------------------------------------------------------------------------------------------------
def speaks_the_same(encode: Runner, step: Runner, model: Model, capacity: int | None = None, rows: int = 2) -> None:
    """From samples to tokens, in files as in torch."""
    clips = np.stack([noise_clip(1.0, seed) for seed in range(rows)])
    wanted = greedy_tokens(model, model.encode(torch.cat([model.features(clip) for clip in clips])), TOKENS)
    feeds = {"input_values": clips}
    assert transcribe(encode, step, feeds, rules(model), max_new_tokens=TOKENS, capacity=capacity) == wanted
    assert max(map(len, wanted)) > 1


def test_onnx_runtime_says_the_same_with_any_batch_past_and_length(tmp_path: Path) -> None:
    model = pruned()
    runs = {}
    for form, length in ((cache_form(model, log_mel=True), 9000), (step_form(model), 3)):
        traced = form.module(model), form.example(model, 2, length)
        runs[form.takes] = in_onnxruntime(*traced, form.inputs, form.outputs, tmp_path)
    form = step_form(model)
    for tensors in feeds_of_steps(form, model):
        assert_answers(runs["step"], form, model, tensors)
    speaks_the_same(runs["waveform_cache"], runs["step"], model)


def test_openvino_says_the_same_with_any_batch_past_and_length() -> None:
    model = pruned()
    runs = {}
    for form, length in ((cache_form(model, log_mel=True), 9000), (step_form(model), 3)):
        traced = form.module(model), form.example(model, 2, length)
        runs[form.takes] = in_openvino(*traced, form.inputs, form.outputs)
    form = step_form(model)
    for tensors in feeds_of_steps(form, model):
        assert_answers(runs["step"], form, model, tensors)
    speaks_the_same(runs["waveform_cache"], runs["step"], model)


def test_one_tflite_file_has_the_encoder_and_the_step_and_says_the_same(tmp_path: Path) -> None:
    model = pruned()
    encode, step = cache_form(model, log_mel=True), fixed_step_form(model)
    parts = {
        "encode": (encode.module(model), encode.example(model, 1, 16000), encode.inputs, encode.outputs),
        "step": (step.module(model), step.example(model, 1), step.inputs, step.outputs),
    }
    runner = in_litert(parts, tmp_path / "whisper.tflite")
    for past in (0, 6, CAPACITY - 1):
        assert_answers(runner("step"), step, model, step.example_at(model, 1, past, past))
    speaks_the_same(runner("encode"), runner("step"), model, CAPACITY, rows=1)


# --- real weights ----------------------------------------------------------------------------------------------------
WEIGHTS = paths.expand("${EDGECOMPRESS_MODELS}") / "whisper-tiny.en"
ORDERS = paths.expand("${EDGECOMPRESS_SPEECH}") / "barista"


@pytest.mark.skipif(not (WEIGHTS.is_dir() and ORDERS.is_dir()), reason="no real weights, or no orders")
def test_a_real_order_is_written_down_as_torch_writes_it(tmp_path: Path) -> None:
    model = load(WEIGHTS)
    model.keep_context(600)
    clip = read_clip(min(ORDERS.glob("*.flac"))).samples
    runs, sizes = {}, {}
    for form, length in ((cache_form(model, log_mel=True), 16000), (step_form(model), 3)):
        traced = form.module(model), form.example(model, 2, length)
        runs[form.takes] = in_onnxruntime(*traced, form.inputs, form.outputs, tmp_path)
        sizes[form.takes] = (tmp_path / f"{type(traced[0]).__name__}.onnx").stat().st_size
    (tokens,) = transcribe(runs["waveform_cache"], runs["step"], {"input_values": clip[None]}, rules(model))
    heard = model.encode(model.features(clip))
    assert [tokens] == greedy_tokens(model, heard)
    text = read(model.origin.extra_files["tokenizer.json"], tokens)
    assert [text] == in_torch(model, heard)
    assert "coffee" in text
    parameters = sum(parameter.numel() for parameter in step_form(model).module(model).parameters())
    assert sizes["step"] < 4.2 * parameters  # the words are in it once, though they are looked up and multiplied with


def test_the_rules_of_a_transcript_are_what_the_folder_says() -> None:
    model = whisper()
    found = rules(model)
    assert (found.prompt, found.end, found.never, found.never_first) == ((3, 4), 2, (1,), (2, 5))
    assert found.positions == CAPACITY


def test_a_decoder_whose_folder_names_no_tokens_is_refused_before_it_is_converted(tmp_path: Path) -> None:
    class Untouched(OnnxExporter):
        def write(self, order: Order) -> Written:
            raise AssertionError("converted")

    model = tiny("whisper", head="ForConditionalGeneration")
    with pytest.raises(ModelError, match="which token asks for text without time stamps"):
        export(model, folder=tmp_path / "made", input="step", exporter=Untouched())
    assert not (tmp_path / "made").exists()
