"""Hidden states and logits of a padded batch: what each clip would say alone, with gradients, in the current mode.

The library's attention masks keep padding out of attention, but not out of two other places: the group norm of the first
convolution takes its mean over the whole batch row, and padding shines through stacked or normed position convolutions
(data2vec-audio, HuBERT's batch norm). Both are mended here by hooks while a padded batch runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgecompress.errors import ModelError
from edgecompress.model.forms import classify, whisper_states
from edgecompress.model.inputs import Inputs, steps_of

if TYPE_CHECKING:
    from edgecompress.model.network import Model

RANDOM_IN_TRAINING = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop", "mask_time_prob", "mask_feature_prob")


def states(model: Model, inputs: Inputs, hide: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """See :meth:`Model.states`."""
    inputs = inputs.to(model.device)
    if hide is not None and model.anatomy.takes != "audio":
        raise ModelError(f"{model.family} has no frames of audio to hide", hint="leave hide out")
    if hide is not None:
        hide = hide.to(model.device)
    if model.family == "whisper":
        values = inputs.values
        if hide is not None:  # both mel frames of a position, set to what the batch's silence sounds like
            both = hide.repeat_interleave(2, dim=1)[:, None, : values.shape[2]]
            values = torch.where(both, values.amin(dim=(1, 2), keepdim=True), values)
        return tuple(whisper_states(model.encoder_module, values))
    more = {} if hide is None else {"mask_time_indices": hide}
    with padding_unseen(model, inputs):
        said = model.base(inputs.values, attention_mask=_mask(model, inputs), output_hidden_states=True, **more)
    return tuple(said.hidden_states)


def logits(model: Model, inputs: Inputs) -> torch.Tensor:
    """See :meth:`Model.logits`."""
    inputs = inputs.to(model.device)
    network = model.network
    if not model.has_logits:
        raise ModelError(
            f"{model.architecture} has no logits", hint="take a model with a head: ForCTC, ForSequenceClassification"
        )
    if model.family == "whisper":
        weighted = bool(getattr(model.config, "use_weighted_layer_sum", False))
        return classify(network, whisper_states(model.encoder_module, inputs.values), weighted)
    with padding_unseen(model, inputs):
        said: torch.Tensor = network(inputs.values, attention_mask=_mask(model, inputs)).logits
    return said


def _mask(model: Model, inputs: Inputs) -> torch.Tensor | None:
    """The mask that the family's forward takes: by sample for waveforms, by frame or token else; None without padding."""
    if not inputs.padded:
        return None
    if model.anatomy.front_end_kind == "log_mel":
        return inputs.mask
    if model.anatomy.front_end_kind == "tokens":
        return inputs.mask.long()
    counted = torch.arange(inputs.values.shape[1], device=inputs.samples.device)
    return (counted < inputs.samples[:, None]).long()


@contextmanager
def padding_unseen(model: Model, inputs: Inputs) -> Iterator[None]:
    """While inside, padding does not reach what a clip says of itself."""
    with ExitStack() as stack:
        if inputs.padded:
            for module, hook in _norm_hooks(model, inputs.samples):
                stack.callback(module.register_forward_hook(hook).remove)
            if model.anatomy.position_conv is not None:
                for conv in model.base.get_submodule(model.anatomy.position_conv).modules():
                    if isinstance(conv, nn.Conv1d):
                        stack.callback(conv.register_forward_pre_hook(_silenced(inputs.mask)).remove)
        yield


def _norm_hooks(model: Model, samples: torch.Tensor) -> Iterator[tuple[nn.Module, Callable[..., torch.Tensor]]]:
    """A hook for each norm over time of a waveform front end, which knows how many steps each clip fills there."""
    if model.anatomy.front_end_kind != "convolutions":
        return
    for path in model.anatomy.front_end:
        for part in model.base.get_submodule(path).modules():
            if isinstance(part, nn.Conv1d):
                samples = steps_of(part, samples)
            if isinstance(part, nn.GroupNorm) and part.num_groups == part.num_channels:
                yield part, _own_statistics(samples)


def _own_statistics(lengths: torch.Tensor) -> Callable[..., torch.Tensor]:
    """A group norm of one channel a group, (batch, channels, time), over the first ``lengths`` (batch,) steps only."""

    def hook(norm: Any, arguments: tuple[torch.Tensor], said: torch.Tensor) -> torch.Tensor:
        x, count = arguments[0].float(), lengths[:, None, None]
        filled = (torch.arange(x.shape[2], device=x.device) < lengths[:, None])[:, None]
        mean = (x * filled).sum(2, keepdim=True) / count
        variance = ((x - mean) * filled).square().sum(2, keepdim=True) / count
        normed = (x - mean) * torch.rsqrt(variance + norm.eps) * norm.weight[:, None] + norm.bias[:, None]
        return normed.to(said.dtype)

    return hook


def _silenced(mask: torch.Tensor) -> Callable[..., tuple[torch.Tensor]]:
    def hook(conv: nn.Module, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (arguments[0] * mask[:, None].to(arguments[0].dtype),)

    return hook


def nothing_random_but_dropout(network: Any, waveform: bool) -> None:
    """Switch SpecAugment and LayerDrop off for good, in the running network alone; ``config.json`` stays as it came.

    A layer that is skipped at random leaves a hole in the hidden states, and frames are hidden when a training says so.
    A waveform network that has no learned vector for hidden frames gets zeros.
    """
    configs = {id(module.config): module.config for module in network.modules() if hasattr(module, "config")}
    for config in configs.values():
        for name in RANDOM_IN_TRAINING:
            if getattr(config, name, None):
                setattr(config, name, 0.0)
        if waveform:
            config.apply_spec_augment = True  # without it hidden frames would not be hidden
    for module in network.modules():
        if isinstance(getattr(module, "layerdrop", None), float):
            module.layerdrop = 0.0
    if waveform and getattr(network.base_model, "masked_spec_embed", None) is None:
        zeros = torch.zeros(int(network.config.hidden_size), device="cpu")
        network.base_model.register_buffer("masked_spec_embed", zeros, persistent=False)
