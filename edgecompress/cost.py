"""What a model costs before anyone measured it: parameters, bytes, and multiply-accumulates (MACs) by part.

MACs are a closed form over the modules as they are now (sliced, factored, emptied), not a traced run: they cost
nothing to ask for, work on torch's meta device, and are exact for any length. Counted are convolutions, linear maps
and the two matrix products of attention; not counted are norms, activations, softmax, biases and element-wise sums.
Tracing tools disagree here: torch's own counter misses the fused attention kernel on a CPU (69.48 instead of
74.07 GMAC for HuBERT base at 10 s).

Whisper is counted for its whole context, whatever the audio: its encoder always sees that much. Only the encoder is
counted (and the head of a classifier): how often a decoder runs depends on what was said. BERT is counted for a number
of tokens, ViT for one image of the size that it takes.
"""

from __future__ import annotations

import csv
import json
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from edgecompress.errors import ModelError
from edgecompress.model.features import USUAL_TOKENS, image_shape
from edgecompress.records import Cost, FileCost, Macs, Parameters

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.layer import Layer

SAMPLE_RATE = 16000
DEFAULT_SECONDS = 10.0
PARTS = ("front_end", "projection", "position_conv", "attention_projections", "attention_scores", "ffn")
HEAD_MODULES = ("lm_head", "projector", "classifier")
DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}


# --- the whole answer ------------------------------------------------------------------------------------------------
def measure(model: Model, seconds: float | None = None, tokens: int | None = None) -> Cost:
    """Parameters, bytes as ``save`` writes them, and MACs for ``seconds`` of audio (default 10), batch 1.

    Whisper's ``seconds`` are those of its context, whatever is asked for. A family of text is counted for so many
    ``tokens`` (default 128, or the most it takes), one of images for one image.

    Raises:
        ModelError: audio too short for the front end to make one frame (400 samples), or not what the family takes.
    """
    length = length_of(model, model.max_seconds or seconds, tokens)
    parts = macs(model, length)
    taken = (model.max_seconds or seconds or DEFAULT_SECONDS) if model.anatomy.takes == "audio" else None
    return Cost(
        parameters=parameters(model),
        bytes=safetensors_bytes(model.network),
        macs=_macs(parts, taken),
        seconds=taken,
        tokens=length if model.anatomy.takes == "tokens" else None,
        pixels=image_shape(model)[1:] if model.anatomy.takes == "images" else None,
    )


def length_of(model: Model, seconds: float | None = None, tokens: int | None = None) -> int:
    """How long a pass is, as :func:`macs` counts it: samples for ``seconds`` of audio, tokens, or 1 for an image.

    Raises:
        ModelError: the family has no such length, or none so great.
    """
    takes = model.anatomy.takes
    if (seconds is not None and takes != "audio") or (tokens is not None and takes != "tokens"):
        raise ModelError(
            f"{model.family} takes {takes}: it has no length in {'seconds' if tokens is None else 'tokens'}",
            hint={"audio": "give seconds", "tokens": "give tokens", "images": "give none"}[takes],
        )
    if takes == "audio":
        return round((seconds or model.max_seconds or DEFAULT_SECONDS) * SAMPLE_RATE)
    if takes == "images":
        return 1
    most = int(model.network.config.max_position_embeddings)
    return min(USUAL_TOKENS, most) if tokens is None else tokens


def _macs(parts: dict[str, int], seconds: float | None) -> Macs:
    total = sum(parts.values())
    return Macs(total=total, per_second=None if seconds is None else total / seconds, parts=parts)


def of_export(model: Model, seconds: float | None, file_bytes: int, takes: str | None = None) -> FileCost:
    """What an exported file costs: only the parameters that are in it, and MACs for the audio it will be timed with.

    ``takes`` is the form it was exported in; log-mel frames made inside are a part of their own. ``seconds`` is None
    where no audio goes in: a step of Whisper's decoder is counted for one token.
    """
    from edgecompress.model.forms import form_of

    whole = measure(model, seconds)
    form, parts, held = form_of(model, takes), dict(whole.macs.parts), exported_parameters(model)
    if _idle_pooler(model) is not None:
        del parts["pooler"]
    if hasattr(form, "macs"):
        parts, held = form.macs(model, parts), _count(form.module(model), model.folded_parameters)
    if getattr(form, "log_mel", False) and seconds is not None:
        parts = {"log_mel": _log_mel(model, round(seconds * SAMPLE_RATE)), **parts}
    counted = _macs(parts, None if seconds is None else whole.seconds)
    return FileCost(
        parameters=held,
        bytes=file_bytes,
        macs=counted,
        seconds=whole.seconds,
        tokens=whole.tokens,
        pixels=whole.pixels,
    )


def _log_mel(model: Model, samples: int) -> int:
    """MACs of the frames that are made inside."""
    if model.family == "whisper":
        from edgecompress.model.whisper_log_mel import log_mel_of

        return log_mel_of(model).macs()
    from edgecompress.model.log_mel import LogMel, settings_of

    return LogMel(settings_of(model)).macs(samples)


