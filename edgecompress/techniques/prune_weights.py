"""Weight pruning: the least important weights of all encoder layers become zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from edgecompress.errors import TechniqueError
from edgecompress.techniques.rounds import InRounds, carry_out, check_amount, trainings_of

if TYPE_CHECKING:
    import torch

    from edgecompress.model import Model
    from edgecompress.techniques import Context
    from edgecompress.techniques.sparsity import Piece


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class PruneWeights(InRounds):
    """Set the least important ``ratio`` of all weights and biases of attention and feed-forward networks to zero.

    ``score = "magnitude"``: the size of a weight; layers compete with each other, biases with weights (``scope`` global;
    Lin et al., 2022). ``score = "activation"``: its size times the root mean square of its input on calibration audio,
    the same share of every output's row (``scope`` row); biases stay (Wanda, Sun et al., 2023). ``scope = "layer"`` takes
    the same share of every layer. ``pattern = "2:4"`` keeps 2 of every 4 neighbours along each matrix's inputs instead.

    With a ``recovery`` zeros are held while the others train, and the optimiser keeps what it remembers through all
    rounds. ``converged`` puts a round off by another recovery while the smoothed loss still falls by more than that,
    at most ``patience`` times. A ``target`` in parameters counts those that are not zero, and is met exactly.

    The zeros are real zeros in dense tensors: parameters that are not zero shrink, multiply-accumulates of a dense
    runtime and its latency do not. The training of a later technique does not hold them: let this one come last.
    """

    kind: ClassVar[str] = "prune_weights"
    score: Literal["magnitude", "activation"] = "magnitude"
    scope: Annotated[
        Literal["global", "layer", "row"] | None, Field(description="default: global; row with score activation")
    ] = None
    pattern: Annotated[str | None, Field(pattern=r"^[1-9]\d?:[1-9]\d?$", description="for example 2:4")] = None
    converged: Annotated[float | None, Field(gt=0, description="fall of the loss that puts a round off")] = None
    patience: Annotated[int, Field(ge=1, description="times that a round is put off at most")] = 3

    @model_validator(mode="after")
    def _one_amount(self) -> PruneWeights:
        check_amount(self, otherwise=self.pattern is not None)
        if self.pattern is not None:
            keep, of = self._kept
            if keep >= of:
                raise ValueError(f"pattern {self.pattern} would leave every weight")
            if self.scope is not None:
                raise ValueError("a pattern has no scope: it is the same everywhere")
            if self.rounds != 1:
                raise ValueError("a pattern is reached at once: leave rounds out")
        if self.pattern is None and max(self.shares) >= 1 and self.target is None:
            raise ValueError("a ratio of 1 would leave no weight")
        if self.target is not None and self.target.macs is not None:
            raise ValueError("zeros do not change the MACs of a dense model: give a target in parameters")
        if self.converged is not None and not self.needs_corpus:
            raise ValueError("converged looks at the loss of a recovery, and there is none")
        return self

    @property
    def needs_clips(self) -> bool:
        """Whether calibration audio is looked at."""
        return self.score == "activation"

    @property
    def _kept(self) -> tuple[int, int]:
        keep, of = (self.pattern or "1:1").split(":")
        return int(keep), int(of)

    @property
    def shares(self) -> list[float]:
        if self.pattern is not None:
            return [1 - self._kept[0] / self._kept[1]]
        return super().shares

    def apply(self, model: Model, context: Context) -> None:
        if not self._pieces(model):
            raise TechniqueError("no weights are left to prune", hint="leave this step out")
        _Pruning(self, model, context).go()

    def _pieces(self, model: Model) -> list[Piece]:
        from edgecompress.techniques.sparsity import pieces_of

        pieces = pieces_of(model)
        only_matrices = self.score == "activation" or self.pattern is not None
        return [piece for piece in pieces if piece.is_matrix] if only_matrices else pieces

    def _scores(self, model: Model, context: Context, pieces: list[Piece]) -> list[torch.Tensor]:
        """One score a weight, in its tensor's shape; its size counts, not its sign."""
        weights = [piece.tensor.detach() for piece in pieces]
        if self.score == "magnitude":
            return weights  # masks look at sizes, without a copy of the model
        from edgecompress.techniques.sparsity import input_norms

        norms = input_norms(model, context, self.kind, pieces)
        return [weight * norms[piece.module] for weight, piece in zip(weights, pieces, strict=True)]

    def _zeros(self, pieces: list[Piece], scores: list[torch.Tensor], count: int) -> list[torch.Tensor]:
        """Masks of exactly ``count`` weights (but for a pattern, which knows how many)."""
        from edgecompress.techniques import sparsity

        if self.pattern is not None:
            return [sparsity.lowest_of_groups(score, *self._kept) for score in scores]
        scope = self.scope or ("row" if self.score == "activation" else "global")
        if scope == "global":
            return sparsity.smallest_of_all(scores, count)
        if scope == "row":
            return sparsity.smallest_of_rows(scores, count)
        layers = sorted({piece.layer for piece in pieces})
        groups = [[score for piece, score in zip(pieces, scores, strict=True) if piece.layer == one] for one in layers]
        masks = {one: iter(each) for one, each in zip(layers, sparsity.smallest_of_each(groups, count), strict=True)}
        return [next(masks[piece.layer]) for piece in pieces]


