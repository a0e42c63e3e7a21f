"""Gates: one random switch for each channel, head and unit, that learns how often it is open.

Hard Concrete (Louizos, Welling, Kingma, "Learning Sparse Neural Networks through L0 Regularization", 2018): a sigmoid
of noise plus ``log_alpha``, stretched beyond [0, 1] and cut off there, so that a gate is exactly shut or exactly open
most of the time and yet has a gradient. A gate multiplies what the next map reads of its part; with the mean taken away
that the layer norms in between would have had of shut channels, a network with fixed gates says exactly what it says
once the shut parts are sliced off and the values of the others are multiplied into the weights that read them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from edgecompress.model.linear import FactoredLinear
from edgecompress.techniques.statistics import hooked

if TYPE_CHECKING:
    from edgecompress.model import Model

Kind = Literal["channels", "heads", "units"]
KINDS: tuple[Kind, ...] = ("channels", "heads", "units")
TEMPERATURE = 2 / 3
STRETCH = 0.1
SOFT = 0.8  # what is in use is sigmoid(0.8 log_alpha / temperature): Wang et al., 2020; Peng et al., 2023
SPREAD = 0.01  # deviation of log_alpha at the beginning: without any, gates of one place would be in no order
SHUT_BELOW = TEMPERATURE * math.log(STRETCH / (1 + STRETCH))


@dataclass(frozen=True)
class Site:
    """Parts of one kind at one place: channels of a convolution, heads or units of a layer.

    ``parts`` are the original numbers of those that are left; ``width`` inputs of ``reader`` belong to each. Of the
    channels of a convolution one must stay.
    """

    kind: Kind
    number: int
    parts: tuple[int, ...]
    width: int
    reader: nn.Module
    norms: tuple[nn.LayerNorm, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.number}"

    @property
    def least(self) -> int:
        return 1 if self.kind == "channels" else 0

    def keep(self, model: Model, places: Sequence[int]) -> None:
        """Slice to the parts at these places, by the model's edits."""
        numbers = [self.parts[place] for place in places]
        edit = {"channels": model.keep_channels, "heads": model.keep_heads, "units": model.keep_units}[self.kind]
        edit(self.number, numbers)


def sites_of(model: Model, kinds: Sequence[Kind] = KINDS) -> list[Site]:
    """All places of a model where there is something to choose from, in the order in which sound passes them."""
    found: list[Site] = []
    if "channels" in kinds:
        for conv in model.front_end.convs:
            if conv.may_lose_channels and len(conv.channels) > 1:
                norms = tuple(norm for norm in conv.norms if isinstance(norm, nn.LayerNorm))
                found.append(Site("channels", conv.number, conv.channels, 1, conv.reader, norms))
    for layer in model.layers:
        if "heads" in kinds and layer.heads:
            width = layer.attention.head_dim
            found.append(Site("heads", layer.number, layer.heads, width, layer.matrix("out_proj")))
        if "units" in kinds and layer.units:
            found.append(Site("units", layer.number, layer.units, 1, layer.matrix("down")))
    return found


