"""Which frames are hidden: spans that begin anywhere and may overlap."""

from __future__ import annotations

import torch


def spans(lengths: torch.Tensor, frames: int, probability: float, span: int) -> torch.Tensor:
    """A mask (batch, frames), True where hidden, within each clip's length; drawn by torch's own generator.

    The expected number of spans is probability * length / span (its fraction is drawn), at least 2 (MelHuBERT, Lin et
    al., 2023). They may overlap, so about 1 - exp(-probability) of the frames are hidden: half of them at 0.7. A clip
    that is no longer than a span keeps one frame visible.
    """
    hidden = torch.zeros(len(lengths), frames, dtype=torch.bool)
    for row, length in enumerate(lengths.tolist()):
        if length < 2:
            continue
        wide = min(span, length - 1)
        count = max(2, int(probability * length / span + float(torch.rand(()))))
        starts = torch.randint(0, length - wide + 1, (count,))
        hidden[row, (starts[:, None] + torch.arange(wide)).reshape(-1)] = True
        if wide == length - 1:
            hidden[row, wide if int(starts[0]) == 0 else 0] = False
    return hidden.to(lengths.device)
