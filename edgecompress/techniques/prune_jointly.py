"""Joint pruning and distillation: what goes is learned, over all kinds of parts at once, to a target for the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from edgecompress.errors import TechniqueError
from edgecompress.techniques.targets import Target
from edgecompress.training.settings import Training

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.techniques import Context
    from edgecompress.techniques.expected_cost import ExpectedCost
    from edgecompress.techniques.gates import Gates, Kind, Site
    from edgecompress.techniques.targets import Goal

TOLERANCE = 0.005  # a model whose cost is that share away from the target is where it was asked to be
CLOSE_ENOUGH = 0.001  # filling up ends here: parts that learned to be shut are not worth the last parameter
PUBLISHED_RATE = 0.02
Rate = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class PruneJointly:
    """Learn which front-end channels, heads and feed-forward units to keep, towards a target for the whole model.

    DPHuBERT (Peng et al., 2023): every part gets a Hard-Concrete gate (Louizos et al., 2018), and one training towards
    the objective of ``training`` (hidden states of the source model) moves weights and gates, while an augmented
    Lagrangian holds the expected cost to a target that falls in a straight line over the first ``ramp`` of the steps.
    Then the gates are decided such that the model's cost ends within 0.5 % of ``target``, what the open ones learned is
    multiplied into the weights that read their parts, the shut ones are sliced off, and ``recovery`` trains on without
    gates. ``gate_learning_rate`` is 0.02, as published, and in trainings below 1,000 steps so much higher that a gate can
    go from open to shut before the end. Gates are of the kinds ``parts``;
    a family without a convolutional front end has no channels to lose. ``drop_channels``, ``drop_heads`` and
    ``drop_units`` say what share of each is shut at the beginning.
    """

    target: Target
    training: Training
    recovery: Training | None = None
    parts: tuple[Literal["channels", "heads", "units"], ...] = ("channels", "heads", "units")
    ramp: Annotated[float, Field(ge=0, le=1, description="share of the steps over which the target falls")] = 0.3
    gate_learning_rate: Annotated[float | None, Field(gt=0)] = None
    drop_channels: Rate = 0.01
    drop_heads: Rate = 0.01
    drop_units: Rate = 0.5

    kind: ClassVar[str] = "prune_jointly"
    needs_clips: ClassVar[bool] = False
    needs_corpus: ClassVar[bool] = True

    @model_validator(mode="after")
    def _possible(self) -> PruneJointly:
        if not self.training.steps:
            raise ValueError("gates learn by training: training.steps must be 1 or more")
        if not self.parts or len(set(self.parts)) < len(self.parts):
            raise ValueError("parts names channels, heads and units, each once at most")
        return self

    @property
    def gate_rate(self) -> float:
        """The learning rate of gates and multipliers. Open and shut are 8 of ``log_alpha`` apart, Adam goes a rate a step."""
        return self.gate_learning_rate or max(PUBLISHED_RATE, PUBLISHED_RATE * 1000 / self.training.steps)

    def apply(self, model: Model, context: Context) -> None:
        from edgecompress.techniques.expected_cost import expected_cost
        from edgecompress.techniques.gates import Gates, sites_of
        from edgecompress.techniques.lagrangian import Lagrangian
        from edgecompress.techniques.recovery import recover, seed_of
        from edgecompress.techniques.targets import goal_of

        goal, sites = goal_of(self.target, model, context), sites_of(model, self.parts)
        cost = expected_cost(model, sites, goal.measure)
        _check(goal, cost, sites)
        rates: dict[Kind, float] = {"channels": self.drop_channels, "heads": self.drop_heads, "units": self.drop_units}
        gates = Gates(sites, rates, seed_of(context, f"{self.kind} gates"))
        hook = Lagrangian(gates, cost, goal, self.gate_rate, round(self.ramp * self.training.steps))
        with gates.acting():
            recover(model, context, self.training, self.kind, [hook])
        expected = hook.expected()
        counts = decide(gates, cost, goal.value)
        slice_gates(model, gates, counts)
        context.notes += told(goal, expected, sites, counts, goal.measure(model))
        recover(model, context, self.recovery, f"{self.kind} recovery")


def _check(goal: Goal, cost: ExpectedCost, sites: Sequence[Site]) -> None:
    """Refuse a target before hours are spent on it."""
    if not sites:
        raise TechniqueError("there is nothing left that could have a gate", hint="name other parts")
    whole = cost.of_counts({site.name: len(site.parts) for site in sites})
    least = cost.of_counts({site.name: site.least for site in sites})
    if goal.value > whole:
        raise TechniqueError(
            f"the target of {goal.value:,} {goal.unit} is above the model's {whole:,}", hint="ask for fewer"
        )
    if goal.value < least:
        raise TechniqueError(
            f"{goal.value:,} {goal.unit} cannot be reached: with every gate shut {least:,} are left",
            hint=f"ask for {least:,} or more, name more parts, or let another technique go first",
        )


# --- from what the gates learned to what stays -----------------------------------------------------------------------
def decide(gates: Gates, cost: ExpectedCost, value: int) -> dict[str, int]:
    """How many parts stay at each site, so that the model costs at most ``value``, and as near to it as makes sense.

    As many as are expected to be open there, after all ``log_alpha`` have been moved by one number: next to none where
    the Lagrangian has done its work. Gates that still fit then are opened one by one, the likeliest first. Where that is
    not near enough, since one head is too big a step, one more stays (the likeliest first) and channels and units give
    way.
    """
    ranked = {
        site.name: gates.log_alpha[site.name].detach().sort(descending=True).values.tolist() for site in gates.sites
    }
    plain = best = _fill(ranked, cost, value, _moved(gates, cost, value, {}))
    heads = {name: count for name, count in plain.items() if name.startswith("heads")}
    waiting = [name for name, count in heads.items() if count < len(ranked[name])]
    for name in sorted(waiting, key=lambda name: -ranked[name][plain[name]]):
        if value - cost.of_counts(best) <= TOLERANCE * value:
            break
        other = _fill(ranked, cost, value, _moved(gates, cost, value, {**heads, name: heads[name] + 1}))
        if cost.of_counts(best) < cost.of_counts(other) <= value:
            best = other
    return best


def _moved(gates: Gates, cost: ExpectedCost, value: int, fixed: Mapping[str, int]) -> dict[str, int]:
    """Expected counts, but for those that are fixed, with all ``log_alpha`` moved so that the cost is just not above."""
    low, high = -40.0, 40.0  # moved by low everything is shut; 50 halvings of 80 are finer than float32
    for _ in range(50):
        middle = (low + high) / 2
        if cost.of_counts({**_expected_counts(gates, middle), **fixed}) <= value:
            low = middle
        else:
            high = middle
    return {**_expected_counts(gates, low), **fixed}


def _fill(
    ranked: Mapping[str, Sequence[float]], cost: ExpectedCost, value: int, counts: dict[str, int]
) -> dict[str, int]:
    """``counts`` and what still fits, the likeliest gate first."""
    full: set[str] = set()
    now = cost.of_counts(counts)
    while value - now > CLOSE_ENOUGH * value:
        waiting = [name for name, count in counts.items() if count < len(ranked[name]) and name not in full]
        if not waiting:
            break
        best = max(waiting, key=lambda name: ranked[name][counts[name]])
        more = {**counts, best: counts[best] + 1}
        if (then := cost.of_counts(more)) <= value:
            counts, now = more, then
        else:
            full.add(best)  # nothing that opens later makes room for it
    return counts


def _expected_counts(gates: Gates, moved: float) -> dict[str, int]:
    from edgecompress.techniques.gates import SHUT_BELOW

    counts = {}
    for site in gates.sites:
        open_share = (gates.log_alpha[site.name].detach().double() + moved - SHUT_BELOW).sigmoid()
        counts[site.name] = max(site.least, round(float(open_share.sum())))
    return counts


def slice_gates(model: Model, gates: Gates, counts: Mapping[str, int]) -> None:
    """Multiply the gates that stay into the weights, and slice the others off."""
    from edgecompress.techniques.gates import fold

    for site in gates.sites:
        order = gates.log_alpha[site.name].detach().sort(descending=True, stable=True).indices.tolist()
        fold(site, gates.in_use(site))
        site.keep(model, sorted(order[: counts[site.name]]))


def told(goal: Goal, expected: float, sites: Sequence[Site], counts: Mapping[str, int], reached: int) -> list[str]:
    """What a reader must know: the target, what was reached, and what is left of each kind."""
    kinds = list(dict.fromkeys(site.kind for site in sites))
    left = [
        f"{sum(counts[site.name] for site in sites if site.kind == kind):,} of "
        f"{sum(len(site.parts) for site in sites if site.kind == kind):,} {kind}"
        for kind in kinds
    ]
    far = "" if abs(reached - goal.value) <= TOLERANCE * goal.value else "; the parts are too big to come nearer"
    return [
        f"{goal.told(reached)}{far}; the gates expected {expected:,.0f} when they were decided",
        f"left: {', '.join(left)}",
    ]
