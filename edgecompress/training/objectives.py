"""From what a training asks for to the objective that does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgecompress.training import Objective
from edgecompress.training.settings import MaskedPrediction, MatchLogits, MatchStates, TaskLoss

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.training.data import Corpus


def build(
    settings: MatchStates | MatchLogits | MaskedPrediction | TaskLoss,
    model: Model,
    *,
    source: Model | None,
    corpus: Corpus,
    seed: int,
) -> Objective:
    """The objective for training ``model`` on ``corpus``.

    ``source`` is the teacher where the settings name none; it is copied, never trained. ``seed`` decides clusters and
    the first weights of heads and projections.

    Raises:
        TechniqueError: no teacher, no labels, or states, logits or clusters that do not fit the model.
    """
    if isinstance(settings, MatchStates):
        from edgecompress.training.match_states import StatesObjective

        return StatesObjective(settings, model, source=source, corpus=corpus, seed=seed)
    if isinstance(settings, MatchLogits):
        from edgecompress.training.match_logits import LogitsObjective

        return LogitsObjective(settings, model, source=source, corpus=corpus, seed=seed)
    if isinstance(settings, MaskedPrediction):
        from edgecompress.training.masked_prediction import MaskedObjective

        return MaskedObjective(settings, model, corpus=corpus, seed=seed)
    from edgecompress.training.task_loss import TaskObjective

    return TaskObjective(settings, model, corpus=corpus, seed=seed)
