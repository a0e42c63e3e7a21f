"""What an analysis means: categories of heads, and whether those of a kind survive pruning longer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from edgecompress.analysis.record import Analysis, Head
from edgecompress.stats import Estimate, spearman

CATEGORIES = {"diagonal": "diagonality", "vertical": "verticality", "global": "globalness"}


@dataclass(frozen=True)
class Relation:
    """Spearman's rank correlation of a measure with the round of removal: 1 is "the more of it, the longer it stays".

    ``pooled`` is over all heads of the model; ``within`` over their ranks within their layers, so that what only tells
    layers apart does not count. None where a side is constant.
    """

    measure: str
    order: str
    pooled: Estimate | None
    within: Estimate | None


def order_name(order: str) -> str:
    """``l1_layer`` as people say it: ``l1, per layer``."""
    score, _, scope = order.rpartition("_")
    return f"{score.replace('_', ' ')}, {'per layer' if scope == 'layer' else scope}"


def categories(heads: Sequence[Head]) -> list[str]:
    """``diagonal``, ``vertical`` or ``global``: where the head ranks highest among all heads (Yang, Liu & Lee, 2020).

    In a tie the first of the three.
    """
    from scipy.stats import rankdata

    ranks = {kind: rankdata([getattr(head, name) for head in heads]) for kind, name in CATEGORIES.items()}
    return [max(CATEGORIES, key=lambda kind: ranks[kind][place]) for place in range(len(heads))]


def relations(found: Analysis) -> list[Relation]:
    """Each of the three measures against each order."""
    return [_relation(found.heads, measure, order) for measure in CATEGORIES.values() for order in found.rounds]


def _relation(heads: Sequence[Head], measure: str, order: str) -> Relation:
    pairs = [(head.layer, float(getattr(head, measure)), float(head.survival[order])) for head in heads]
    pooled = spearman([value for _, value, _ in pairs], [life for _, _, life in pairs])
    inside = []
    for layer in dict.fromkeys(layer for layer, _, _ in pairs):
        own = [(value, life) for number, value, life in pairs if number == layer]
        if len(own) > 1:
            inside += list(zip(*(_places(side) for side in zip(*own, strict=True)), strict=True))
    within = spearman([value for value, _ in inside], [life for _, life in inside])
    return Relation(measure, order, pooled, within)


def _places(values: Sequence[float]) -> list[float]:
    """Ranks from the middle one, as shares of their number: comparable between layers of different sizes."""
    from scipy.stats import rankdata

    middle = (len(values) + 1) / 2
    return [round((float(rank) - middle) / len(values), 9) for rank in rankdata(values)]


def told(estimate: Estimate | None) -> str:
    """``0.41 [0.20, 0.59], n = 72``."""
    from edgecompress.report import formats

    if estimate is None:
        return "not defined (a side is constant)"
    return f"{formats.with_interval(estimate, 2)}{'' if estimate.has_interval else ' (too few for an interval)'}, n = {estimate.n}"


def answer(found: Analysis, related: Sequence[Relation]) -> str:
    """One sentence: do diagonal heads survive longer?"""
    asked = [one for one in related if one.measure == "diagonality"]
    inside = _tally([one.within for one in asked])
    return (
        f"Do diagonal heads survive longer? Of {len(asked)} pruning orders over {len(found.heads)} heads: "
        f"{_tally([one.pooled for one in asked])}; with heads ranked within their layers: {inside}."
    )


def _tally(estimates: Sequence[Estimate | None]) -> str:
    longer = sum(one is not None and one.low is not None and one.low > 0 for one in estimates)
    shorter = sum(one is not None and one.high is not None and one.high < 0 for one in estimates)
    return f"longer by {longer}, shorter by {shorter}, undecided by {len(estimates) - longer - shorter}"


def details(found: Analysis, related: Sequence[Relation]) -> list[str]:
    """One sentence an order, and one on the categories."""
    lines = [
        f"{order_name(one.order)}: rank correlation of diagonality with the round of removal {told(one.pooled)}; "
        f"within layers {told(one.within)}."
        for one in related
        if one.measure == "diagonality"
    ]
    counted = Counter(categories(found.heads))
    kinds = ", ".join(f"{counted[kind]} {kind}" for kind in CATEGORIES)
    return [*lines, f"By rank among all {len(found.heads)} heads: {kinds}."]


def cautions(found: Analysis) -> list[str]:
    """What a reader of the numbers must know."""
    said = []
    if found.compared_frames < 2 * found.width:
        said.append(
            f"CKA over {found.compared_frames} frames of width {found.width} is biased upwards: give more audio."
        )
    padding = max(head.padding for head in found.heads)
    if padding > 0:
        said.append(
            f"Up to {100 * padding:.0f} % of a head's attention goes to padding; maps are judged by what is left of it."
        )
    return said
