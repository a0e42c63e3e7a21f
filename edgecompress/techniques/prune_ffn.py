"""FFN row pruning: hidden units of the feed-forward networks that matter least are cut out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgecompress.techniques.prune_heads import choose, fold_mean

if TYPE_CHECKING:
    import torch

    from edgecompress.model import Model
    from edgecompress.model.layer import Layer
    from edgecompress.techniques import Context
    from edgecompress.techniques.statistics import Moments


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PruneFfn:
    """Remove the feed-forward units that matter least and slice both matrices.

    Scores: ``l1``, the absolute sum of a unit's row of the first matrix, its bias and its column of the second
    (row pruning, Lin et al., 2022, who call it low-rank approximation); ``first_order``, |activation . gradient|;
    ``activation``, the root mean square of the unit's activation on calibration audio times the norm of its column,
    with the mean of what is removed folded into the output bias. ``scope`` as in ``prune_heads``.
    A layer that loses all units keeps its output bias.
    """

    kind: ClassVar[str] = "prune_ffn"
    ratio: Annotated[float, Field(gt=0, le=1, description="share of the units that are removed")]
    score: Literal["l1", "first_order", "activation"] = "l1"
    scope: Literal["layer", "global"] = "layer"
    compensate: Annotated[
        bool | None, Field(description="fold the mean of what is removed into the bias; default: with score activation")
    ] = None

    @property
    def compensates(self) -> bool:
        """Whether the mean of what is removed is folded into the bias."""
        return self.score == "activation" if self.compensate is None else self.compensate

    @property
    def needs_clips(self) -> bool:
        """Whether calibration audio is looked at."""
        return self.compensates or self.score != "l1"

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