class _Pruning:
    """One technique at work on one model: what is zero now, and what the optimiser remembers."""

    def __init__(self, technique: PruneWeights, model: Model, context: Context) -> None:
        from edgecompress.techniques.sparsity import nonzero

        self.technique, self.model, self.context = technique, model, context
        pieces = technique._pieces(model)
        self.total = sum(piece.tensor.numel() for piece in pieces)
        self.first = self.total - nonzero(piece.tensor for piece in pieces)
        self.last = None if technique.target is None else self._zeros_for_target()
        self.zeros: list[torch.Tensor] = []
        self.count = self.first
        self.remembered: Mapping[str, Mapping[str, torch.Tensor]] | None = None

    def go(self) -> None:
        """All rounds."""
        from edgecompress import cost
        from edgecompress.techniques.targets import goal_of

        carry_out(self.technique, self.model, self.context, self.remove, self.recover, remember=True)
        self.context.notes.append(
            f"{self.count:,} of {self.total:,} prunable weights are zero; dense runtimes do not use zeros"
        )
        if self.technique.target is not None:
            goal = goal_of(self.technique.target, self.model, self.context)
            self.context.notes.append(goal.told(cost.parameters(self.model).nonzero))

    def _zeros_for_target(self) -> int:
        """How many of the prunable weights have to be zero so that as many parameters as asked are not."""
        from edgecompress import cost
        from edgecompress.techniques.targets import goal_of

        assert self.technique.target is not None
        wanted = goal_of(self.technique.target, self.model, self.context).value
        now = cost.parameters(self.model).nonzero
        least = now - (self.total - self.first)
        if wanted < least:
            raise TechniqueError(
                f"{wanted:,} parameters cannot be reached: with all prunable weights zero, {least:,} are left",
                hint=f"ask for {least:,} or more, or let another technique go first",
            )
        return max(self.first, self.first + now - wanted)

    def remove(self, share: float) -> dict[str, Any]:
        """Set weights to zero until ``share`` (of all, or of the way to the target) is."""
        from edgecompress.techniques.sparsity import nonzero

        technique = self.technique
        count = round(share * self.total) if self.last is None else round(self.first + (self.last - self.first) * share)
        pieces = technique._pieces(self.model)
        self.zeros = technique._zeros(pieces, technique._scores(self.model, self.context, pieces), count)
        self.count = nonzero(self.zeros)
        for piece, zero in zip(pieces, self.zeros, strict=True):
            piece.tensor.detach().masked_fill_(zero, 0.0)
        if technique.pattern is not None and (rest := self._rest(pieces)):
            self.context.notes.append(f"{rest:,} weights at the ends of rows fill no whole group and stay")
        return {"zeros": self.count, "weights": self.total}

    def _rest(self, pieces: list[Piece]) -> int:
        of = self.technique._kept[1]
        return sum(piece.tensor.shape[0] * (piece.tensor.shape[1] % of) for piece in pieces)

    def recover(self, number: int) -> None:
        """Train with the zeros held; again, while the loss still falls and another round would come."""
        from edgecompress.techniques.recovery import recover
        from edgecompress.techniques.sparsity import HeldMasks, falls

        technique, context = self.technique, self.context
        if not technique.needs_corpus:
            return
        if self.remembered is None and number > 1:
            self.remembered = _remembered(context, number - 1)
        tensors = [piece.tensor for piece in technique._pieces(self.model)]
        names = [f"round-{number}", *(f"round-{number}-again-{n}" for n in range(1, technique.patience + 1))]
        for name in names:
            held = HeldMasks(tensors, self.zeros)
            history = recover(self.model, context, technique.recovery, name, [held], optimizer_state=self.remembered)
            assert history is not None
            self.remembered = history.optimizer_state
            gated = technique.converged is not None and number < len(technique.shares)
            if not gated or not falls([point[1] for point in history.losses], technique.converged or 0.0):
                return
            if name != names[-1]:
                context.notes.append(f"{name}: the loss still falls by more than {technique.converged:g}, once more")
        context.notes.append(f"round {number}: the loss still falls, but it was put off {technique.patience} times")


def _remembered(context: Context, number: int) -> Mapping[str, Mapping[str, torch.Tensor]] | None:
    """What the optimiser remembered after a round, from the state of its last training."""
    from edgecompress.training.checkpoints import OPTIMIZER, PLACES, load_optimizer_state

    for folder in reversed(trainings_of(context, number)):
        for place in PLACES:
            if (folder / place / OPTIMIZER).exists():
                return load_optimizer_state(folder / place)
    return None
