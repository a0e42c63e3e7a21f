"""The forms in which a model leaves torch: named tensors in, named tensors out, in eval mode, for every family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from edgecompress.errors import ModelError

if TYPE_CHECKING:
    from edgecompress.model.network import Model

Arrays = dict[str, np.ndarray]
# Samples: the least that make a frame, one short of two frames, ... ; and frames. What is traced with, and one, goes between.
SAMPLES = (400, 719, 5000, 16000, 37777)
FRAMES = (1, 2, 15, 49, 117)


@dataclass(frozen=True)
class Port:
    """An input or output: its name, numpy dtype, and shape with names for what may vary."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"

    def sized(self, **sizes: int) -> tuple[int, ...]:
        """The shape with numbers in the place of names."""
        return tuple(sizes[size] if isinstance(size, str) else size for size in self.shape)


@dataclass(frozen=True)
class Interface:
    """How a file is fed and what it answers, whoever made it.

    ``takes`` names it. ``unit`` is that of the first input's time axis and ``per_second`` how many of them a second
    of audio has, None where no audio goes in.
    """

    takes: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    unit: str
    per_second: float | None = None

    @property
    def input_name(self) -> str:
        """Name of the first input."""
        return self.inputs[0].name

    @property
    def time_axis(self) -> int:
        """Which axis of the first input is time."""
        return max(axis for axis, size in enumerate(self.inputs[0].shape) if isinstance(size, str))

    @property
    def free(self) -> dict[str, str]:
        """Names of the first input's dimensions that may vary, by what they are: ``batch`` and ``length``."""
        return {"batch": str(self.inputs[0].shape[0]), "length": str(self.inputs[0].shape[self.time_axis])}

    def refeed(self, feeds: Mapping[str, np.ndarray], values: np.ndarray) -> Arrays:
        """The same inputs with another first one, all of which is audio."""
        return {**feeds, self.input_name: values}

    def resized(self, feeds: Mapping[str, np.ndarray], length: int) -> Arrays:
        """The same inputs, the first one tiled or cut to a length."""
        values, axis = feeds[self.input_name], self.time_axis
        where = np.arange(length) % values.shape[axis]
        return self.refeed(feeds, np.ascontiguousarray(np.take(values, where, axis=axis)))


