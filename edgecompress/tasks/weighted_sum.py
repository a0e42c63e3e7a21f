"""A linear classifier on a learned weighted sum of an encoder's layers: how SUPERB listens to a frozen model.

Yang et al., "SUPERB: Speech processing Universal PERformance Benchmark", 2021: one softmax weight a hidden state, one
linear map. Both are fitted together; the encoder is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy

ITERATIONS = 100  # of L-BFGS; on 2,000 clips the loss moves in the fourth digit after 60
FLAT = 1e-5  # a deviation below this is a dead unit: left at zero, not blown up


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of each layer's units over training data: (states, width) each."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Standardised states; ``states`` ends in (states, width)."""
        return (states - self.mean) / self.deviation

    @classmethod
    def of(cls, states: torch.Tensor) -> Scale:
        """From training states (n, states, width)."""
        deviation = states.std(dim=0, correction=0)
        return cls(states.mean(dim=0), torch.where(deviation > FLAT, deviation, torch.inf))


@dataclass(frozen=True)
class Probe:
    """A fitted probe: ``shares`` says how much of each hidden state it listens to; they sum to one."""

    scale: Scale
    shares: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def logits(self, states: np.ndarray) -> torch.Tensor:
        """(clips, states, width) -> (clips, classes)."""
        mixed = torch.einsum("nsd,s->nd", self.scale(torch.from_numpy(states)), self.shares)
        return mixed @ self.weight + self.bias

    def says(self, states: np.ndarray) -> np.ndarray:
        """The likeliest class of each clip, (clips,)."""
        return self.logits(states).argmax(dim=1).numpy()


def fit(states: np.ndarray, labels: np.ndarray, classes: int, penalty: float) -> Probe:
    """Fit a probe on (clips, states, width) and class numbers (clips,), by full-batch L-BFGS from zero: no chance in it.

    ``penalty`` times half the squared weights is added to the summed cross-entropy (the inverse of scikit-learn's C).
    """
    values, wanted = torch.from_numpy(states), torch.from_numpy(labels)
    scale = Scale.of(values)
    clips, layers, width = values.shape
    flat = scale(values).transpose(0, 1).reshape(layers, clips * width).contiguous()  # one matrix-vector product a step
    mix = torch.zeros(layers, requires_grad=True)
    weight = torch.zeros(width, classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [mix, weight, bias], max_iter=ITERATIONS, history_size=20, line_search_fn="strong_wolfe", tolerance_change=1e-7
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        mixed = (torch.softmax(mix, dim=0) @ flat).view(clips, width)
        loss = cross_entropy(mixed @ weight + bias, wanted) + 0.5 * penalty / clips * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return Probe(scale, torch.softmax(mix, dim=0).detach(), weight.detach(), bias.detach())
