"""What a model would cost with so many parts left at each site: exact for whole numbers, differentiable in between.

Parameters and MACs are linear in the heads and units of each layer and in the channels of each convolution, but for the
products of neighbouring convolutions, and for what goes with a layer's last head or unit: WavLM's gates on its position
bias, the other half of a factored matrix. The coefficients are not written down a second time: they are read off
``cost`` itself, as differences between skeletons of the model, and so hold for whatever it is made of (factored
matrices, other families).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from edgecompress.model import Model
    from edgecompress.techniques.gates import Site

Measure = Callable[["Model"], int]


@dataclass(frozen=True)
class ExpectedCost:
    """``constant + linear[s] n[s] + pairs[a, b] n[a] n[b] + alive[s] (n[s] > 0)``, summed; sites by name."""

    constant: int
    linear: Mapping[str, int]
    pairs: Mapping[tuple[str, str], int]
    alive: Mapping[str, int]

    def of_counts(self, counts: Mapping[str, int]) -> int:
        """The cost with ``counts`` parts left at each site; what ``cost`` says once they are sliced."""
        alive = sum(extra for name, extra in self.alive.items() if counts[name])
        total: int = self._smooth(counts) + alive
        return total

    def expected(self, probabilities: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The mean cost when each part stays with its own probability, a scalar; all draws are independent."""
        total: torch.Tensor = self._smooth({name: values.sum() for name, values in probabilities.items()})
        for name, extra in self.alive.items():
            total = total + extra * (1 - (1 - probabilities[name]).prod())
        return total

    def _smooth(self, counts: Mapping[str, Any]) -> Any:
        total = self.constant + sum(each * counts[name] for name, each in self.linear.items())
        return total + sum(each * counts[a] * counts[b] for (a, b), each in self.pairs.items())


def expected_cost(model: Model, sites: Sequence[Site], measure: Measure) -> ExpectedCost:
    """The cost of ``model``, by ``measure``, as a function of what is left at ``sites``."""
    total = measure(model.skeleton())
    linear, pairs = _convolutions(model, [site for site in sites if site.kind == "channels"], measure, total)
    slopes, alive = _layers(model, [site for site in sites if site.kind != "channels"], measure, total)
    found = ExpectedCost(0, linear | slopes, pairs, alive)
    rest = total - found.of_counts({site.name: len(site.parts) for site in sites})
    return ExpectedCost(rest, found.linear, found.pairs, found.alive)


def _convolutions(
    model: Model, chain: Sequence[Site], measure: Measure, total: int
) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """First and second differences; a convolution's cost hangs on its own channels and on those that it reads."""

    def saved(*gone: Site) -> int:
        skeleton = model.skeleton()
        for site in gone:
            site.keep(skeleton, range(len(site.parts) - 1))
        return total - measure(skeleton)

    alone = {site.name: saved(site) for site in chain}
    pairs = {
        (a.name, b.name): alone[a.name] + alone[b.name] - saved(a, b)
        for a, b in pairwise(chain)
        if b.number == a.number + 1
    }
    count = {site.name: len(site.parts) for site in chain}
    linear = dict(alone)
    for (a, b), each in pairs.items():
        linear[a] -= each * count[b]
        linear[b] -= each * count[a]
    return linear, pairs


def _layers(model: Model, sites: Sequence[Site], measure: Measure, total: int) -> tuple[dict[str, int], dict[str, int]]:
    """What a part costs, and what goes with the last one; sites do not hang on each other, so one skeleton loses all."""
    skeleton, now = model.skeleton(), total
    linear, alive = {}, {}
    for site in sites:
        costs = [now]
        for left in sorted({len(site.parts) - 1, 0}, reverse=True):
            site.keep(skeleton, range(left))
            costs.append(measure(skeleton))
        linear[site.name] = costs[0] - costs[1]
        extra = costs[0] - costs[-1] - linear[site.name] * len(site.parts)
        if extra:
            alive[site.name] = extra
        now = costs[-1]
    return linear, alive
