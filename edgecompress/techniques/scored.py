"""Structured pruning by scores: what the removal of heads, feed-forward units and channels shares.

``scope = "layer"`` takes the same share from every layer; ``"global"`` ranks all parts of the model, normalised by layer,
and keeps the best one of each layer. A technique says what its parts are, scores them, and cuts; here they are chosen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgecompress.errors import TechniqueError
from edgecompress.techniques import count_of
from edgecompress.techniques.rounds import InRounds, aim, carry_out
from edgecompress.techniques.targets import search

if TYPE_CHECKING:
    import torch

    from edgecompress.model import Model
    from edgecompress.model.layer import Layer
    from edgecompress.techniques import Context
    from edgecompress.techniques.targets import Goal

Parts = Mapping[int, Sequence[int]]  # by layer (or convolution), the original numbers of its parts
LISTED = 4096  # parts that a round of the record names one by one; of more it gives the number alone


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ScoredPruning(InRounds, ABC):
    """The fields of a pruning that scores parts of each layer and removes the lowest, and how it goes about it."""

    noun: ClassVar[str] = "parts"
    least: ClassVar[int] = 0  # parts that every layer keeps whatever is asked
    score: Literal["l1", "first_order", "activation", "reconstruction"] = "l1"
    scope: Literal["layer", "global"] = "layer"
    compensate: Annotated[
        bool | Literal["mean", "least_squares"] | None,
        Field(
            description="what makes up for what is removed; default: mean with activation, least_squares with reconstruction"
        ),
    ] = None

    @property
    def compensation(self) -> Literal["mean", "least_squares"] | None:
        """What makes up for what is removed: its mean, in the bias; the best fit by what is left; or nothing."""
        if self.compensate is None:
            if self.score == "reconstruction":
                return "least_squares"
            return "mean" if self.score == "activation" else None
        if isinstance(self.compensate, bool):
            return "mean" if self.compensate else None
        return self.compensate

    @property
    def needs_clips(self) -> bool:
        """Whether calibration audio is looked at."""
        return self.compensation is not None or self.score != "l1"

    # --- what a technique says of itself ---
    @abstractmethod
    def parts(self, model: Model) -> dict[int, tuple[int, ...]]:
        """The parts that are left in each layer, by original number, in the order of their places."""

    def look(self, model: Model, context: Context) -> Any:
        """What scores and compensation need to know of the calibration audio, gathered once a round."""
        return None

    @abstractmethod
    def scores(self, model: Model, context: Context, seen: Any) -> dict[int, torch.Tensor]:
        """One score a part, (parts left,), of each layer; the higher, the more it matters."""

    @abstractmethod
    def cut(self, model: Model, gone: Parts) -> None:
        """Slice parts (original numbers) away; on a model without numbers (``skeleton``) too."""

    def make_up(self, model: Model, gone: Parts, seen: Any) -> None:
        """Compensate for parts before they are cut."""

    # --- how it goes ---
    def apply(self, model: Model, context: Context) -> None:
        start = self.parts(model)
        if not any(start.values()):
            raise TechniqueError(f"no {self.noun} are left to remove", hint="leave this step out")
        goal = aim(self, model, context)

        def remove(share: float) -> dict[str, Any]:
            seen = self.look(model, context)
            scores = {group: score.detach().cpu() for group, score in self.scores(model, context, seen).items()}
            left = {group: numbers for group, numbers in self.parts(model).items() if group in scores}
            if goal is None:
                gone = self._by_rate(start, left, scores, share)
            else:
                gone = self._by_goal(model, start, left, scores, goal[0].on_the_way(goal[1], share))
            self.make_up(model, gone, seen)
            self.cut(model, {group: numbers for group, numbers in gone.items() if numbers})
            return recorded(gone)

        carry_out(self, model, context, remove)
        if goal is not None:
            context.notes.append(goal[0].told(goal[0].measure(model)))

    def _by_rate(
        self, start: Parts, left: Parts, scores: Mapping[int, torch.Tensor], share: float
    ) -> dict[int, list[int]]:
        """Parts to remove so that ``share`` of what was there at the start is gone."""
        if self.scope == "global":
            total = sum(map(len, start.values()))
            number = count_of(share, total) - (total - sum(map(len, left.values())))
            return grouped(ranked(left, scores, max(1, self.least))[: max(0, number)], left)
        gone = {}
        for group, numbers in left.items():
            before = len(start[group])
            number = min(count_of(share, before), before - self.least) - (before - len(numbers))
            lowest = scores[group].argsort()[: max(0, number)].tolist()
            gone[group] = sorted(numbers[place] for place in lowest)
        return gone

    def _by_goal(
        self, model: Model, start: Parts, left: Parts, scores: Mapping[int, torch.Tensor], goal: Goal
    ) -> dict[int, list[int]]:
        """Parts to remove so that the model costs what a goal allows. The layers' shares differ by one part at most."""
        order = (
            ranked(left, scores, max(1, self.least))
            if self.scope == "global"
            else evenly(start, left, scores, self.least)
        )
        found = search(
            model, goal, order, lambda twin, items: self.cut(twin, grouped(items)), group=lambda item: item[0]
        )
        return grouped(found, left)


