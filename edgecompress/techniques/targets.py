"""Targets: how much is left, in parameters or multiply-accumulates, instead of how much goes.

A technique ranks what it could remove; here is found how much of the ranking has to go so that the model costs at most
what was asked for. Costs are counted on copies without numbers (torch's meta device), so a search costs no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from edgecompress.errors import TechniqueError

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.techniques import Context

Item = TypeVar("Item", bound=Hashable)
Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Target:
    """What the whole model may cost at most: ``{ parameters = 0.5 }`` or ``{ macs = 1.2e9, seconds = 5 }``.

    Up to 1 it is a share of what the uncompressed source model costs, above 1 a number. ``macs`` are those of ``seconds``
    of audio (default 10; Whisper's are those of its context, the reference's of the same audio length). A model of text
    is counted for 128 tokens, one of images for one image.
    """

    parameters: Amount | None = None
    macs: Amount | None = None
    seconds: Amount | None = None

    @model_validator(mode="after")
    def _one(self) -> Target:
        if (self.parameters is None) == (self.macs is None):
            raise ValueError("a target names either parameters or macs")
        if self.seconds is not None and self.macs is None:
            raise ValueError("seconds belong to a target in macs")
        return self


@plain_dataclass(frozen=True)
class Goal:
    """A target as a number: ``value`` of ``unit`` (``parameters`` or ``MACs``), as ``measure`` counts them."""

    value: int
    unit: str
    measure: Callable[[Model], int]

    def on_the_way(self, start: int, share: float) -> Goal:
        """The goal of a round: ``share`` of the way from ``start`` to this one."""
        return Goal(round(start + (self.value - start) * share), self.unit, self.measure)

    def told(self, reached: int) -> str:
        """How near a model came, in words."""
        if reached == self.value:
            return f"{reached:,} {self.unit}: exactly the target"
        distance = abs(reached - self.value)
        side = "below" if reached < self.value else "above"
        percent = 100 * distance / self.value
        return f"{reached:,} {self.unit}: {distance:,} ({percent:.2g} %) {side} the target of {self.value:,}"


def goal_of(target: Target, model: Model, context: Context) -> Goal:
    """The number that a target means for ``model``; shares are of ``context.reference``, or the model as it is."""
    from edgecompress import cost

    reference = context.reference or context.source or model
    if target.parameters is not None:
        return Goal(_number(target.parameters, _parameters(reference)), "parameters", _parameters)
    assert target.macs is not None
    length = cost.length_of(model, target.seconds)

    def macs(one: Model) -> int:
        return sum(cost.macs(one, length).values())

    return Goal(_number(target.macs, macs(reference)), "MACs", macs)


def _parameters(model: Model) -> int:
    from edgecompress import cost

    return cost.parameters(model).total


def _number(amount: float, whole: int) -> int:
    return round(amount * whole) if amount <= 1 else round(amount)


def search(
    model: Model,
    goal: Goal,
    order: Sequence[Item],
    cut: Callable[[Model, Sequence[Item]], None],
    group: Callable[[Item], Hashable] | None = None,
) -> list[Item]:
    """What has to go so that ``model`` costs at most ``goal.value``, and as near to it as the ranking allows.

    First the shortest beginning of ``order`` (what matters least comes first) that is enough; then, where ``group`` says
    which items cost the same, those that turn out to fit after all are put back, what matters most first.

    Args:
        model: stays as it is; ``cut`` is tried on its skeletons.
        goal: see :func:`goal_of`.
        order: what may go, each once.
        cut: takes items away from a model, whatever their order.
        group: items of one group cost the same.

    Raises:
        TechniqueError: not even all of ``order`` is enough; it names the least that can be reached.
    """

    def costs(gone: Sequence[Item]) -> int:
        twin = model.skeleton()
        cut(twin, gone)
        return goal.measure(twin)

    whole, least = costs([]), costs(order)
    if whole <= goal.value:
        return []
    if least > goal.value:
        raise TechniqueError(
            f"{goal.value:,} {goal.unit} cannot be reached: with all gone that may go, {least:,} are left",
            hint=f"ask for {least:,} or more, or let another technique go first",
        )
    high = _shortest(len(order), whole, least, goal.value, lambda count: costs(order[:count]))
    gone = list(order[:high])
    return gone if group is None else _put_back(gone, goal.value, costs, group)


def _shortest(count: int, whole: int, least: int, most: int, costs: Callable[[int], int]) -> int:
    """The smallest number from 1 to ``count`` whose ``costs`` are at most ``most``; they fall as it grows.

    Parts cost much the same, so the guess between two costs is a good one; where it is not, the middle is tried.
    """
    low, high, above, below = 0, count, whole, least  # low leaves too much, high is enough
    halve = False
    while high - low > 1:
        guess = (low + high) // 2 if halve else low + round((high - low) * (above - most) / (above - below))
        guess = min(high - 1, max(low + 1, guess))
        before, cost = high - low, costs(guess)
        low, above, high, below = (low, above, guess, cost) if cost <= most else (guess, cost, high, below)
        halve = 2 * (high - low) > before and not halve
    return high


def _put_back(
    gone: list[Item], most: int, costs: Callable[[Sequence[Item]], int], group: Callable[[Item], Hashable]
) -> list[Item]:
    """``gone`` without what still fits. A group of which one did not fit is not tried again."""
    too_dear: set[Hashable] = set()
    for item in reversed(gone):
        if group(item) in too_dear:
            continue
        without = [other for other in gone if other != item]
        if costs(without) <= most:
            gone = without
        else:
            too_dear.add(group(item))
    return gone
