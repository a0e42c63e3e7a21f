"""Head pruning: attention heads that matter least are cut out."""

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
class PruneHeads(ScoredPruning):
    """Remove the attention heads that matter least and slice the matrices.

    Scores: ``l1``, the absolute sum of a head's rows of W_q, W_k, W_v and their biases (Lin et al., 2022);
    ``first_order``, |activation . gradient| per frame, normalised by layer (Michel et al., 2019; Lin et al.);
    ``activation``, the variance of what the head adds to its layer on calibration audio, with the mean of what
    is removed folded into the output bias; ``reconstruction``, the error that is left on calibration audio once the
    other heads make up for it as well as they can, which they then do (``least_squares``; ZipLM, Kurtic et al., 2023).
    ``scope = "layer"`` takes the same share from every layer;
    ``"global"`` ranks all heads of the model, normalised by layer, and keeps the best head of each layer.
    A layer that loses all heads keeps its output bias. A head has its original number in every round and every record:
    ``rounds = [0.25, 0.5]`` with a ``recovery`` takes 72 heads to 54, lets the model recover, and takes them to 36.
    """

    kind: ClassVar[str] = "prune_heads"
    noun: ClassVar[str] = "heads"

    def parts(self, model: Model) -> dict[int, tuple[int, ...]]:
        return {layer.number: tuple(layer.heads) for layer in model.layers if layer.heads}

    def look(self, model: Model, context: Context) -> dict[tuple[int, str], Moments]:
        from edgecompress.techniques.statistics import moments

        if self.compensation is None and self.score not in ("activation", "reconstruction"):
            return {}
        return moments(model, context, self.kind, [(layer, "out_proj") for layer in _with_heads(model)])

    def scores(self, model: Model, context: Context, seen: dict[tuple[int, str], Moments]) -> dict[int, torch.Tensor]:
        return head_scores(model, _with_heads(model), self.score, context, seen)

    def make_up(self, model: Model, gone: Parts, seen: dict[tuple[int, str], Moments]) -> None:
        if self.compensation is None:
            return
        for number, heads in gone.items():
            layer = model.layer(number)
            width = layer.attention.head_dim
            places = [layer.heads.index(head) for head in heads]
            columns = [place * width + i for place in places for i in range(width)]
            make_up(layer, "out_proj", columns, seen[number, "out_proj"], self.compensation)

    def cut(self, model: Model, gone: Parts) -> None:
        for number, heads in gone.items():
            model.keep_heads(number, without(model.layer(number).heads, heads))


def _with_heads(model: Model) -> list[Layer]:
    return [layer for layer in model.layers if layer.heads]


def head_scores(
    model: Model, layers: list[Layer], score: str, context: Context, seen: dict[tuple[int, str], Moments]
) -> dict[int, torch.Tensor]:
    """One score (heads left,) a layer; the higher, the more it matters."""
    import torch

    from edgecompress.model.linear import bias_of, dense_weight
    from edgecompress.techniques.compensation import reconstruction
    from edgecompress.techniques.statistics import first_order

    if score == "reconstruction":
        return {
            layer.number: reconstruction(layer, "out_proj", layer.attention.head_dim, seen[layer.number, "out_proj"])
            for layer in layers
        }
    if score == "first_order":
        raw = first_order(
            model, context, PruneHeads.kind, "out_proj", layers, layers[0].attention.head_dim if layers else 1
        )
        return {number: values / (values.norm() + 1e-20) for number, values in raw.items()}
    scores = {}
    with torch.no_grad():
        for layer in layers:
            heads, width = len(layer.heads), layer.attention.head_dim
            if score == "l1":
                total = torch.zeros(heads, dtype=torch.float64)
                for name in ("q_proj", "k_proj", "v_proj"):
                    matrix = layer.matrix(name)
                    total += dense_weight(matrix).abs().double().sum(1).view(heads, width).sum(1)
                    bias = bias_of(matrix)
                    if bias is not None:
                        total += bias.abs().double().view(heads, width).sum(1)
                scores[layer.number] = total
            else:
                weight = dense_weight(layer.matrix("out_proj")).double().view(-1, heads, width)
                covariance = seen[layer.number, "out_proj"].covariance
                blocks = torch.stack(
                    [covariance[i * width : (i + 1) * width, i * width : (i + 1) * width] for i in range(heads)]
                )
                scores[layer.number] = torch.einsum("ohi,hij,ohj->h", weight, blocks, weight)
    return scores
