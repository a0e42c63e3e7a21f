"""Low rank: matrices become products of two thin ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from edgecompress.errors import TechniqueError
from edgecompress.techniques.rounds import InRounds, aim, carry_out, check_ascending

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.layer import Layer
    from edgecompress.techniques import Context
    from edgecompress.techniques.spectra import Place, Ranks


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Factorize(InRounds):
    """Replace matrices by products of low rank, which saves only below the break-even in*out / (in + out).

    ``by = "weights"``: singular value decomposition of the matrix (Eckart and Young, 1936). ``by = "activations"``:
    principal components of what the matrix says on calibration audio, with the mean kept exactly (LiteASR, 2025).
    ``matrices``: ``"ffn"`` (both matrices of the feed-forward network), ``"attention"`` (its four), or ``"all"``.

    One of: ``rank``, the same everywhere; ``energy``, the share of the squared singular values (of the variance, by
    activations) that each matrix keeps; ``ratio``, the share of these matrices' weights that goes, ``target``, what the
    whole model may cost, or a list of ``rounds`` as of ratios: ranks then differ, and the directions that hold the least of
    their matrix's energy for each weight they cost go first, wherever they are. A matrix whose rank would not be below the
    break-even stays whole.
    """

    kind: ClassVar[str] = "factorize"
    rank: Annotated[int | None, Field(ge=1, description="rank of the products")] = None
    energy: Annotated[float | None, Field(gt=0, lt=1, description="share of each matrix's energy that is kept")] = None
    by: Literal["weights", "activations"] = "weights"
    matrices: Literal["ffn", "attention", "all"] = "ffn"

    @model_validator(mode="after")
    def _one_amount(self) -> Factorize:
        listed = isinstance(self.rounds, tuple)
        amounts = [self.rank, self.energy, self.ratio, self.target, self.rounds if listed else None]
        if sum(amount is not None for amount in amounts) != 1:
            raise ValueError("give one of rank, energy, ratio, target, or a list of rounds")
        if (self.rank or self.energy) and self.rounds != 1:
            raise ValueError("rounds go with a ratio or a target: a rank or an energy is reached at once")
        check_ascending(self)
        return self

    @property
    def needs_clips(self) -> bool:
        """Whether calibration audio is looked at."""
        return self.by == "activations"

    def apply(self, model: Model, context: Context) -> None:
        from edgecompress.techniques.spectra import weights_of

        places = self._places(model)
        if self.rank is not None:
            refuse_growth(places, self.rank)
        aimed, start = aim(self, model, context), sum(weights_of(layer, name) for layer, name in places)

        def remove(share: float) -> dict[str, Any]:
            now = self._places(model)  # a training in between may have begun with a model read from disk
            if aimed is not None:
                goal = aimed[0].on_the_way(aimed[1], share)
                return self._factor(model, context, now, lambda spectra: spectra.for_goal(model, goal))
            if self.rank is None and self.energy is None:
                excess = sum(weights_of(layer, name) for layer, name in now) - start * (1 - share)
                return self._factor(model, context, now, lambda spectra: spectra.for_saving(excess))
            rank, energy = self.rank, self.energy or 0.0
            return self._factor(
                model,
                context,
                now,
                lambda spectra: dict.fromkeys(spectra.places, rank) if rank else spectra.for_energy(energy),
            )

        carry_out(self, model, context, remove)
        if aimed is not None:
            context.notes.append(aimed[0].told(aimed[0].measure(model)))

    def _places(self, model: Model) -> list[tuple[Layer, str]]:
        """The matrices that are meant, of all layers: those that an emptied block has left are none."""
        from edgecompress.model.layer import ATTENTION_MATRICES, FFN_MATRICES

        known = {"ffn": FFN_MATRICES, "attention": ATTENTION_MATRICES, "all": (*ATTENTION_MATRICES, *FFN_MATRICES)}
        return [
            (layer, name)
            for layer in model.layers
            for name in known[self.matrices]
            if layer.matrix(name).in_features and layer.matrix(name).out_features
        ]

    def _factor(self, model: Model, context: Context, places: list[tuple[Layer, str]], choose: Any) -> dict[str, Any]:
        """Look at all matrices, choose a rank for each, and put the products in their places."""
        from edgecompress.techniques.spectra import Spectra

        spectra = Spectra.by(self.by, model, context, self.kind, places)
        ranks: Ranks = choose(spectra)
        for place, rank in ranks.items():
            spectra.put(model, place, rank)
        if self.rank is None:
            context.notes.append(_told(ranks, spectra.places))
        return {"ranks": {f"{number}.{name}": rank for (number, name), rank in ranks.items()}}


def _told(ranks: Ranks, places: list[Place]) -> str:
    if not ranks:
        return f"none of {len(places)} matrices is factored: nothing would be saved"
    return f"{len(ranks)} of {len(places)} matrices factored, rank {min(ranks.values())} to {max(ranks.values())}"


def break_even(in_features: int, out_features: int) -> int:
    """The greatest rank at which two thin matrices hold fewer weights than the one they replace."""
    return (in_features * out_features - 1) // (in_features + out_features)


def refuse_growth(places: list[tuple[Layer, str]], rank: int) -> None:
    """Raise a TechniqueError that names the break-even if ``rank`` would make any matrix bigger."""
    from edgecompress.model.linear import FactoredLinear

    for layer, name in places:
        matrix = layer.matrix(name)
        now = matrix.rank if isinstance(matrix, FactoredLinear) else None
        limit = now or break_even(matrix.in_features, matrix.out_features)
        if rank > limit:
            raise TechniqueError(
                f"rank {rank} would grow {name} of layer {layer.number} ({matrix.out_features} x {matrix.in_features})",
                hint=f"{'it has' if now else 'the break-even is'} rank {limit}: ask for that or less",
            )
