"""In which round each pruning score would remove each head: :class:`PruneHeads` itself, carried on to the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgecompress.techniques.prune_heads import PruneHeads
from edgecompress.techniques.scored import grouped, ranked

if TYPE_CHECKING:
    import torch

    from edgecompress.model import Model
    from edgecompress.techniques import Context

Score = Literal["l1", "activation", "first_order", "reconstruction"]
Scope = Literal["layer", "global"]
SCORES: tuple[Score, ...] = ("l1", "activation", "first_order", "reconstruction")
SCOPES: tuple[Scope, ...] = ("layer", "global")
ORDERS: tuple[tuple[Score, Scope], ...] = tuple((score, scope) for scope in SCOPES for score in SCORES)


@dataclass(frozen=True)
class Survival:
    """By (layer, head), original numbers, the round in which a head goes; ``rounds + 1`` for those that outlive all."""

    rounds: int
    rounds_of: dict[tuple[int, int], int]


def survival(model: Model, context: Context, score: Score, scope: Scope) -> Survival:
    """Prune a copy of ``model`` round by round until each layer has one head left; nothing is trained.

    ``layer`` takes one head of each layer a round, ``global`` as many as there are layers, the lowest of the whole model.
    Each round scores the model as the last one left it, with what the score makes up for what is gone (a bias, a best
    fit), just as the technique does.
    """
    twin = model.clone()
    technique = PruneHeads(ratio=1.0, score=score, scope=scope)
    start = technique.parts(twin)
    gone_in: dict[tuple[int, int], int] = {}
    rounds = 0
    while any(len(heads) > 1 for heads in technique.parts(twin).values()):
        rounds += 1
        left = technique.parts(twin)
        seen = technique.look(twin, context)
        gone = _lowest(left, technique.scores(twin, context, seen), scope, len(start))
        technique.make_up(twin, gone, seen)
        technique.cut(twin, gone)
        gone_in |= {(number, head): rounds for number, heads in gone.items() for head in heads}
    every = [(number, head) for number, heads in start.items() for head in heads]
    return Survival(rounds, {one: gone_in.get(one, rounds + 1) for one in every})


def _lowest(
    left: Mapping[int, Sequence[int]], scores: Mapping[int, torch.Tensor], scope: Scope, count: int
) -> dict[int, list[int]]:
    """The heads of a round, by layer. The best of each layer stays."""
    scores = {number: values.detach().cpu() for number, values in scores.items()}
    if scope == "global":
        return grouped(ranked(left, scores, 1)[:count])
    return {number: [heads[int(scores[number].argmin())]] for number, heads in left.items() if len(heads) > 1}
