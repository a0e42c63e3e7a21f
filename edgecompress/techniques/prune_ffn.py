"""FFN row pruning: hidden units of the feed-forward networks that matter least are cut out."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgecompress.techniques.scored import ScoredPruning, choose, fold_mean

if TYPE_CHECKING:
    import torch

    from edgecompress.model import Model
    from edgecompress.model.layer import Layer
    from edgecompress.techniques import Context
    from edgecompress.techniques.statistics import Moments


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class PruneFfn(ScoredPruning):
    """Remove the feed-forward units that matter least and slice both matrices.

    Scores: ``l1``, the absolute sum of a unit's row of the first matrix, its bias and its column of the second
    (row pruning, Lin et al., 2022, who call it low-rank approximation); ``first_order``, |activation . gradient|;
    ``activation``, the root mean square of the unit's activation on calibration audio times the norm of its column,
    with the mean of what is removed folded into the output bias. ``scope`` as in ``prune_heads``.
    A layer that loses all units keeps its output bias.
    """

    kind: ClassVar[str] = "prune_ffn"

    def apply(self, model: Model, context: Context) -> None:
        from edgecompress.techniques.statistics import moments

        layers = [layer for layer in model.layers if layer.units]
        needs_moments = self.compensates or self.score == "activation"
        targets = [(layer, "down") for layer in layers] if needs_moments else []
        seen = moments(model, context, self.kind, targets, joint=False) if targets else {}
        scores = unit_scores(model, layers, self.score, context, seen)
        for layer, removed in choose(layers, scores, self.ratio, self.scope).items():
            if self.compensates:
                fold_mean(layer, "down", removed, seen[layer.number, "down"].mean)
            gone = {layer.units[place] for place in removed}
            model.keep_units(layer.number, [unit for unit in layer.units if unit not in gone])


def unit_scores(
    model: Model, layers: list[Layer], score: str, context: Context, seen: dict[tuple[int, str], Moments]
) -> dict[int, torch.Tensor]:
    """One score (units left,) a layer; the higher, the more it matters."""
    import torch

    from edgecompress.model.linear import bias_of, dense_weight
    from edgecompress.techniques.statistics import first_order

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
