"""Low rank: matrices become products of two thin ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgecompress.errors import TechniqueError

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.layer import Layer
    from edgecompress.techniques import Context


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Factorize:
    """Replace matrices by products of rank ``rank``, which saves only below the break-even in*out / (in + out).

    ``by = "weights"``: singular value decomposition of the matrix (Eckart and Young, 1936). ``by = "activations"``:
    principal components of what the matrix says on calibration audio, with the mean kept exactly (LiteASR, 2025).
    ``matrices``: ``"ffn"`` (both matrices of the feed-forward network), ``"attention"`` (its four), or ``"all"``.
    """

    kind: ClassVar[str] = "factorize"
    rank: Annotated[int, Field(ge=1, description="rank of the products")]
    by: Literal["weights", "activations"] = "weights"
    matrices: Literal["ffn", "attention", "all"] = "ffn"

    @property
    def needs_clips(self) -> bool:
        """Whether calibration audio is looked at."""
        return self.by == "activations"

    def apply(self, model: Model, context: Context) -> None:
        from edgecompress.model.layer import ATTENTION_MATRICES, FFN_MATRICES

        names = {"ffn": FFN_MATRICES, "attention": ATTENTION_MATRICES, "all": (*ATTENTION_MATRICES, *FFN_MATRICES)}[
            self.matrices
        ]
        targets = [
            (layer, name)
            for layer in model.layers
            for name in names
            if layer.matrix(name).in_features and layer.matrix(name).out_features
        ]
        refuse_growth(targets, self.rank)
        if self.by == "activations":
            by_activations(model, context, targets, self.rank)
            return
        for layer, name in targets:
            model.factor(layer.number, name, self.rank)  # type: ignore[arg-type]


def break_even(in_features: int, out_features: int) -> int:
    """The greatest rank at which two thin matrices hold fewer weights than the one they replace."""
    return (in_features * out_features - 1) // (in_features + out_features)


def refuse_growth(targets: list[tuple[Layer, str]], rank: int) -> None:
    """Raise a TechniqueError that names the break-even if ``rank`` would make any matrix bigger."""
    for layer, name in targets:
        matrix = layer.matrix(name)
        limit = break_even(matrix.in_features, matrix.out_features)
        if rank > limit:
            raise TechniqueError(
                f"rank {rank} would grow {name} of layer {layer.number} ({matrix.out_features} x {matrix.in_features})",
                hint=f"the break-even is rank {limit}: ask for that or less",
            )


def by_activations(model: Model, context: Context, targets: list[tuple[Layer, str]], rank: int) -> None:
    """Project each matrix's output onto its principal components: W -> U U^T W, bias -> U U^T b + (I - U U^T) mean.

    All outputs are looked at before anything is changed, so that no matrix is fitted to what another one lost.
    """
    import torch

    from edgecompress.model.layer import put
    from edgecompress.model.linear import bias_of, dense_weight
    from edgecompress.techniques.statistics import moments

    looked = moments(model, context, Factorize.kind, targets, outputs=True)
    for layer, name in targets:
        old = layer.matrix(name)
        weight = dense_weight(old).detach().double()
        # Without a bias is Whisper's k_proj only: its mean may go, since what all keys share cancels in the softmax.
        old_bias = bias_of(old)
        bias = None if old_bias is None else old_bias.detach().double()
        seen = looked[layer.number, name]
        basis = torch.linalg.eigh(seen.covariance).eigenvectors[:, -rank:]
        model.factor(layer.number, name, rank)  # type: ignore[arg-type]
        if bias is not None:
            bias = basis @ (basis.T @ (bias - seen.mean)) + seen.mean
        put(layer.matrix(name), basis, basis.T @ weight, bias)  # type: ignore[arg-type]
