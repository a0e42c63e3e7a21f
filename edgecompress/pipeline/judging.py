"""A task as the judge of a quantised file: the score of what it answers, beside torch's on the same clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgecompress.errors import RecipeError

if TYPE_CHECKING:
    from edgecompress.audio import Clip
    from edgecompress.exporters.accuracy import Judge
    from edgecompress.exporters.parity import Runner
    from edgecompress.model import Model
    from edgecompress.model.forms import Form
    from edgecompress.tasks import Result


def judge_of(
    model: Model,
    form: Form,
    task: Any,
    clips: Sequence[Clip],
    folder: str | None,
    tolerated_drop: float | None,
    say: Callable[[str], None] | None = None,
) -> Judge:
    """A task as a judge of files of ``model`` in one form.

    Raises:
        RecipeError: the task scores checkpoints only, or there are no clips to judge on.
    """
    from edgecompress import tasks
    from edgecompress.exporters.accuracy import Judge
    from edgecompress.job import scores_checkpoints

    if scores_checkpoints(task):
        raise RecipeError(f"{task.kind} scores checkpoints, not files", hint="judge by fidelity, wer or slot_recall")
    if not clips:
        raise RecipeError("there is no calibration audio to judge on", hint="set calibration under [audio]")
    reference = tasks.in_torch(model)
    own = task.score(reference, reference, clips, folder, say)

    def score(run: Runner) -> float:
        subject = tasks.of_runner(model, run, [port.name for port in form.inputs], form.outputs[0].name)
        return value_of(task.score(subject, reference, clips, folder, say))

    return Judge(task.kind, own.metric, own.higher_is_better, len(clips), value_of(own), score, tolerated_drop)


def value_of(result: Result) -> float:
    """The score of all clips: the ratio of the sums."""
    whole = sum(item.denominator for item in result.items)
    return sum(item.numerator for item in result.items) / whole if whole else 0.0
