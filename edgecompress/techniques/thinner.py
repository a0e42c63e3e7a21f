"""A thinner model of the same family, filled with slices of the one it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgecompress.errors import TechniqueError
from edgecompress.techniques import count_of

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.layer import Layer

# What config.json calls them: Whisper the second, all others the first.
NAMES = {
    "width": ("hidden_size", "d_model"),
    "layers": ("num_hidden_layers", "encoder_layers"),
    "heads": ("num_attention_heads", "encoder_attention_heads"),
    "units": ("intermediate_size", "encoder_ffn_dim"),
}


def thinner_config(model: Model, width: int, heads: int | None, units: int | None) -> dict[str, Any]:
    """Values of a ``config.json`` for the layers that ``model`` has left, ``width`` wide.

    Heads keep their width where ``heads`` is not given, units become fewer as the width does.

    Raises:
        TechniqueError: the model has been pruned in ways that a config cannot say, its decoder hears this width, or the
            numbers do not divide.
    """
    lost = sorted({edit.kind for edit in model.edits} - {"keep_layers", "keep_context"})
    if lost:
        raise TechniqueError(f"the model has edits ({lost[0]}) that a thinner copy cannot take", hint="distill first")
    if model.architecture.endswith("ForConditionalGeneration"):
        raise TechniqueError(
            f"the decoder hears frames {model.hidden_size} wide: the encoder cannot be thinner",
            hint="leave width out; layers, heads and units may be fewer",
        )
    layer = model.layers[0]
    if heads is None:
        heads = width // layer.attention.head_dim
    if not heads or width % heads:
        raise TechniqueError(
            f"{width} wide does not divide into heads of {layer.attention.head_dim}",
            hint="take a multiple of that, or say how many heads",
        )
    groups = int(getattr(model.network.config, "num_conv_pos_embedding_groups", 1))
    if width % groups:
        raise TechniqueError(
            f"{width} wide does not divide into the {groups} groups of the position convolution",
            hint=f"take a multiple of {groups}",
        )
    wanted = {
        "width": width,
        "layers": len(model.layers),
        "heads": heads,
        "units": units or count_of(width / model.hidden_size, len(layer.units)),
    }
    values: dict[str, Any] = {**model.network.config.to_dict(), "architectures": [model.architecture]}
    for name, value in wanted.items():
        values.update({key: value for key in NAMES[name] if key in values})
    if model.family == "whisper":
        values |= {"decoder_attention_heads": heads, "max_source_positions": model.context_positions}
    values.update({name: width for name in ("output_hidden_size", "pooler_output_size") if name in values})
    return values


@torch.no_grad()
def fill_with_slices(new: Model, old: Model) -> None:
    """Give ``new`` the channels, heads and units of ``old`` whose weights are largest, layer by layer.

    A start for a training, no more: norms and sums over fewer channels are not what they were.

    Raises:
        TechniqueError: ``new`` has more of something than ``old``.
    """
    plan = _Plan(new, old)
    given = dict(old.network.named_parameters())
    prefix = next(name for name, module in new.network.named_modules() if module is new.stack) + "."
    for name, parameter in new.network.named_parameters():
        source = given[name]
        if name.startswith(prefix):
            number, _, rest = name.removeprefix(prefix).partition(".")
            part = plan.in_layer(int(number), rest, source)
        elif "pos_conv_embed" in name and source.dim() == 3 and source.shape[0] != parameter.shape[0]:
            part = plan.in_groups(source)
        else:
            part = plan.elsewhere(source)
        if part.shape != parameter.shape:
            raise TechniqueError(
                f"{name} would be {tuple(parameter.shape)}, the model has {tuple(source.shape)}: it cannot be a slice of it",
                hint='ask for less, or set init = "random"',
            )
        parameter.copy_(part)


class _Plan:
    """Which channels, heads and units are kept."""

    def __init__(self, new: Model, old: Model) -> None:
        self.old_width = old.hidden_size
        self.groups = int(getattr(new.network.config, "num_conv_pos_embedding_groups", 1))
        self.channels = best(_channel_sizes(old).view(self.groups, -1), new.hidden_size // self.groups)
        first, left = old.layers[0].attention, new.layers[0].attention
        self.head_dim = first.head_dim
        self.inside = torch.linspace(0, first.head_dim - 1, left.head_dim).round().long()
        sizes = [head_sizes(layer) for layer in old.layers]
        if old.anatomy.relative_position:  # one position bias for all layers, with a row for each head
            sizes = [torch.stack(sizes).sum(0)] * len(sizes)
        self.heads = [best(size[None], left.num_heads) for size in sizes]
        self.units = [
            best(unit_sizes(layer)[None], len(thin.units)) for layer, thin in zip(old.layers, new.layers, strict=True)
        ]
        self.anatomy = old.anatomy

    def in_layer(self, number: int, rest: str, tensor: torch.Tensor) -> torch.Tensor:
        """The slice of a parameter called ``rest`` in a layer."""
        rows = (self.heads[number][:, None] * self.head_dim + self.inside).reshape(-1)
        owner, _, kind = rest.rpartition(".")
        name = owner.rpartition(".")[2]
        if owner in [self.anatomy.path(matrix) for matrix in ("q_proj", "k_proj", "v_proj")]:
            return self._wide(tensor[rows])
        if owner == self.anatomy.path("out_proj") and kind == "weight":
            return self._wide(tensor[:, rows], dim=0)
        if owner == self.anatomy.up:
            return self._wide(tensor[self.units[number]])
        if owner == self.anatomy.down and kind == "weight":
            return self._wide(tensor[:, self.units[number]], dim=0)
        if name == "gru_rel_pos_linear" and kind == "weight":
            return tensor[:, self.inside]
        if rest.endswith("gru_rel_pos_const") or name == "rel_attn_embed":
            return tensor[:, self.heads[number]]
        return self._wide(tensor, dim=0) if name not in ("gru_rel_pos_linear",) else tensor

    def in_groups(self, tensor: torch.Tensor) -> torch.Tensor:
        """A grouped convolution (width, width / groups, taps): each group's own channels, out and in."""
        each = tensor.shape[0] // self.groups
        inner = (self.channels % each).view(self.groups, -1)
        rows = tensor[self.channels].view(self.groups, -1, *tensor.shape[1:])
        return torch.cat([rows[group][:, inner[group]] for group in range(self.groups)])

    def elsewhere(self, tensor: torch.Tensor) -> torch.Tensor:
        """Any other parameter: every side that is as long as the model is wide."""
        for dim, size in enumerate(tensor.shape):
            if size == self.old_width:
                tensor = tensor.index_select(dim, self.channels)
        return tensor

    def _wide(self, tensor: torch.Tensor, dim: int = 1) -> torch.Tensor:
        return tensor.index_select(dim, self.channels) if tensor.dim() > dim else tensor


