"""Pretraining: the encoder goes on learning from audio alone, by naming the clusters of hidden frames."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from edgecompress.techniques.distill import with_objective
from edgecompress.training.settings import MaskedPrediction, Training

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.techniques import Context
    from edgecompress.training.data import Corpus

MOST_HELD_OUT = 100  # clips; where they last 2 s, about 5,000 of their frames are hidden

MaskedTraining = Annotated[Training, with_objective(kind="masked")]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Pretrain:
    """Train the encoder by masked prediction (HuBERT, Hsu et al., 2021; MelHuBERT, Lin et al., 2023).

    Frames are hidden in spans, and the encoder says which cluster they belong to: clusters of log-mel frames in a first
    stage (``objective.targets = "log_mel"``), of the model's own hidden state in a second one (``"hidden"``). The share
    ``held_out`` of the clips is not trained on; a note says how many of their hidden frames are named right.
    """

    kind: ClassVar[str] = "pretrain"
    needs_clips: ClassVar[bool] = False
    training: MaskedTraining
    held_out: Annotated[float, Field(ge=0, lt=1, description="share of the clips that only score")] = 0.05

    @model_validator(mode="after")
    def _masked(self) -> Pretrain:
        if self.training.objective.kind != "masked":
            raise ValueError(
                'pretrain has the objective "masked"; "states" and "logits" are distill\'s, "task" finetune\'s'
            )
        return self

    @property
    def needs_corpus(self) -> bool:
        """Whether it trains."""
        return self.training.steps > 0

    def apply(self, model: Model, context: Context) -> None:
        from edgecompress.techniques.input_statistics import learn_input_statistics
        from edgecompress.techniques.recovery import recover, seed_of
        from edgecompress.training.masked_prediction import MaskedObjective

        if not self.needs_corpus:
            return
        assert isinstance(self.training.objective, MaskedPrediction)
        corpus, held = self._split(context)
        context = replace(context, corpus=corpus)
        learn_input_statistics(model, context, self.kind)
        seed = seed_of(context, self.kind)
        objective = MaskedObjective(self.training.objective, model, corpus=corpus, seed=seed)
        examples = objective.examples(held)
        recover(model, context, self.training, self.kind, objective=objective)
        if examples:
            right, commonest = objective.accuracy(examples, seed)
            context.notes.append(
                f"names {right:.1%} of the hidden frames of {len(examples)} held-out clips right, out of "
                f"{objective.settings.clusters} clusters (the commonest alone: {commonest:.1%})"
            )

    def _split(self, context: Context) -> tuple[Corpus, list[np.ndarray]]:
        """What is trained on, and the clips that are held out, cropped at their beginning like those of a batch."""
        from edgecompress.training.targets import readable

        corpus = context.need_corpus(self.kind).only(self.training.datasets)
        count = min(MOST_HELD_OUT, round(self.held_out * len(corpus)))
        if not count:
            return corpus, []
        rows = np.sort(np.random.default_rng(context.seed).choice(len(corpus), count, replace=False)).tolist()
        longest = None if self.training.crop_seconds is None else round(self.training.crop_seconds * 16000)
        return corpus.without([corpus.names[row] for row in rows]), [
            clip[:longest] for _, clip in readable(corpus, rows)
        ]
