"""Fidelity: how close the compressed model's output stays to its source's, on given audio; any encoder, no labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from edgecompress.records import ScoreItem
from edgecompress.tasks import NamedClip, Progress, Result, Subject

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Fidelity:
    """Cosine (mean over frames) or relative error of the last hidden states, or logits, to the source model's.

    Relative error is |compressed - source| / |source| in the Euclidean norm, clip by clip. Where a trimmed context
    leaves fewer frames, the frames that both have are compared, and only those that the clip fills.
    """

    kind: ClassVar[str] = "fidelity"
    metric: Literal["cosine", "relative_error"] = "cosine"

    def score(
        self,
        subject: Subject,
        source: Subject,
        clips: Sequence[NamedClip],
        folder: str | None,
        progress: Progress | None = None,
    ) -> Result:
        import torch

        items = []
        pairs = zip(clips, subject.outputs(clips, progress), source.outputs(clips), strict=True)
        for clip, ours, theirs in pairs:
            ours, theirs = _shared_frames(ours, theirs, len(clip.samples), subject.model.context_positions is not None)
            error = float((ours - theirs).double().norm() / theirs.double().norm())
            cosine = torch.nn.functional.cosine_similarity(ours.double(), theirs.double(), dim=-1)
            frames = cosine.numel()
            if self.metric == "cosine":
                items.append(
                    ScoreItem(
                        clip=clip.name,
                        numerator=float(cosine.sum()),
                        denominator=frames,
                        detail={"relative_error": error},
                    )
                )
            else:
                items.append(
                    ScoreItem(clip=clip.name, numerator=error, denominator=1, detail={"cosine": float(cosine.mean())})
                )
        return Result(
            metric=f"fidelity_{self.metric}",
            higher_is_better=self.metric == "cosine",
            items=items,
            conditions={"reference": "the source model in torch, float32"},
        )


def _shared_frames(
    ours: torch.Tensor, theirs: torch.Tensor, samples: int, fixed_context: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The frames that both outputs have and that the clip fills (Whisper pads to its whole context: 320 samples a frame)."""
    if ours.dim() == 2:
        return ours, theirs
    frames = min(ours.shape[1], theirs.shape[1])
    if fixed_context:
        frames = min(frames, max(1, samples // 320))
    return ours[:, :frames], theirs[:, :frames]