# --- parameters and bytes --------------------------------------------------------------------------------------------
def parameters(model: Model) -> Parameters:
    """All parameters, a tied one once, and those that are not zero.

    The gains of a weight norm, folded into the weights when the model was loaded, are counted as published totals
    count them (128 for HuBERT base). Whisper's decoder is counted where the model has one.
    """
    return _count(model.network, model.folded_parameters)


def exported_parameters(model: Model) -> Parameters:
    """Parameters of what an exporter writes: a Whisper's decoder and a MelHuBERT's map to clusters stay behind."""
    if model.family == "whisper" and not _has_head(model):
        return _count(model.encoder_module, model.folded_parameters)
    if model.anatomy.pretraining_head and not _has_head(model):
        return _count(model.base, model.folded_parameters)
    if _idle_pooler(model) is not None:
        kept = [part for name, part in model.base.named_parameters() if not name.startswith("pooler.")]
        return _counted(kept, model.folded_parameters)
    return parameters(model)


def _idle_pooler(model: Model) -> nn.Module | None:
    """The pooler of a bare BERT or ViT: an exported file answers with hidden states, and leaves it behind."""
    return None if _has_head(model) else getattr(model.base, "pooler", None)


def _count(module: nn.Module, folded: int) -> Parameters:
    return _counted(list(module.parameters()), folded)


def _counted(tensors: list[nn.Parameter], folded: int) -> Parameters:
    total = sum(tensor.numel() for tensor in tensors)
    zeros = sum(tensor.numel() - _nonzero(tensor) for tensor in tensors if not tensor.is_meta)
    return Parameters(total=total + folded, nonzero=total + folded - zeros)


def _nonzero(tensor: torch.Tensor) -> int:
    """numpy counts float32 in memory four times as fast as torch does: .08 s for HuBERT base."""
    if tensor.device.type == "cpu" and tensor.dtype == torch.float32:
        return int(np.count_nonzero(tensor.detach().numpy()))
    return int(torch.count_nonzero(tensor))


def safetensors_bytes(network: nn.Module) -> int:
    """Size of the safetensors file of a module's state, to the byte, without writing it.

    The format: 8 bytes of header length, a JSON header padded to 8 bytes, the tensors (wide types first, then by
    name). Two names of one tensor are stored once.
    """
    seen: set[int] = set()
    state: dict[str, torch.Tensor] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in sorted(state.items(), key=lambda item: (-item[1].element_size(), item[0])):
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-text // 8) * 8 + end


# --- multiply-accumulates --------------------------------------------------------------------------------------------
def macs(model: Model, length: int, *, sparse: bool = False) -> dict[str, int]:
    """MACs of one pass, batch 1, by part: ``PARTS``, and ``head`` and ``pooler`` where there is one.

    ``length`` counts samples of 16 kHz audio, or tokens; an image has one size, whatever it is. A ViT's front end is its
    map of patches. WavLM's gate on its position bias counts among the attention projections. MelHuBERT's log-mel frames are made on the
    host and not counted, nor is its map to clusters, which only pretraining asks. ``sparse`` leaves out the zeros among
    the weights of linear maps, as published MACs of weight pruning do: no kernel that we know is faster for them.

    Raises:
        ModelError: too few samples to make one frame, or more tokens than the model has positions.
    """
    front_end, frames = _front_end(model, length)
    parts = dict.fromkeys(PARTS, 0)
    parts["front_end"] = front_end
    if model.anatomy.projection is not None:
        parts["projection"] = frames * _linear(model.base.get_submodule(model.anatomy.projection), sparse)
    if model.anatomy.position_conv is not None:
        for conv in _convolutions(model.base.get_submodule(model.anatomy.position_conv)):
            parts["position_conv"] += _convolution(conv, frames)[0]  # what an even kernel adds is cut off after each
    for layer in model.layers:
        parts["attention_projections"] += frames * _projections(layer, sparse)
        parts["attention_scores"] += 2 * frames**2 * _inner_width(layer)
        parts["ffn"] += frames * _ffn(layer, sparse)
    more = {"head": _head(model, frames, sparse)}
    if getattr(model.base, "pooler", None) is not None:
        more["pooler"] = _linear(model.base.pooler, sparse)
    return {**parts, **{name: count for name, count in more.items() if count}}


def frames_of(model: Model, samples: int) -> int:
    """How many frames the encoder makes of ``samples``; Whisper's context whatever they are."""
    return _front_end(model, samples)[1]