class Gates(nn.Module):
    """The gates of all sites: what they learned, and the hooks through which they act.

    Args:
        sites: the places.
        drop_rates: share of each kind that is shut at the beginning.
        seed: of the first values.
    """

    def __init__(self, sites: Sequence[Site], drop_rates: Mapping[Kind, float], seed: int) -> None:
        super().__init__()
        self.sites = tuple(sites)
        generator = torch.Generator().manual_seed(seed)
        self.log_alpha = nn.ParameterDict()
        for site in self.sites:
            rate = drop_rates[site.kind]
            noise = torch.randn(len(site.parts), generator=generator) * SPREAD
            self.log_alpha[site.name] = nn.Parameter(noise + math.log(1 - rate) - math.log(rate))
        self.held: Mapping[str, torch.Tensor] | None = None
        self.eval()

    @property
    def act(self) -> bool:
        """Whether a pass that comes now is gated: not when an objective looks at the model before the training."""
        return self.training or self.held is not None

    def drawn(self, site: Site) -> torch.Tensor:
        """A draw of a site's gates, (parts,) in [0, 1]: by torch's own generator, differentiable in ``log_alpha``."""
        if self.held is not None:
            return self.held[site.name]
        log_alpha = self.log_alpha[site.name]
        noise = torch.rand_like(log_alpha).clamp(1e-6, 1 - 1e-6)
        soft = torch.sigmoid((torch.logit(noise) + log_alpha) / TEMPERATURE)
        return (soft * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)

    def open_probability(self, site: Site) -> torch.Tensor:
        """How likely each gate of a site is not shut, (parts,)."""
        return torch.sigmoid(self.log_alpha[site.name] - SHUT_BELOW)

    def in_use(self, site: Site) -> torch.Tensor:
        """What a gate that stays is worth, (parts,): multiplied into the weights that read its part."""
        return torch.sigmoid(SOFT * self.log_alpha[site.name].detach() / TEMPERATURE)

    @contextmanager
    def acting(self, held: Mapping[str, torch.Tensor] | None = None) -> Iterator[None]:
        """While inside, the gates act on the model: drawn anew in each pass in train mode, or held at these values."""
        handles = []
        for site in self.sites:
            draw = _Draw(self, site)
            for place, norm in enumerate(site.norms):
                handles.append(norm.register_forward_hook(draw.norm if place else draw.first_norm))
            handles.append(site.reader.register_forward_pre_hook(draw.read if site.norms else draw.first_read))
        self.held = held
        try:
            with hooked(handles):
                yield
        finally:
            self.held = None


class _Draw:
    """One site's gates in one pass: drawn where the pass meets the site first, the same until it leaves it."""

    def __init__(self, gates: Gates, site: Site) -> None:
        self.gates = gates
        self.site = site
        self.values = torch.ones(0)

    def first_read(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if self.gates.act:
            self.values = self.gates.drawn(self.site)
        return self.read(module, args)

    def read(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        """What the reader reads, (batch, channels, time) for a convolution, else (batch, time, inputs), times gates."""
        if not self.gates.act:
            return None
        x, gates = args[0], self.values.repeat_interleave(self.site.width)
        if isinstance(module, nn.Conv1d):
            gates = gates[:, None]
        return (x * gates.to(x.dtype), *args[1:])

    def first_norm(self, norm: nn.LayerNorm, args: tuple[torch.Tensor, ...], said: torch.Tensor) -> torch.Tensor | None:
        if self.gates.act:
            self.values = self.gates.drawn(self.site)
        return self.norm(norm, args, said)

    def norm(self, norm: nn.LayerNorm, args: tuple[torch.Tensor, ...], said: torch.Tensor) -> torch.Tensor | None:
        """The norm over the channels that are not shut: as it will be when the shut ones are gone."""
        if not self.gates.act:
            return None
        is_open = (self.values.detach() > 0).float()
        if bool(is_open.all()):
            return None
        x, count = args[0].float(), is_open.sum().clamp(min=1)
        about_mean = x - ((x @ is_open) / count)[..., None]
        variance = (about_mean.square() @ is_open) / count
        normed = about_mean * torch.rsqrt(variance + norm.eps)[..., None]
        return (normed * norm.weight + norm.bias).to(said.dtype)


@torch.no_grad()
def fold(site: Site, values: torch.Tensor) -> None:
    """Multiply gates, (parts,), into the weights that read their parts."""
    reader = site.reader.first if isinstance(site.reader, FactoredLinear) else site.reader
    assert isinstance(reader, nn.Conv1d | nn.Linear)
    factor = values.repeat_interleave(site.width).to(reader.weight.device)
    reader.weight.mul_(factor[:, None] if isinstance(reader, nn.Conv1d) else factor)
