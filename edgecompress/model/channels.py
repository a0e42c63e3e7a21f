"""The convolutions of a front end, and how they lose channels.

A channel is an output of one convolution, and an input of whatever reads it: the next convolution, or the projection
into the encoder. Taking it away means slicing both, and the norms between them:

- a group norm has one group a channel (HuBERT base): each channel is normed alone, so slicing changes nothing else;
- a layer norm over channels runs over those that are left. What it says of them is not what the dense norm said, since
  mean and deviation had the missing channels in them. The promise is the dense network *with those channels left out
  of the norm*, which is the only sliced network there is; in front of the projection every family norms that way.

The last convolution of a waveform front end may lose channels, the projection reads fewer then. Whisper's second one
may not: its channels are the width of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from edgecompress.errors import ModelError
from edgecompress.model.anatomy import Anatomy
from edgecompress.model.linear import select_inputs


class FrontEndConv:
    """A view of one convolution: ``number`` counts from 0, ``channels`` are original numbers of output channels."""

    def __init__(self, base: nn.Module, number: int, path: str, norms: Sequence[str], reader: str | None) -> None:
        self.base = base
        self.number = number
        self.path = path
        self.norm_paths = tuple(norms)
        self.reader_path = reader
        self.channels: tuple[int, ...] = tuple(range(self.module.out_channels))

    @property
    def module(self) -> nn.Conv1d:
        return self.base.get_submodule(self.path)  # type: ignore[return-value]

    @property
    def norms(self) -> list[nn.Module]:
        """Norms over its channels, in the order in which they come: its own, the projection's."""
        return [self.base.get_submodule(path) for path in self.norm_paths]

    @property
    def may_lose_channels(self) -> bool:
        """Whether anything reads its channels that can be sliced with them."""
        return self.reader_path is not None

    @property
    def reader(self) -> nn.Conv1d | nn.Linear:
        """What reads its channels: the next convolution, or the projection into the encoder.

        Raises:
            ModelError: its channels are the encoder's width.
        """
        if self.reader_path is None:
            raise ModelError(
                f"convolution {self.number} cannot lose channels: they are the encoder's width",
                hint="choose an earlier convolution",
            )
        return self.base.get_submodule(self.reader_path)  # type: ignore[return-value]

    def keep_channels(self, channels: Sequence[int]) -> None:
        """Slice to ``channels`` (original numbers, at least one, all still there).

        Raises:
            ValueError: one of them is gone, or none is asked for.
            ModelError: this convolution cannot lose channels.
        """
        place = {channel: i for i, channel in enumerate(self.channels)}
        gone = [channel for channel in channels if channel not in place]
        if gone:
            raise ValueError(f"convolution {self.number} has no channel {gone[0]}")
        if not len(channels):
            raise ValueError("at least one channel must be left: without any, no sound reaches the encoder")
        reader, rows = self.reader, [place[channel] for channel in channels]
        self._put(self.path, _slice_conv(self.module, 0, rows))
        for path in self.norm_paths:
            self._put(path, _slice_norm(self.base.get_submodule(path), rows))
        assert self.reader_path is not None
        read = _slice_conv(reader, 1, rows) if isinstance(reader, nn.Conv1d) else select_inputs(reader, rows)
        self._put(self.reader_path, read)
        self.channels = tuple(channels)

    def _put(self, path: str, new: nn.Module) -> None:
        parent, _, leaf = path.rpartition(".")
        owner = self.base.get_submodule(parent)
        setattr(owner, leaf, new.train(getattr(owner, leaf).training))


class FrontEnd:
    """What stands before the encoder, as a list of convolutions; empty for a family that has none (MelHuBERT)."""

    def __init__(self, base: nn.Module, anatomy: Anatomy) -> None:
        stacked = [path for path in anatomy.front_end if _has(base, f"{path}.conv_layers")]
        self.convs: list[FrontEndConv] = _stack(base, anatomy, stacked[0]) if stacked else _chain(base, anatomy)
        self.family = anatomy.family

    def conv(self, number: int) -> FrontEndConv:
        """The convolution of this number, from 0.

        Raises:
            ModelError: there is none.
        """
        if 0 <= number < len(self.convs):
            return self.convs[number]
        if not self.convs:
            raise ModelError(
                f"{self.family} has no convolutional front end", hint="leave out what is about front-end channels"
            )
        raise ModelError(
            f"there is no convolution {number} in the front end", hint=f"there are 0 to {len(self.convs) - 1}"
        )


def _stack(base: nn.Module, anatomy: Anatomy, root: str) -> list[FrontEndConv]:
    """A waveform's: a stack of convolutions, some with a norm, read by a projection that most families norm before."""
    found = []
    count = len(base.get_submodule(f"{root}.conv_layers"))  # type: ignore[arg-type]
    for number in range(count):
        block = f"{root}.conv_layers.{number}"
        norms, reader = [f"{block}.layer_norm"], f"{root}.conv_layers.{number + 1}.conv"
        if number == count - 1:
            norms, reader = [*norms, f"{anatomy.projection}.layer_norm"], f"{anatomy.projection}.projection"
        found.append(FrontEndConv(base, number, f"{block}.conv", [path for path in norms if _has(base, path)], reader))
    return found


def _chain(base: nn.Module, anatomy: Anatomy) -> list[FrontEndConv]:
    """Whisper's: each convolution read by the next, and the last one's channels the encoder's width."""
    readers = [*anatomy.front_end[1:], None]
    return [FrontEndConv(base, i, path, (), readers[i]) for i, path in enumerate(anatomy.front_end)]


def _has(base: nn.Module, path: str) -> bool:
    parent, _, leaf = path.rpartition(".")
    return isinstance(getattr(base.get_submodule(parent), leaf, None), nn.Module)


def _slice_conv(conv: nn.Conv1d, dim: int, index: Sequence[int]) -> nn.Conv1d:
    """The convolution with only the output (``dim`` 0) or input (1) channels ``index``."""
    keep = torch.as_tensor(list(index), dtype=torch.long, device=conv.weight.device)
    sizes = [conv.out_channels, conv.in_channels]
    sizes[dim] = len(index)
    new = nn.Conv1d(
        sizes[1],
        sizes[0],
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        bias=conv.bias is not None,
        device="meta",
    )
    new.weight = nn.Parameter(conv.weight.detach().index_select(dim, keep))
    if conv.bias is not None:
        bias = conv.bias.detach()
        new.bias = nn.Parameter(bias.index_select(0, keep) if dim == 0 else bias.clone())
    return new


def _slice_norm(norm: nn.Module, index: Sequence[int]) -> nn.Module:
    """A norm over the channels ``index`` only; a group norm must have one group a channel."""
    if isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels:
        new: nn.GroupNorm | nn.LayerNorm = nn.GroupNorm(len(index), len(index), eps=norm.eps, affine=norm.affine)
    elif isinstance(norm, nn.LayerNorm):
        new = nn.LayerNorm(len(index), eps=norm.eps, elementwise_affine=norm.elementwise_affine)
    else:
        raise ModelError(f"cannot take channels out of {norm}", hint="please report this model")
    if norm.weight is not None:
        keep = torch.as_tensor(list(index), dtype=torch.long, device=norm.weight.device)
        new.weight = nn.Parameter(norm.weight.detach().index_select(0, keep))
        new.bias = nn.Parameter(norm.bias.detach().index_select(0, keep))
    return new
