"""Techniques: what makes a model smaller. Here is the contract; each technique is one file.

A technique is a frozen dataclass of parameters with one verb, ``apply(model, context)``; its fields are its recipe
keys, its docstring is its help, its ``kind`` is the name of its entry point in the group ``edgecompress.techniques``.
It changes structure only through the model's edits, and may change weights. The driver below checks its promises.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from edgecompress.errors import EdgeCompressError, TechniqueError
from edgecompress.job import describe
from edgecompress.records import Cost, Step

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.model import Model
    from edgecompress.training.data import Corpus
    from edgecompress.training.loop import History


def _silent(text: str) -> None:
    """Say nothing."""


@dataclass
class Context:
    """What a technique may look at besides the model, and where it says what it did.

    ``clips`` is calibration audio (16 kHz mono float32), ``corpus`` audio to train on, ``source`` the uncompressed model
    in eval mode (a teacher), ``seed`` what everything random hangs on. ``work`` is a folder for the state of a step that
    was interrupted: with one, a step that is begun again goes on where it was, and ends as if left alone. ``say`` takes
    lines of progress. ``notes`` is where a technique says what a reader of its result must know, ``rounds`` what each
    round of it did, as data, and ``trainings`` each training (:meth:`trained`). ``step`` (1, 2, ...) and ``reference``
    (the model whose cost a target is a share of) are the driver's to set.
    """

    clips: Sequence[np.ndarray] = ()
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    corpus: Corpus | None = None
    source: Model | None = None
    work: Path | None = None
    say: Callable[[str], None] = _silent
    rounds: list[dict[str, Any]] = field(default_factory=list)
    trainings: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0
    reference: Model | None = None

    def need_clips(self, who: str) -> Sequence[np.ndarray]:
        """The calibration clips.

        Raises:
            TechniqueError: there are none.
        """
        if not len(self.clips):
            raise TechniqueError(
                f"{who} needs calibration audio",
                hint="[audio] in a job, --audio on the command line, Context(clips=...) in Python",
            )
        return self.clips

    def need_corpus(self, who: str) -> Corpus:
        """The audio to train on; where there is none, the calibration clips.

        Raises:
            TechniqueError: there is neither.
        """
        if self.corpus is not None:
            return self.corpus
        if not len(self.clips):
            raise TechniqueError(
                f"{who} needs audio to train on",
                hint="[training] in a job, compress --train-audio, or Context(corpus=...) in Python",
            )
        from edgecompress.training.data import Corpus

        return Corpus.from_arrays(self.clips)

    def trained(self, history: History) -> None:
        """Note a training that is over: every technique that trains does."""
        losses = [entry[1] for entry in history.losses]
        self.trainings.append(
            {
                "steps": history.steps,
                "audio_hours": round(history.audio_seconds / 3600, 4),
                "seconds": round(history.seconds, 1),
                "skipped_steps": history.skipped_steps,
                "first_loss": losses[0] if losses else None,
                "last_loss": losses[-1] if losses else None,
            }
        )


class Technique(Protocol):
    """The contract. A property ``needs_clips`` that says False spares it (and its cells) the calibration audio.

    ``needs_corpus`` says True where it trains, and so needs audio to train on; it is False where a technique has none.
    """

    kind: ClassVar[str]

    def apply(self, model: Model, context: Context) -> None:
        """Carry the technique out on ``model``, in place."""


def needs_clips(techniques: Sequence[Technique]) -> bool:
    """Whether any of the techniques looks at calibration audio."""
    return any(getattr(technique, "needs_clips", True) for technique in techniques)


def needs_corpus(techniques: Sequence[Technique]) -> bool:
    """Whether any of the techniques trains."""
    return any(getattr(technique, "needs_corpus", False) for technique in techniques)


class Keeper(Protocol):
    """Where what a recipe has reached is kept, so that one that was interrupted goes on (the pipeline has one)."""

    def state(self, step: int) -> Path:
        """A folder for the state of a step (1, 2, ...) under way."""

    def keep(self, model: Model, steps: Sequence[Step]) -> None:
        """Keep the model as the steps so far left it."""


def compress(
    model: Model,
    techniques: Sequence[Technique],
    context: Context | None = None,
    progress: Callable[[str], None] | None = None,
    *,
    done: Sequence[Step] = (),
    keeper: Keeper | None = None,
) -> list[Step]:
    """Apply techniques to ``model`` in place, in order, and say what each did.

    ``done`` are the first steps where ``model`` has them behind it already; ``keeper`` is told of every other one.
    Returns one :class:`records.Step` a technique, with the cost before and after.

    Raises:
        TechniqueError: which step, with which parameters; the model is then half done and should be thrown away.
    """
    from edgecompress import cost

    context = context or Context()
    context.reference = context.source  # not what an earlier model, compressed with this context, has left there
    if context.reference is None and any(getattr(technique, "target", None) for technique in techniques):
        context.reference = model.skeleton()
    steps = list(done)
    for number, technique in list(enumerate(techniques, start=1))[len(steps) :]:
        if progress:
            progress(f"step {number} of {len(techniques)}: {technique.kind}")
        context.step = number
        if keeper is not None:
            context.work = keeper.state(number)
        before = steps[-1].after if steps else cost.measure(model)
        steps.append(_carried_out(model, technique, context, before))
        if keeper is not None:
            keeper.keep(model, steps)
    return steps


def _carried_out(model: Model, technique: Technique, context: Context, before: Cost) -> Step:
    """Apply one technique, check what it promised, and record what it did."""
    from edgecompress import cost

    started, notes, rounds, trainings = (
        time.perf_counter(), len(context.notes), len(context.rounds), len(context.trainings),
    )  # fmt: skip
    where = f"step {context.step} ({technique.kind} {_fields(technique)})"
    try:
        with model.evaluating():
            technique.apply(model, context)
    except EdgeCompressError as cause:
        raise TechniqueError(f"{where}: {cause.message}", hint=cause.hint) from cause
    after = cost.measure(model)
    _check_promises(model, before.parameters.total, after.parameters.total, where)
    return Step(
        kind=technique.kind,
        parameters={k: v for k, v in describe(technique).items() if k != "kind"},
        seconds=round(time.perf_counter() - started, 3),
        before=before,
        after=after,
        notes=context.notes[notes:],
        training=in_all(context.trainings[trainings:]),
        rounds=context.rounds[rounds:],
    )


def in_all(trainings: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The trainings of one step as one: what adds up is added up; the first loss of the first, the last of the last."""
    if not trainings:
        return None
    summed = {
        name: sum(one[name] for one in trainings) for name in ("steps", "audio_hours", "seconds", "skipped_steps")
    }
    ends = {"first_loss": trainings[0]["first_loss"], "last_loss": trainings[-1]["last_loss"]}
    return {"trainings": len(trainings), **summed, **ends}


def _fields(technique: Technique) -> str:
    """The fields that are set, in short: of a training its steps, of a table what is set in it."""
    values = {k: v for k, v in describe(technique).items() if k != "kind" and v is not None}
    return " ".join(f"{name}={_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    if isinstance(value, dict) and "steps" in value:
        return f"{value['steps']} steps"
    return repr({k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value)


def _check_promises(model: Model, before: int, after: int, where: str) -> None:
    """A technique never grows the model, and never leaves numbers that are none."""
    import torch

    if after > before:
        raise TechniqueError(
            f"{where}: the model grew from {before:,} to {after:,} parameters",
            hint="ask for a smaller rank, or leave the step out",
        )
    # A sum is finite where all numbers are (or else they are looked at one by one), in a fifth of the time.
    named = ((name, value.detach()) for name, value in model.network.named_parameters())
    broken = [n for n, value in named if not value.sum().isfinite() and not torch.isfinite(value).all()]
    if broken:
        raise TechniqueError(
            f"{where}: {broken[0]} holds numbers that are not finite", hint="check the source model's weights"
        )


def count_of(ratio: float, total: int) -> int:
    """How many of ``total`` a ratio means: the nearest whole number, halves up."""
    return min(total, int(ratio * total + 0.5))
