"""FFN row pruning: hidden units of the feed-forward networks that matter least are cut out."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgecompress.techniques.scored import ScoredPruning, make_up, without

if TYPE_CHECKING:
    import torch

    from edgecompress.model import Model
    from edgecompress.model.layer import Layer
    from edgecompress.techniques import Context
    from edgecompress.techniques.scored import Parts
    from edgecompress.techniques.statistics import Moments


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class PruneFfn(ScoredPruning):
    """Remove the feed-forward units that matter least and slice both matrices.

    Scores: ``l1``, the absolute sum of a unit's row of the first matrix, its bias and its column of the second
    (row pruning, Lin et al., 2022, who call it low-rank approximation); ``first_order``, |activation . gradient|;
    ``activation``, the root mean square of the unit's activation on calibration audio times the norm of its column,
    with the mean of what is removed folded into the output bias; ``reconstruction``, the error that is left on
    calibration audio once the others make up for the unit as well as they can, which they then do (``least_squares``).
    ``scope`` as in ``prune_heads``. A layer that loses all units keeps its output bias. ``rounds`` as in ``prune_heads``:
    with ``ratio = 0.8333`` and ``rounds = 20``, 3,072 units become 512 in steps of 128.
    """

    kind: ClassVar[str] = "prune_ffn"
    noun: ClassVar[str] = "feed-forward units"

    def parts(self, model: Model) -> dict[int, tuple[int, ...]]:
        return {layer.number: tuple(layer.units) for layer in model.layers if layer.units}

    def look(self, model: Model, context: Context) -> dict[tuple[int, str], Moments]:
        from edgecompress.techniques.statistics import moments

        if self.compensation is None and self.score not in ("activation", "reconstruction"):
            return {}
        targets = [(layer, "down") for layer in _with_units(model)]
        joint = self.compensation == "least_squares" or self.score == "reconstruction"
        return moments(model, context, self.kind, targets, joint=joint)

    def scores(self, model: Model, context: Context, seen: dict[tuple[int, str], Moments]) -> dict[int, torch.Tensor]:
        return unit_scores(model, _with_units(model), self.score, context, seen)

    def make_up(self, model: Model, gone: Parts, seen: dict[tuple[int, str], Moments]) -> None:
        if self.compensation is None:
            return
        for number, units in gone.items():
            layer = model.layer(number)
            place = {unit: i for i, unit in enumerate(layer.units)}
            make_up(layer, "down", [place[unit] for unit in units], seen[number, "down"], self.compensation)

    def cut(self, model: Model, gone: Parts) -> None:
        for number, units in gone.items():
            model.keep_units(number, without(model.layer(number).units, units))


def _with_units(model: Model) -> list[Layer]:
    return [layer for layer in model.layers if layer.units]


def unit_scores(
    model: Model, layers: list[Layer], score: str, context: Context, seen: dict[tuple[int, str], Moments]
) -> dict[int, torch.Tensor]:
    """One score (units left,) a layer; the higher, the more it matters."""
    import torch

    from edgecompress.model.linear import bias_of, dense_weight
    from edgecompress.techniques.compensation import reconstruction
    from edgecompress.techniques.statistics import first_order

    if score == "reconstruction":
        return {layer.number: reconstruction(layer, "down", 1, seen[layer.number, "down"]) for layer in layers}
    if score == "first_order":
        raw = first_order(model, context, PruneFfn.kind, "down", layers, 1)
        return {number: values / (values.norm() + 1e-20) for number, values in raw.items()}
    scores = {}
    with torch.no_grad():
        for layer in layers:
            up, down = dense_weight(layer.up).double(), dense_weight(layer.down).double()
            if score == "l1":
                total = up.abs().sum(1) + down.abs().sum(0)
                bias = bias_of(layer.up)
                scores[layer.number] = total if bias is None else total + bias.abs().double()
            else:
                rms = seen[layer.number, "down"].mean_square.clamp(min=0).sqrt()
                scores[layer.number] = rms * down.norm(dim=0)
    return scores
