"""Hold an expected cost to a target while something else is trained: an augmented Lagrangian over gates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgecompress.training import Hook

if TYPE_CHECKING:
    from edgecompress.techniques.expected_cost import ExpectedCost
    from edgecompress.techniques.gates import Gates
    from edgecompress.techniques.targets import Goal


class Lagrangian(Hook):
    """``a (s - t) + b (s - t)^2``: s the expected cost, t where it should be now, both as shares of the whole.

    Wang, Wohlwend, Lei, "Structured Pruning of Large Language Models", 2020. Gates go down this penalty, the multipliers
    a and b, from 0, go up it, at the same rate. t goes in a straight line from the model's cost to the goal's over the
    first ``ramp_steps`` steps.
    """

    def __init__(self, gates: Gates, cost: ExpectedCost, goal: Goal, learning_rate: float, ramp_steps: int) -> None:
        self.gates = gates
        self.cost = cost
        self.goal = goal
        self.learning_rate = learning_rate
        self.ramp_steps = ramp_steps
        self.fingerprint = f"{goal.value} {goal.unit} {learning_rate} {ramp_steps}"
        self.whole = cost.of_counts({site.name: len(site.parts) for site in gates.sites})
        self.multipliers = nn.ParameterDict({"linear": torch.zeros(()), "square": torch.zeros(())})

    def modules(self) -> Mapping[str, nn.Module]:
        """What the gates learned, and the multipliers: all that a training needs to go on."""
        return {"gates": self.gates, "multipliers": self.multipliers}

    def groups(self, learning_rate: float) -> list[dict[str, object]]:
        """Rates of their own, and for the multipliers the other direction."""
        return [
            {"params": list(self.gates.parameters()), "lr": self.learning_rate},
            {"params": list(self.multipliers.parameters()), "lr": self.learning_rate, "maximize": True},
        ]

    def wanted(self, step: int) -> float:
        """Where the cost should be at a step, as a share of the whole."""
        share = min(1.0, (step + 1) / self.ramp_steps) if self.ramp_steps else 1.0
        return 1 + (self.goal.value / self.whole - 1) * share

    def share(self) -> torch.Tensor:
        """The expected cost as a share of the whole, a scalar."""
        probabilities = {site.name: self.gates.open_probability(site) for site in self.gates.sites}
        return self.cost.expected(probabilities) / self.whole

    def expected(self) -> float:
        """The expected cost."""
        with torch.no_grad():
            return float(self.share()) * self.whole

    def penalty(self, step: int) -> torch.Tensor:
        """Added to the loss once a step."""
        distance = self.share() - self.wanted(step)
        return self.multipliers["linear"] * distance + self.multipliers["square"] * distance.square()
