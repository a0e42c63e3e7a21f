"""What a new MelHuBERT's log-mel frames are normalised by, learned from the audio that it is first trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.techniques import Context

CLIPS = 500  # more than half an hour where they last 4 s


def learn_input_statistics(model: Model, context: Context, who: str) -> None:
    """Give a MelHuBERT with random weights the mean and deviation of each log-mel bin, if it has none.

    Without them frames are about 10 where they should be about 0, and hiding a frame, which sets it to zero, would make
    it the loudest of all. Models of any other kind, and those that have learned already, are left as they are.
    """
    fresh = model.anatomy.front_end_kind == "log_mel" and model.origin.source.random_weights
    if not fresh or (model.origin.preprocessor or {}).get("mean"):
        return
    from edgecompress.training.targets import readable

    corpus = context.need_corpus(who)
    rows = np.random.default_rng(context.seed).permutation(len(corpus))[:CLIPS].tolist()
    model.normalize_log_mel(clip for _, clip in readable(corpus, rows))
    context.notes.append(f"log-mel bins are normalised by the mean and deviation of {len(rows)} clips")