def _front_end(model: Model, samples: int) -> tuple[int, int]:
    if model.anatomy.takes == "tokens":
        most = int(model.network.config.max_position_embeddings)
        if not 1 <= samples <= most:
            raise ModelError(f"{samples} tokens: {model.family} takes 1 to {most}", hint="ask for fewer")
        return 0, samples
    if model.anatomy.takes == "images":
        patches = int(model.base.embeddings.patch_embeddings.num_patches)
        return patches * model.base.embeddings.patch_embeddings.projection.weight.numel(), patches + 1
    if model.anatomy.front_end_kind == "log_mel":
        from edgecompress.model.log_mel import frames_of

        frames = frames_of(samples, int(model.network.config.stacked_frames))
        if frames < 1:
            raise ModelError(f"{samples} samples are too few for this front end", hint="give 400 or more (0.025 s)")
        return 0, frames
    length = samples if model.context_positions is None else 2 * model.context_positions
    total = 0
    for path in model.anatomy.front_end:
        for conv in _convolutions(model.base.get_submodule(path)):
            cost, length = _convolution(conv, length)
            if length < 1:
                raise ModelError(f"{samples} samples are too few for this front end", hint="give 400 or more (0.025 s)")
            total += cost
    return total, length


def _convolutions(module: nn.Module) -> list[nn.Conv1d]:
    return [part for part in module.modules() if isinstance(part, nn.Conv1d)]


def _convolution(conv: nn.Conv1d, length: int) -> tuple[int, int]:
    """MACs of a convolution over ``length`` steps, and how many steps come out."""
    reach = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1
    out = (length + 2 * int(conv.padding[0]) - reach) // conv.stride[0] + 1
    return out * conv.out_channels * (conv.in_channels // conv.groups) * conv.kernel_size[0], out


def _linear(module: nn.Module, sparse: bool = False) -> int:
    """MACs per frame of a map, whatever it is now: plain, factored (two plain ones inside), or nothing left."""
    weights = [part.weight for part in module.modules() if isinstance(part, nn.Linear)]
    return sum(_nonzero(each) if sparse else each.numel() for each in weights)


def _inner_width(layer: Layer) -> int:
    return len(layer.heads) * layer.attention.head_dim


def _projections(layer: Layer, sparse: bool) -> int:
    attention = layer.attention
    total = sum(_linear(layer.matrix(name), sparse) for name in ("q_proj", "k_proj", "v_proj", "out_proj"))
    gate = getattr(attention, "gru_rel_pos_linear", None)
    if gate is not None and layer.heads:  # computed for every original head, then indexed by those that are left
        total += attention.original_heads * _linear(gate, sparse)
    return total


def _ffn(layer: Layer, sparse: bool) -> int:
    adapter = getattr(layer.module, "adapter_layer", None)  # wav2vec2's language adapters, where a model has them
    return (
        _linear(layer.up, sparse) + _linear(layer.down, sparse) + (0 if adapter is None else _linear(adapter, sparse))
    )


def _has_head(model: Model) -> bool:
    return model.anatomy.output_name(model.architecture) == "logits"


def _head(model: Model, frames: int, sparse: bool) -> int:
    """The task head, and the down-sampling adapter before it where a wav2vec 2.0 has one.

    A classifier of whole clips (it has a projector), texts or images says its last word once, other heads in every frame.
    """
    total = 0
    adapter = getattr(model.base, "adapter", None)
    if adapter is not None:
        total += frames * _linear(adapter, sparse)
        for conv in _convolutions(adapter):
            cost, frames = _convolution(conv, frames)
            total += cost
    pooled = hasattr(model.network, "projector")
    if model.anatomy.takes == "images" or getattr(model.base, "pooler", None) is not None:
        pooled = True  # a classifier of the first token alone
    for name in HEAD_MODULES:
        if hasattr(model.network, name):
            times = 1 if pooled and name == "classifier" else frames
            total += times * _linear(getattr(model.network, name), sparse)
    return total


# --- the SUPERB protocol ---------------------------------------------------------------------------------------------
def superb_lengths() -> list[int]:
    """Samples of the 32 LibriSpeech test-clean clips (224.86 s) that the SUPERB challenge sums its MACs over."""
    text = files("edgecompress").joinpath("data", "superb_clips.csv").read_text(encoding="utf-8")
    return [int(row["samples_16khz"]) for row in csv.DictReader(text.splitlines())]


def superb(model: Model, *, sparse: bool = False) -> int:
    """MACs over the 32 SUPERB clips, as that challenge's tool counts them, to be compared with published numbers.

    Its profiler adds to :func:`macs` one MAC per attention score for the mask, two for the softmax, and one for each
    element that a bias of the query, key and value projections is added to. HuBERT base: 1,668.2 G (published 1,669;
    products and convolutions alone 1,665.5).

    Raises:
        ModelError: the family takes no audio.
    """
    if model.anatomy.takes != "audio":
        raise ModelError(f"{model.family} takes {model.anatomy.takes}, not audio", hint="take macs at one length")
    total = 0
    for samples in superb_lengths():
        frames = frames_of(model, samples)
        total += sum(macs(model, samples, sparse=sparse).values())
        total += sum(3 * len(layer.heads) * frames**2 + frames * _biased_outputs(layer) for layer in model.layers)
    return total


def _biased_outputs(layer: Layer) -> int:
    maps = [layer.matrix(name) for name in ("q_proj", "k_proj", "v_proj")]
    return sum(each.out_features for each in maps if layer.heads and getattr(each, "bias", None) is not None)