@dataclass(frozen=True)
class Form(Interface, ABC):
    """The interface of a file that is made of a model here, and all that making and judging it takes."""

    @abstractmethod
    def module(self, model: Model) -> nn.Module:
        """The module to trace, in eval mode: one tensor for each input, in order; answers one for each output.

        In eval mode itself: a wrapper left in train mode switches dropout on in the file.
        """

    @abstractmethod
    def example(self, model: Model, batch: int, length: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """Seeded noise, one tensor for each input, on the model's device."""

    @abstractmethod
    def trace_length(self, model: Model) -> int:
        """How long an input is good to trace with."""

    @abstractmethod
    def lengths(self, model: Model) -> list[int]:
        """At least six lengths to compare at, the least first: what is traced with is not among them."""

    @abstractmethod
    def answer(self, model: Model, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """What torch says, by the model itself and not by the module that is exported."""

    def feeds(self, model: Model, clip: np.ndarray) -> Arrays:
        """A clip of 16 kHz mono audio as the file takes it, batch 1.

        Raises:
            ModelError: the form takes no audio.
        """
        raise ModelError(f"{model.family} takes {self.unit}, not audio", hint="give inputs of its own kind")

    def noise(self, model: Model, batch: int, length: int, seed: int = 0) -> Arrays:
        """:meth:`example` as arrays by name, of the types that the file takes."""
        tensors = self.example(model, batch, length, seed)
        return {
            port.name: each.cpu().numpy().astype(port.dtype) for port, each in zip(self.inputs, tensors, strict=True)
        }

    def cut(self, outputs: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Of a file's outputs, what is answer and not padding, as :meth:`answer` gives it."""
        return {port.name: outputs[port.name] for port in self.outputs}


@dataclass(frozen=True)
class AudioForm(Form):
    """Audio in: 16 kHz samples (batch, samples), or what the encoder takes. One answer a clip or a frame.

    ``log_mel`` says that features are made inside, of samples. With ``padded`` a second input ``lengths`` (batch,) says
    how much of each row is audio, in units of the time axis, and a second output ``frames`` (batch,) how many frames
    of the answer are: a clip says in company, and padded, what it says alone.
    """

    log_mel: bool = False
    padded: bool = False

    def module(self, model: Model) -> nn.Module:
        """See :meth:`Form.module`."""
        if self.padded:
            from edgecompress.model.padded import PaddedForm

            return PaddedForm(model, self.takes).eval()
        if self.log_mel and model.family == "whisper":
            from edgecompress.model.whisper_log_mel import WhisperWaveformForm

            return WhisperWaveformForm(model).eval()
        return LogMelForm(model).eval() if self.log_mel else encoder_form(model)

    def example(self, model: Model, batch: int, length: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """See :meth:`Form.example`. Rows of a padded form are filled to different lengths, the first one whole."""
        generator = torch.Generator().manual_seed(seed)
        shape = [batch, *(length if isinstance(size, str) else size for size in self.inputs[0].shape[1:])]
        values = torch.randn(shape, generator=generator).to(model.device)
        if not self.padded:
            return (values,)
        least = self.lengths(model)[0]
        filled = torch.tensor([max(min(least, length), length - row * length // 3) for row in range(batch)])
        return values, filled.to(model.device)

    def trace_length(self, model: Model) -> int:
        """Half a second of samples, or a second of frames."""
        length = round((0.5 if self.unit == "samples" else 1.0) * float(self.per_second or 1))
        whole = model.context_positions
        return length if whole is None or self.unit == "samples" else min(length, 2 * whole)

    def lengths(self, model: Model) -> list[int]:
        """See :meth:`Form.lengths`: samples (400 make the first frame), or mel frames, up to Whisper's whole context."""
        whole = model.context_positions
        if whole is None:
            usual = SAMPLES if self.unit == "samples" else FRAMES
            return sorted({*usual, self.trace_length(model) + 1})
        if self.unit == "samples":
            whole *= 320
            return [*(length for length in SAMPLES if length < whole - 1), whole - 1, whole, whole + 700]  # cut off
        parts = (1, whole // 8, whole // 5, whole // 3, whole // 2, whole - 1, whole)
        return [2 * positions for positions in dict.fromkeys(max(1, each) for each in parts)]

    def feeds(self, model: Model, clip: np.ndarray) -> Arrays:
        """See :meth:`Form.feeds`: the encoder's input, or the samples where the file makes log-mel itself."""
        features = model.features(clip)
        values = np.array(clip, dtype=np.float32)[None] if self.log_mel else features.numpy()
        return self.refeed({}, values)

    def refeed(self, feeds: Mapping[str, np.ndarray], values: np.ndarray) -> Arrays:
        """See :meth:`Form.refeed`."""
        feeds = {**feeds, self.input_name: values}
        if self.padded:
            feeds[self.inputs[1].name] = np.full(values.shape[0], values.shape[self.time_axis], self.inputs[1].dtype)
        return dict(feeds)

    def answer(self, model: Model, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """See :meth:`Form.answer`. Rows of a padded form are answered one by one, each alone, and joined in time.

        Where the file makes log-mel frames of samples, here the host's library makes them. Whisper's refuses less than
        its whole context, so a copy whose context is trimmed to the input answers.
        """
        values = np.asarray(feeds[self.input_name])
        name = self.outputs[0].name
        if not self.padded:
            return {name: self._alone(model, values)}
        lengths = [int(length) for length in feeds[self.inputs[1].name]]
        rows = [self._alone(model, values[row : row + 1, :length]) for row, length in enumerate(lengths)]
        return {name: np.concatenate(rows, axis=rows[0].ndim - 2)}

    def _alone(self, model: Model, values: np.ndarray) -> np.ndarray:
        whole = model.context_positions
        if whole is not None and self.unit != "samples" and values.shape[-1] != 2 * whole:
            model = model.clone()
            model.keep_context(values.shape[-1] // 2)
        inputs = torch.from_numpy(values)
        if self.log_mel:
            inputs = torch.cat([model.features(row) for row in values])
        inputs = inputs.to(model.device)
        with torch.no_grad(), model.evaluating():
            logits = self.outputs[0].name == "logits"
            answer = model.network(inputs).logits if logits else model.encode(inputs)
        return np.asarray(answer.float().cpu().numpy())

    def cut(self, outputs: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray]) -> Arrays:
        """See :meth:`Form.cut`."""
        said = outputs[self.outputs[0].name]
        if self.padded and said.ndim == 3:
            frames = [int(count) for count in outputs[self.outputs[1].name]]
            said = np.concatenate([said[row : row + 1, :count] for row, count in enumerate(frames)], axis=1)
        return {self.outputs[0].name: said}


def form_of(model: Model, takes: str | None = None, padded: bool = False) -> Form:
    """The form that a family is exported in; MelHuBERT has two, of which samples in is the one an app wants.

    Raises:
        ModelError: the family has no such form.
    """
    offered = forms_of(model)
    for form in offered:
        if takes in (None, form.takes):
            return _with_lengths(model, form) if padded else form
    words = ", ".join(form.takes for form in offered)
    raise ModelError(f"{model.family} has no form that takes {takes!r}", hint=f"it can take: {words}")


def forms_of(model: Model) -> list[Form]:
    """All forms that a family can be exported in, the usual one first."""
    if model.anatomy.takes != "audio":
        from edgecompress.model.text_and_image_forms import text_or_image_form

        return [text_or_image_form(model)]
    config = model.network.config
    outputs = (_answer(model),)
    waveform = AudioForm("waveform", (Port("input_values", ("batch", "samples")),), outputs, "samples", 16000.0)
    kind = model.anatomy.front_end_kind
    if kind == "whisper":
        port = Port("input_features", ("batch", int(config.num_mel_bins), "frames"))
        features = AudioForm("features", (port,), outputs, "mel_frames", 100.0)
        return [features, replace(waveform, outputs=(_whole(model, outputs[0]),), log_mel=True), *_parts(model)]
    if kind == "log_mel":
        port = Port("input_features", ("batch", "frames", int(config.feature_dim)))
        features = AudioForm("features", (port,), outputs, "mel_frames", 1000.0 / config.frame_period_ms)
        return [replace(waveform, log_mel=True), features]
    return [waveform]


def form_by_inputs(model: Model, names: Sequence[str]) -> Form:
    """The form whose inputs have these names; the usual one where none has."""
    for form in forms_of(model):
        if form.input_name == names[0]:
            return form_of(model, form.takes, padded=len(names) > len(form.inputs))
    return form_of(model)


def can_be_padded(model: Model) -> bool:
    """Whether the family has a form with a lengths input: Whisper hears its padding, and text has a mask already."""
    return model.anatomy.takes == "audio" and model.family != "whisper"


def _with_lengths(model: Model, form: Form) -> Form:
    if model.anatomy.takes != "audio":
        raise ModelError(f"{model.family} takes {form.unit}: it has no lengths input", hint="leave the option out")
    if not isinstance(form, AudioForm) or model.family == "whisper":
        raise ModelError(
            f"{model.family} has no form with a lengths input",
            hint="Whisper hears the silence that it is padded with; leave the option out",
        )
    inputs, outputs = (
        (*form.inputs, Port("lengths", ("batch",), "int64")),
        (*form.outputs, Port("frames", ("batch",), "int64")),
    )
    return replace(form, inputs=inputs, outputs=outputs, padded=True)


def _answer(model: Model) -> Port:
    """The output: last hidden states, or a head's logits for every frame or once for a clip."""
    name = model.anatomy.output_name(model.architecture)
    time = "frames" if model.context_positions is None else "positions"
    config = model.network.config
    if name != "logits":
        adapted = getattr(model.base, "adapter", None) is not None
        return Port(name, ("batch", time, int(config.output_hidden_size if adapted else config.hidden_size)))
    head = getattr(model.network, "lm_head", None) or model.network.classifier
    width = int(head.out_features)
    return Port(name, ("batch", width) if hasattr(model.network, "projector") else ("batch", time, width))


def _whole(model: Model, port: Port) -> Port:
    """An output of Whisper where its whole context is made inside."""
    shape = tuple(int(model.context_positions or 0) if size == "positions" else size for size in port.shape)
    return replace(port, shape=shape)


def _parts(model: Model) -> list[Form]:
    """What a Whisper that writes text offers besides its encoder."""
    if not model.architecture.endswith("ForConditionalGeneration"):
        return []
    from edgecompress.model.whisper_forms import part_forms

    return part_forms(model)


class EncoderForm(nn.Module):
    """What :meth:`Model.features` gives -> logits or last hidden state, for every family but Whisper."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.output = model.anatomy.output_name(model.architecture)
        self.network = model.network if self.output == "logits" else model.base

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.network(inputs)[self.output]


class LogMelForm(nn.Module):
    """MelHuBERT from samples: (batch, samples) at 16 kHz in [-1, 1], the log-mel frames made on the way."""

    def __init__(self, model: Model) -> None:
        from edgecompress.model.log_mel import LogMel, settings_of

        super().__init__()
        self.log_mel = LogMel(settings_of(model)).to(model.device)
        self.encoder = EncoderForm(model)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.log_mel(samples))


class WhisperForm(nn.Module):
    """Whisper's encoder: (batch, mel bins, frames) -> (batch, frames / 2, width), or a classifier's logits.

    The library's own forward insists on the whole context; here shorter audio uses the first positions, so the same
    file serves 2 s commands at a fraction of the cost. At the whole context both say the same (parity checks it).
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.encoder = model.encoder_module
        self.network = model.network if model.anatomy.output_name(model.architecture) == "logits" else None
        self.weighted = bool(getattr(model.config, "use_weighted_layer_sum", False))

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        states = whisper_states(self.encoder, input_features)
        return states[-1] if self.network is None else classify(self.network, states, self.weighted)


def whisper_states(encoder: Any, input_features: torch.Tensor) -> list[torch.Tensor]:
    """All hidden states of Whisper's encoder, the last one after its norm, for (batch, mel bins, frames) of any length."""
    hidden = nn.functional.gelu(encoder.conv1(input_features))
    hidden = nn.functional.gelu(encoder.conv2(hidden)).permute(0, 2, 1)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    hidden = nn.functional.dropout(hidden, p=encoder.dropout, training=encoder.training)
    states = [hidden]
    for layer in encoder.layers:
        said = layer(hidden, None, layer_head_mask=None)  # transformers 4 asks for it, 5 and our attention pass it by
        hidden = said if isinstance(said, torch.Tensor) else said[0]  # transformers 4 gives a tuple
        states.append(hidden)
    states[-1] = encoder.layer_norm(hidden)
    return states


def classify(network: Any, states: list[torch.Tensor], weighted: bool) -> torch.Tensor:
    """A Whisper classifier's logits, (batch, labels), from all hidden states, summed by learned weights or the last."""
    hidden = states[-1]
    if weighted:
        weights = torch.softmax(network.layer_weights, dim=-1)
        hidden = (torch.stack(states, dim=1) * weights.view(-1, 1, 1)).sum(dim=1)
    logits: torch.Tensor = network.classifier(network.projector(hidden).mean(dim=1))
    return logits


def encoder_form(model: Model) -> nn.Module:
    """The module that takes what :meth:`Model.features` gives, in eval mode."""
    return (WhisperForm(model) if model.family == "whisper" else EncoderForm(model)).eval()


def export_input(model: Model, clip: np.ndarray, takes: str | None = None) -> torch.Tensor:
    """A clip as the exported file takes it, batch 1: the encoder's input, or the samples where it makes log-mel itself."""
    form = form_of(model, takes)
    return torch.from_numpy(form.feeds(model, clip)[form.input_name])
