"""Which parts of a model a training moves: those that the loss hangs on, and no others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgecompress.errors import TechniqueError

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.model import Model
    from edgecompress.model.inputs import Inputs
    from edgecompress.training import Batch

KEPT_BYTES = 512 * 1024**2  # of features: 1,100 clips at 15 s of Whisper's context, 9 h of MelHuBERT's, 2 h of samples


def encoder_parts(model: Model, *, up_to: int | None = None, mask: bool = False) -> dict[str, nn.Module]:
    """The parts that make hidden states, by name; of Whisper the encoder alone, its decoder stays as it is.

    Args:
        model: whose parts.
        up_to: number of the highest state that is looked at (0 is the input of the first layer); default: the last.
        mask: whether frames are hidden, so that the learned vector in their place trains too.
    """
    encoder = model.encoder_module
    if model.family == "whisper":
        parts: dict[str, nn.Module] = {"encoder": encoder}
    else:
        parts = dict(model.base.named_children())
        vector = getattr(model.base, "masked_spec_embed", None)
        if mask and vector is not None:
            parts["masked_spec_embed"] = nn.ParameterList([vector])
    if up_to is not None and up_to < len(model.layers):
        name = next(name for name, part in parts.items() if part is encoder)
        del parts[name]
        for child, module in encoder.named_children():
            if child == "layers":
                parts[f"{name}.layers"] = nn.ModuleList(list(module)[:up_to])
            elif not (child == "layer_norm" and _norm_comes_last(model)):
                parts[f"{name}.{child}"] = module
    return parts


def _norm_comes_last(model: Model) -> bool:
    return model.family == "whisper" or bool(getattr(model.network.config, "do_stable_layer_norm", False))


def head_parts(model: Model) -> dict[str, nn.Module]:
    """What a network with a task head has around its encoder: the head, and the weights of a learned sum of layers."""
    network, used = model.network, {id(model.base), id(model.encoder_module)}
    parts = {f"head.{name}": part for name, part in network.named_children() if id(part) not in used}
    weights = getattr(network, "layer_weights", None)
    if weights is not None and getattr(network.config, "use_weighted_layer_sum", False):
        parts["head.layer_weights"] = nn.ParameterList([weights])
    return parts


@contextmanager
def held_fixed(model: Model, trained: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, gradients pass through what does not train, but none is kept for it: the decoder's would only grow."""
    moving = {id(parameter) for part in trained.values() for parameter in part.parameters()}
    fixed = [one for one in model.network.parameters() if one.requires_grad and id(one) not in moving]
    try:
        for parameter in fixed:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in fixed:
            parameter.requires_grad_(True)


class Student:
    """The model that trains, and how a batch comes to it: in the condition in which it is used.

    Whisper's encoder attends to the padding up to its context however short the audio is, so in training it sees the
    whole context too; a loss over filled frames leaves the padding out of what it counts, not of what is heard.

    Features of a clip that comes whole are kept, up to ``KEPT_BYTES``: a small student's step is over sooner than the
    log-mel of its batch is made. A crop is never the same twice, unless it is the beginning of its clip.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.kept_bytes = 0
        self._kept: dict[tuple[int, int], Inputs] = {}  # by row in the corpus and length

    @property
    def device(self) -> torch.device:
        """Where the encoder is; the loop may have moved only what trains."""
        device: torch.device = next(self.model.encoder_module.parameters()).device
        return device

    def inputs(self, batch: Batch) -> Inputs:
        """The clips as the model takes them, and the whole model, on one device."""
        device = self.device
        if any(one.device != device for one in chain(self.model.parameters(), self.model.buffers())):
            self.model.to(device)
        clips = zip(batch.clips, batch.rows, batch.starts, strict=True)
        return joined([self._alone(*clip) for clip in clips]).to(device)

    def _alone(self, clip: np.ndarray, row: int, start: int) -> Inputs:
        """One clip as a batch of its own, on the CPU."""
        key = row, clip.size
        if start == 0 and key in self._kept:
            return self._kept[key]
        made = collate(self.model, [clip])
        size = made.values.numel() * made.values.element_size()
        if start == 0 and self.kept_bytes + size <= KEPT_BYTES:
            self._kept[key] = made
            self.kept_bytes += size
        return made


def joined(parts: Sequence[Inputs]) -> Inputs:
    """Batches of one clip each as one, padded to the longest: the very numbers of collating all clips at once."""
    from edgecompress.model.inputs import Inputs

    values = nn.utils.rnn.pad_sequence([part.values[0] for part in parts], batch_first=True)
    frames, samples = (torch.cat([getattr(part, name) for part in parts]) for name in ("frames", "samples"))
    return Inputs(values, frames, samples, max(part.length for part in parts))


def collate(model: Model, clips: list[Any], silence_s: float | None = None) -> Inputs:
    """``Model.collate``; Whisper gets its whole context. Features are float32 whatever a training computes in.

    With ``silence_s`` Whisper hears the longest clip and that much silence after it, at most its context: with half-second
    clips the whole context is fifty times the work.
    """
    positions = model.context_positions
    if positions is not None and silence_s is not None:
        filled = max(model.filled_frames(clip) or 0 for clip in clips)
        positions = min(positions, filled + round(silence_s * 50))
    with torch.autocast("cpu", enabled=False):
        return model.collate(clips, positions=positions)


def frame_head(model: Model) -> nn.Linear | None:
    """The head that answers frame by frame (clusters, CTC); None where there is none, or it answers for whole clips."""
    return getattr(model.network, "cluster_head", None) or getattr(model.network, "lm_head", None)


def frame_logits(model: Model, inputs: Inputs, hide: torch.Tensor | None) -> torch.Tensor:
    """``Model.logits``; with frames hidden (batch, frames) for heads that answer frame by frame.

    Raises:
        TechniqueError: frames shall be hidden, and the head answers for whole clips.
    """
    if hide is None:
        return model.logits(inputs)
    head = frame_head(model)
    if head is None:
        raise TechniqueError(
            f"{model.architecture} answers for whole clips: there are no hidden frames to look at",
            hint="leave masked out",
        )
    said: torch.Tensor = head(model.states(inputs, hide)[-1])
    return said


def frame_mask(lengths: torch.Tensor, frames: int) -> torch.Tensor:
    """(batch,) lengths as a mask (batch, frames): True below the length."""
    return torch.arange(frames, device=lengths.device)[None] < lengths[:, None]
