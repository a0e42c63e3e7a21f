"""Fine-tuning: the model trains on its own task, by the labels of the audio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from edgecompress.techniques.distill import with_objective
from edgecompress.training.settings import Training

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.techniques import Context

TaskTraining = Annotated[Training, with_objective(kind="task")]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Finetune:
    """Train on labels: CTC (Graves et al., 2006), classification of clips, or Whisper's next token.

    Which of them follows from the model's head; a bare encoder gets one for the training only. Whisper's decoder stays
    as it is. ``objective.label`` names the column of the manifest that holds the labels; a model without a vocabulary of
    its own takes that of the labels, and its folder keeps it.
    """

    kind: ClassVar[str] = "finetune"
    needs_clips: ClassVar[bool] = False
    training: TaskTraining

    @model_validator(mode="after")
    def _task(self) -> Finetune:
        if self.training.objective.kind != "task":
            raise ValueError(
                'finetune has the objective "task"; "masked" is pretrain\'s, "states" and "logits" distill\'s'
            )
        return self

    @property
    def needs_corpus(self) -> bool:
        """Whether it trains."""
        return self.training.steps > 0

    def apply(self, model: Model, context: Context) -> None:
        from edgecompress.techniques.input_statistics import learn_input_statistics
        from edgecompress.techniques.recovery import recover

        if self.needs_corpus:
            learn_input_statistics(model, context, self.kind)
        recover(model, context, self.training, self.kind)
