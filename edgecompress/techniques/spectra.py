"""How the energy of matrices is spread over their directions, and which ranks follow from it.

Energy is the squared singular values of a matrix (``weights``), or the variance of what it says on calibration audio along
its principal components (``activations``), each as a share of the matrix's own: matrices of different scale compare.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from edgecompress.errors import TechniqueError
from edgecompress.model.linear import FactoredLinear, bias_of, dense_weight
from edgecompress.techniques.factorize import break_even
from edgecompress.techniques.statistics import Moments, moments

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.layer import Layer
    from edgecompress.techniques import Context
    from edgecompress.techniques.targets import Goal

Place = tuple[int, str]  # number of a layer, name of a matrix
Ranks = dict[Place, int]


def weights_of(layer: Layer, name: str) -> int:
    """Weights of a matrix as it is now, factored or not, without the bias."""
    matrix = layer.matrix(name)
    per_rank = matrix.in_features + matrix.out_features
    return matrix.rank * per_rank if isinstance(matrix, FactoredLinear) else matrix.in_features * matrix.out_features


@dataclass(frozen=True)
class Spectrum:
    """One matrix: its weights now, those that a rank costs, the highest rank that saves, and its energy by direction."""

    weights: int
    per_rank: int
    highest: int
    energy: tuple[float, ...]  # shares of the whole, descending

    def lost(self, rank: int) -> float:
        """The share of the energy that is gone at a rank."""
        return sum(self.energy[rank:])


class Spectra(ABC):
    """The spectra of matrices of a model, and their best products of any rank."""

    def __init__(self, layers: dict[Place, Layer]) -> None:
        self.layers = layers

    @cached_property
    def of(self) -> dict[Place, Spectrum]:
        """Every matrix's spectrum. Only where ranks are chosen by it: a rank that is given asks for none."""
        return {place: self._spectrum(place) for place in self.layers}

    @staticmethod
    def by(what: str, model: Model, context: Context, who: str, places: list[tuple[Layer, str]]) -> Spectra:
        """By ``weights``, or by ``activations`` on the context's clips, all looked at before any matrix is changed."""
        layers = {(layer.number, name): layer for layer, name in places}
        if what == "weights":
            return ByWeights(layers)
        return ByActivations(layers, moments(model, context, who, places, outputs=True))

    @property
    def places(self) -> list[Place]:
        return list(self.layers)

    @abstractmethod
    def energies(self, place: Place) -> torch.Tensor:
        """Energy by direction, descending, float64."""

    @abstractmethod
    def put(self, model: Model, place: Place, rank: int) -> None:
        """Put the best product of this rank in a matrix's place."""

    def _spectrum(self, place: Place) -> Spectrum:
        matrix = self.layers[place].matrix(place[1])
        energy = self.energies(place).clamp(min=0)
        shares = (energy / energy.sum().clamp(min=1e-30)).tolist()[: min(matrix.in_features, matrix.out_features)]
        highest = break_even(matrix.in_features, matrix.out_features)
        if isinstance(matrix, FactoredLinear):
            highest = min(highest, matrix.rank - 1)
        per_rank = matrix.in_features + matrix.out_features
        return Spectrum(weights_of(self.layers[place], place[1]), per_rank, highest, tuple(shares))

    # --- ranks ---
    def for_energy(self, share: float) -> Ranks:
        """The lowest rank that keeps ``share`` of each matrix's energy, of those matrices that it makes smaller."""
        ranks = {}
        for place, spectrum in self.of.items():
            kept, rank = 0.0, 0
            while kept < share - 1e-12 and rank < len(spectrum.energy):
                kept, rank = kept + spectrum.energy[rank], rank + 1
            if rank <= spectrum.highest:
                ranks[place] = max(1, rank)
        return ranks

    def for_goal(self, model: Model, goal: Goal) -> Ranks:
        """Ranks at which ``model`` costs at most ``goal.value``, losing little energy.

        Raises:
            TechniqueError: not even rank 1 everywhere is enough.
        """
        now = goal.measure(model)
        if now <= goal.value:
            return {}
        least, saved = self._least(model, goal)
        if least > goal.value:
            raise TechniqueError(
                f"{goal.value:,} {goal.unit} cannot be reached: with rank 1 everywhere, {least:,} are left",
                hint=f"ask for {least:,} or more, or let another technique go first",
            )
        # A weight of these matrices counts the same everywhere: once, or once a frame.
        return self.for_saving(-((goal.value - now) * saved // (now - least)))

    def _least(self, model: Model, goal: Goal) -> tuple[int, int]:
        """What the model costs with rank 1 wherever that saves, and how many weights are then saved."""
        twin, saved = model.skeleton(), 0
        for (number, name), spectrum in self.of.items():
            if spectrum.highest >= 1:
                twin.factor(number, name, 1)  # type: ignore[arg-type]
                saved += spectrum.weights - spectrum.per_rank
        return goal.measure(twin), saved

    def for_saving(self, weights: float) -> Ranks:
        """Ranks that save at least ``weights`` weights: what holds the least energy per weight goes first, wherever it is.

        The first direction to go from a whole matrix saves nothing, so a matrix goes at once to the rank where the energy
        lost per weight saved is least, and from there direction by direction (its lower convex hull). What was then saved
        too much is given back as rank.

        Raises:
            TechniqueError: not even rank 1 everywhere saves that much.
        """
        if weights <= 0:
            return {}
        ranks: Ranks = {}
        saved = 0
        steps = [step for place, one in self.of.items() for step in _hull(place, one)]
        for _, place, rank in sorted(steps, key=lambda step: (step[0], step[1], -step[2])):
            if saved >= weights:
                break
            one = self.of[place]
            saved += (one.weights if place not in ranks else ranks[place] * one.per_rank) - rank * one.per_rank
            ranks[place] = rank
        if saved < weights:
            raise TechniqueError(
                f"rank 1 everywhere saves {saved:,} weights, and {round(weights):,} have to go", hint="ask for less"
            )
        return self._given_back(ranks, saved - weights)

    def _given_back(self, ranks: Ranks, spare: float) -> Ranks:
        """Ranks raised while the spare weights last, where that brings back the most energy per weight."""
        while True:
            dearest, best = -1.0, None
            for place, rank in ranks.items():
                one = self.of[place]
                if rank < one.highest and one.per_rank <= spare and one.energy[rank] / one.per_rank > dearest:
                    dearest, best = one.energy[rank] / one.per_rank, place
            if best is None:
                return ranks
            ranks[best] += 1
            spare -= self.of[best].per_rank


def _hull(place: Place, one: Spectrum) -> list[tuple[float, Place, int]]:
    """The ranks a matrix goes through, each with the energy lost per weight saved on the way to it, ascending."""
    if one.highest < 1:
        return []
    lost, tail = {}, one.lost(one.highest)
    for rank in range(one.highest, 0, -1):
        lost[rank] = tail
        tail += one.energy[rank - 1]
    first = min(lost, key=lambda rank: lost[rank] / (one.weights - rank * one.per_rank))
    steps = [(lost[first] / (one.weights - first * one.per_rank), place, first)]
    return steps + [
        (max(steps[0][0], one.energy[rank] / one.per_rank), place, rank) for rank in range(first - 1, 0, -1)
    ]


class ByWeights(Spectra):
    """Singular values of the matrices."""

    def energies(self, place: Place) -> torch.Tensor:
        weight = dense_weight(self.layers[place].matrix(place[1])).detach()
        return torch.linalg.svdvals(weight.double()).square().cpu()

    def put(self, model: Model, place: Place, rank: int) -> None:
        model.factor(place[0], place[1], rank)  # type: ignore[arg-type]


class ByActivations(Spectra):
    """Principal components of what the matrices say: W -> U U^T W, bias -> U U^T bias + (I - U U^T) mean.

    Without a bias is Whisper's k_proj only: its mean may go, since what all keys share cancels in the softmax.
    """

    def __init__(self, layers: dict[Place, Layer], seen: dict[Place, Moments]) -> None:
        self.seen = seen
        super().__init__(layers)

    def energies(self, place: Place) -> torch.Tensor:
        return torch.linalg.eigvalsh(self.seen[place].covariance).flip(0).cpu()

    @torch.no_grad()
    def put(self, model: Model, place: Place, rank: int) -> None:
        layer, name, seen = self.layers[place], place[1], self.seen[place]
        old = layer.matrix(name)
        weight, bias = dense_weight(old).detach().double(), bias_of(old)
        basis = torch.linalg.eigh(seen.covariance).eigenvectors[:, -rank:].to(weight.device)
        if bias is not None:
            mean = seen.mean.to(weight.device)
            bias.copy_(basis @ (basis.T @ (bias.double() - mean)) + mean)
        model.factor(place[0], name, rank, (basis, basis.T @ weight))  # type: ignore[arg-type]