def best(sizes: torch.Tensor, count: int) -> torch.Tensor:
    """Places of the ``count`` largest of each row of (groups, n), counted through all rows, ascending.

    Raises:
        TechniqueError: there are not so many.
    """
    if count > sizes.shape[1]:
        raise TechniqueError(
            f"{count} of {sizes.shape[1]} cannot be kept", hint='ask for less, or set init = "random" and width'
        )
    offsets = torch.arange(sizes.shape[0], device=sizes.device)[:, None] * sizes.shape[1]
    return (sizes.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values + offsets).reshape(-1)


def head_sizes(layer: Layer) -> torch.Tensor:
    """(heads left,): the absolute sum of each head's weights, in and out."""
    from edgecompress.model.linear import dense_weight

    heads, wide = len(layer.heads), layer.attention.head_dim
    total = torch.zeros(heads, dtype=torch.float64)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        weight = dense_weight(layer.matrix(name)).detach().abs().double().cpu()
        total += weight.sum(0 if name == "out_proj" else 1).view(heads, wide).sum(1)
    return total


def unit_sizes(layer: Layer) -> torch.Tensor:
    """(units left,): the absolute sum of each unit's weights, in and out."""
    from edgecompress.model.linear import dense_weight

    up, down = dense_weight(layer.up).detach(), dense_weight(layer.down).detach()
    return (up.abs().double().sum(1) + down.abs().double().sum(0)).cpu()


def _channel_sizes(model: Model) -> torch.Tensor:
    """(width,): the absolute sum of all that layers write to and read from each channel."""
    total = torch.zeros(model.hidden_size, dtype=torch.float64)
    for layer in model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "out_proj", "up", "down"):
            matrix = layer.matrix(name)
            if isinstance(matrix, nn.Linear):
                total += matrix.weight.detach().abs().double().cpu().sum(1 if name in ("out_proj", "down") else 0)
    return total
