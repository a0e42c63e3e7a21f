"""Which weights become zero, and how they stay zero while the others train."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from edgecompress.training import Hook

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.techniques import Context

STRIDE = 101  # one in so many weights is in the sample that says where a threshold lies


@dataclass(frozen=True)
class Piece:
    """A weight or bias that may be pruned, the map it belongs to, and the original number of its layer."""

    tensor: nn.Parameter
    module: nn.Module
    layer: int

    @property
    def is_matrix(self) -> bool:
        return self.tensor.ndim == 2


def pieces_of(model: Model) -> list[Piece]:
    """Weights and biases of every attention and feed-forward map of the layers that are left, factored ones too."""
    from edgecompress.model.layer import ATTENTION_MATRICES, FFN_MATRICES

    return [
        Piece(parameter, module, layer.number)
        for layer in model.layers
        for name in (*ATTENTION_MATRICES, *FFN_MATRICES)
        for module in layer.matrix(name).modules()
        for parameter in module.parameters(recurse=False)
        if parameter.numel()
    ]


def nonzero(tensors: Iterable[torch.Tensor]) -> int:
    """How many entries of all tensors are not zero; numpy counts several times faster than torch on a CPU."""
    return sum(int(np.count_nonzero(tensor.detach().cpu().numpy())) for tensor in tensors)


# --- scores ----------------------------------------------------------------------------------------------------------
def input_norms(model: Model, context: Context, who: str, pieces: Sequence[Piece]) -> dict[nn.Module, torch.Tensor]:
    """Root mean square of each input of each linear map, over the frames that calibration audio fills: (in,) a map."""
    from edgecompress.techniques.passes import passes
    from edgecompress.techniques.statistics import Moments, hooked

    clips = context.need_clips(who)
    gathered = {piece.module: Moments(joint=False) for piece in pieces if piece.is_matrix}
    filled: list[int | None] = []

    def watch(seen: Moments) -> Callable[..., None]:
        return lambda module, args: seen.add(args[0], filled)

    hooks = [module.register_forward_pre_hook(watch(seen)) for module, seen in gathered.items()]
    with hooked(hooks), torch.no_grad():
        for inputs, filled[:] in passes(model, clips):
            model.encode(inputs)
    return {module: seen.mean_square.clamp(min=0).sqrt().float() for module, seen in gathered.items()}


# --- masks: True where a weight becomes zero. What is small is small in size: signs do not count ---------------------
def smallest_of_all(scores: Sequence[torch.Tensor], count: int) -> list[torch.Tensor]:
    """Masks of exactly ``count`` smallest entries of all tensors together; among equal ones the first."""
    if not count:
        return [torch.zeros_like(score, dtype=torch.bool) for score in scores]
    threshold, equal = _nth_smallest(scores, count)
    masks = []
    for score in scores:
        sizes = _sizes(score)
        mask = sizes < threshold
        if equal:
            places = np.flatnonzero(sizes == threshold)[:equal]
            mask[places] = True
            equal -= len(places)
        masks.append(torch.from_numpy(mask).view(score.shape).to(score.device))
    return masks


def _sizes(score: torch.Tensor) -> np.ndarray:
    """Sizes without signs, (numbers,); in numpy, which compares and picks four times faster than torch on one core."""
    return np.abs(score.detach().reshape(-1).cpu().numpy())


def _nth_smallest(scores: Sequence[torch.Tensor], nth: int) -> tuple[np.floating, int]:
    """The ``nth`` smallest size of all tensors, and how many of that size are among the ``nth`` smallest.

    A sample says between which two sizes it lies, and only what is there (about a hundredth) is sorted: of HuBERT base's
    85 million weights no copy is made. Where the sample is wrong, which shows in the counts, all are looked at.
    """
    total = sum(score.numel() for score in scores)
    sample = np.sort(np.concatenate([_sizes(score.detach().reshape(-1)[::STRIDE]) for score in scores]))
    middle, margin = nth / total * len(sample), 4 * len(sample) ** 0.5 + 2
    first, last = int(middle - margin), int(middle + margin)
    low = sample[first] if first >= 0 else -1.0
    high = sample[last] if last < len(sample) else np.inf
    for least, most in ((low, high), (-1.0, np.inf)):
        below, inside = 0, []
        for score in scores:
            sizes = _sizes(score)
            small = sizes < least
            below += int(np.count_nonzero(small))
            inside.append(sizes[~small & (sizes <= most)])
        between = np.concatenate(inside)
        if 0 < nth - below <= len(between):
            break
    threshold = np.partition(between, nth - below - 1)[nth - below - 1]
    return threshold, nth - below - int(np.count_nonzero(between < threshold))


def smallest_of_each(groups: Sequence[Sequence[torch.Tensor]], count: int) -> list[list[torch.Tensor]]:
    """Masks of ``count`` entries in all, the same share of every group of tensors (to one entry): its smallest ones."""
    shares = apportion(count, [sum(score.numel() for score in group) for group in groups])
    return [smallest_of_all(group, share) for group, share in zip(groups, shares, strict=True)]


def smallest_of_rows(scores: Sequence[torch.Tensor], count: int) -> list[torch.Tensor]:
    """Masks of ``count`` entries in all, the same share of every row of every matrix (to one entry): its smallest ones."""
    masks = []
    for score, share in zip(scores, apportion(count, [score.numel() for score in scores]), strict=True):
        table = score.abs().reshape(-1, score.shape[-1])
        each, more = divmod(share, table.shape[0])
        counts = each + (torch.arange(table.shape[0]) < more).long()
        rank = table.argsort(dim=1, stable=True).argsort(dim=1)
        masks.append((rank < counts[:, None]).view_as(score))
    return masks


def lowest_of_groups(score: torch.Tensor, keep: int, of: int) -> torch.Tensor:
    """A mask that leaves ``keep`` of every ``of`` neighbours along a matrix's inputs; a rest at the end stays whole."""
    whole = score.shape[1] // of * of
    mask = torch.zeros_like(score, dtype=torch.bool)
    rank = score[:, :whole].abs().reshape(-1, of).argsort(dim=1, stable=True).argsort(dim=1)
    mask[:, :whole] = (rank < of - keep).view(score.shape[0], whole)
    return mask


