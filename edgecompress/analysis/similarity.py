"""How alike hidden states are: linear centred kernel alignment."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def linear_cka(one: torch.Tensor, other: torch.Tensor) -> float:
    """Linear CKA of two sets of features, (frames, width) each of the same frames: 0 to 1.

    Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019. It does not see rotations, one
    scale for all, and shifts. With fewer frames than width it is biased upwards. 0 where either never changes.
    """
    return similarities([one, other])[0][1]


def similarities(states: Sequence[torch.Tensor]) -> list[list[float]]:
    """:func:`linear_cka` of each pair of hidden states."""
    ready = [_centred(state) for state in states]
    own = [_cross(state, state) for state in ready]
    found = [[0.0] * len(ready) for _ in ready]
    for i, one in enumerate(ready):
        for j in range(i, len(ready)):
            scale = (own[i] * own[j]) ** 0.5
            value = (own[i] if i == j else _cross(one, ready[j])) / scale if scale > 0 else 0.0
            found[i][j] = found[j][i] = min(1.0, value)
    return found


def _centred(state: torch.Tensor) -> torch.Tensor:
    """Without its mean, and of norm 1 (so that the fourth powers below stay within float32)."""
    centred = state.double() - state.double().mean(0)
    norm = float(centred.norm())
    return (centred / norm if norm > 1e-12 * float(state.double().norm()) else torch.zeros_like(centred)).float()


def _cross(one: torch.Tensor, other: torch.Tensor) -> float:
    """||other^T one||^2 (Frobenius); by the frames' Gram matrices where that is less work."""
    if len(one) < min(one.shape[1], other.shape[1]):
        return float(((one @ one.T).double() * (other @ other.T).double()).sum())
    return float((other.T @ one).double().square().sum())