def ranked(left: Parts, scores: Mapping[int, torch.Tensor], keep: int) -> list[tuple[int, int]]:
    """(layer, part), the least important first, scores normalised by layer; without the best ``keep`` of each layer."""
    order = []
    for group, numbers in left.items():
        values = scores[group] / (scores[group].norm() + 1e-20)
        best = set(values.argsort(descending=True)[:keep].tolist())
        order += [(float(value), group, numbers[i]) for i, value in enumerate(values) if i not in best]
    return [(group, number) for _, group, number in sorted(order)]


def evenly(start: Parts, left: Parts, scores: Mapping[int, torch.Tensor], keep: int) -> list[tuple[int, int]]:
    """(layer, part), in turn from the layer of which the smallest share is gone, its lowest part first."""
    order = []
    for group, numbers in left.items():
        places = scores[group].argsort()[: max(0, len(numbers) - keep)].tolist()
        gone, whole = len(start[group]) - len(numbers), len(start[group])
        order += [((gone + nth) / whole, group, numbers[place]) for nth, place in enumerate(places, 1)]
    return [(group, number) for _, group, number in sorted(order)]


def grouped(items: Sequence[tuple[int, int]], groups: Parts | None = None) -> dict[int, list[int]]:
    """(layer, part) by layer, ascending; all of ``groups`` are there."""
    found: dict[int, list[int]] = {group: [] for group in groups or ()}
    for group, number in items:
        found.setdefault(group, []).append(number)
    return {group: sorted(numbers) for group, numbers in found.items()}


def without(numbers: Sequence[int], gone: Sequence[int]) -> list[int]:
    """``numbers`` that are not ``gone``."""
    lost = set(gone)
    return [number for number in numbers if number not in lost]


def recorded(gone: Parts) -> dict[str, Any]:
    """What a round removed, as data: by layer (original number) the original numbers, or how many, if they are many."""
    listed = sum(map(len, gone.values())) <= LISTED
    return {str(group): (list(numbers) if listed else len(numbers)) for group, numbers in gone.items() if numbers}


def fold_mean(layer: Layer, matrix: str, columns: list[int], mean: torch.Tensor) -> None:
    """Add to a matrix's bias what its ``columns`` say on average, before they are removed."""
    import torch

    from edgecompress.model.linear import bias_of, dense_weight

    linear = layer.matrix(matrix)
    bias = bias_of(linear)
    if not columns or bias is None:
        return
    with torch.no_grad():
        bias.add_((dense_weight(linear).double()[:, columns] @ mean[columns]).to(bias.dtype))


def make_up(layer: Layer, matrix: str, columns: list[int], moments: Any, how: str | None) -> None:
    """Compensate in a matrix for input ``columns`` (places) that are about to go, as a ``compensation`` says."""
    if not columns or how is None:
        return
    if how == "mean":
        fold_mean(layer, matrix, columns, moments.mean)
        return
    from edgecompress.techniques.compensation import least_squares

    least_squares(layer, matrix, without(range(layer.matrix(matrix).in_features), columns), moments)