def apportion(count: int, sizes: Sequence[int]) -> list[int]:
    """``count`` shared out over groups by their sizes, exactly; no group's share falls when ``count`` grows.

    One by one to the group of which the smallest share would then be taken: a divisor method (Balinski and Young, 1982).
    """
    total = sum(sizes)
    shares = [count * size // total for size in sizes]
    waiting = [((shares[i] + 1) / size, i) for i, size in enumerate(sizes)]
    heapq.heapify(waiting)
    for _ in range(count - sum(shares)):
        _, i = heapq.heappop(waiting)
        shares[i] += 1
        heapq.heappush(waiting, ((shares[i] + 1) / sizes[i], i))
    return shares


# --- training beside zeros -------------------------------------------------------------------------------------------
class HeldMasks(Hook):
    """Weights that are zero stay zero: all gradients, and after every step all weights, are multiplied by their masks.

    Zeros then count neither in the clipping nor in what the optimiser learns to remember. What it remembers of a weight
    from before its round stays, and would move it: hence the second product.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], zeros: Sequence[torch.Tensor]) -> None:
        self.tensors = list(tensors)
        self.masks = [(~zero).to(tensor.dtype) for tensor, zero in zip(tensors, zeros, strict=True)]

    @torch.no_grad()
    def before_clipping(self) -> None:
        self._follow()
        pairs = [(x.grad, mask) for x, mask in zip(self.tensors, self.masks, strict=True) if x.grad is not None]
        torch._foreach_mul_([gradient for gradient, _ in pairs], [mask for _, mask in pairs])

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        self._follow()
        torch._foreach_mul_(self.tensors, self.masks)

    def _follow(self) -> None:
        """The training moves what it trains to its device."""
        device = self.tensors[0].device
        if self.masks[0].device != device:
            self.masks = [mask.to(device) for mask in self.masks]


def falls(losses: Sequence[float], by: float) -> bool:
    """Whether a loss still fell by more than ``by`` over the last three fifths of a training.

    The mean of its second fifth against that of its last: Lin et al., 2022, too look back 15,000 of 25,000 steps and
    smooth over 5,000. Theirs is an exponential average, in which a seventh of a steep beginning would still be seen.
    """
    fifth = len(losses) // 5
    if not fifth:
        return bool(losses) and losses[0] - losses[-1] > by
    return sum(losses[fifth : 2 * fifth]) / fifth - sum(losses[-fifth:]) / fifth > by
