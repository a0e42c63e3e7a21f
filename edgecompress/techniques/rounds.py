"""Rounds: a technique that removes by and by, and lets the model recover in between.

Rates are cumulative and count from what was there when the technique began. Each round looks at the model as the last
one left it. With a folder to work in, the model after each round is kept, so that what was interrupted goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from edgecompress import records
from edgecompress.errors import ModelError, RecordError
from edgecompress.job import describe
from edgecompress.records import RoundProgress
from edgecompress.techniques.targets import Goal, Target, goal_of
from edgecompress.training.settings import Training

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.techniques import Context

Rate = Annotated[float, Field(gt=0, le=1)]
KEPT = "kept"  # the folder, in the step's, of the model after the last round that is done


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class InRounds:
    """The fields of a technique that removes in rounds: how much (one of ``ratio``, ``target``, a list of ``rounds``).

    ``ratio`` is the share removed of what was there; ``target`` what the whole model may cost at most; ``rounds`` either
    in how many equal steps that is reached, or the rates after each round themselves: ``rounds = [0.25, 0.5]`` takes 72
    heads to 54, then to 36. ``recovery`` trains after each round; without, nothing is trained.
    """

    ratio: Annotated[Rate | None, Field(description="share that is removed")] = None
    target: Target | None = None
    rounds: Annotated[
        Annotated[int, Field(ge=1)] | tuple[Rate, ...], Field(description="a number of equal steps, or rates")
    ] = 1
    recovery: Training | None = None

    @model_validator(mode="after")
    def _one_amount(self) -> InRounds:
        check_amount(self)
        return self

    @property
    def needs_corpus(self) -> bool:
        """Whether it trains."""
        return self.recovery is not None and self.recovery.steps > 0

    @property
    def shares(self) -> list[float]:
        """What each round has reached when it is over: the rate, or with a target the share of the way to it."""
        if isinstance(self.rounds, tuple):
            return list(self.rounds)
        whole = 1.0 if self.ratio is None else self.ratio
        return [whole * number / self.rounds for number in range(1, self.rounds + 1)]


def check_amount(technique: InRounds, *, otherwise: bool = False) -> None:
    """Raise a ValueError unless just one field says how much; none may where it is said ``otherwise``."""
    listed = isinstance(technique.rounds, tuple)
    given = (technique.ratio is not None) + (technique.target is not None) + listed
    if given != (0 if otherwise else 1):
        raise ValueError(
            "a pattern says how much: leave ratio, target and rounds out"
            if otherwise
            else "give one of ratio, target, or a list of rounds"
        )
    check_ascending(technique)


def check_ascending(technique: InRounds) -> None:
    """Raise a ValueError if the rounds are a list that does not ascend, or is empty: it would remove nothing."""
    listed = technique.rounds
    if isinstance(listed, tuple) and (not listed or list(listed) != sorted(set(listed))):
        raise ValueError("a list of rounds ascends: each rate counts from the beginning")


def carry_out(
    technique: InRounds,
    model: Model,
    context: Context,
    remove: Callable[[float], dict[str, Any]],
    recover: Callable[[int], None] | None = None,
    *,
    remember: bool = False,
) -> None:
    """Remove and recover, round by round, from the round that an interrupted run had reached.

    ``remove`` gets the rate (or the share of the way to the target) that the round ends with, and says as data what it
    took. ``recover`` gets the number of the round; default: :func:`recovery.recover` by ``technique.recovery``. The state
    of a round's training is dropped once the model is kept; with ``remember`` that of the last round done stays, for
    its optimiser. Notes and ``context.rounds`` tell what each round did.
    """
    from edgecompress import cost
    from edgecompress.techniques.recovery import recover as train

    shares = technique.shares
    known = len(context.notes), len(context.rounds), len(context.trainings)
    start = _start(technique, model, context)
    for number in range(_resume(technique, model, context, start) + 1, len(shares) + 1):
        before = cost.measure(model)
        if len(shares) > 1:
            context.say(f"round {number} of {len(shares)}")
        removed = remove(shares[number - 1])
        after = cost.measure(model)
        context.rounds.append(
            {
                "round": number,
                "reached": round(shares[number - 1], 6),
                "removed": removed,
                "parameters": after.parameters.total,
                "nonzero": after.parameters.nonzero,
                "macs": after.macs.total,
            }
        )
        if len(shares) > 1:
            context.notes.append(f"round {number}: {_told(before, after)}")
        if recover is not None:
            recover(number)
        else:
            train(model, context, technique.recovery, f"round-{number}")
        if number < len(shares):
            _keep(technique, model, context, number, start, known, remember)


def aim(technique: InRounds, model: Model, context: Context) -> tuple[Goal, int] | None:
    """The number a technique's target means, and what the model costs now in the same unit; None without a target."""
    if technique.target is None:
        return None
    goal = goal_of(technique.target, model, context)
    return goal, goal.measure(model)


def _told(before: records.Cost, after: records.Cost) -> str:
    old, new = before.parameters, after.parameters
    counted = (
        f"{old.nonzero:,} to {new.nonzero:,} parameters that are not zero"
        if old.total == new.total
        else f"{old.total:,} to {new.total:,} parameters"
    )
    macs = f", {before.macs.total:,} to {after.macs.total:,} MACs" if before.macs.total != after.macs.total else ""
    return counted + macs


# --- what an interrupted run had reached -----------------------------------------------------------------------------
def _start(technique: InRounds, model: Model, context: Context) -> str:
    """What the rounds begin with, in 12 hex digits: weights, audio, place in the recipe. "" where nothing is kept.

    Without training the rounds are done again sooner than a model is written.
    """
    if context.work is None or not technique.needs_corpus:
        return ""
    from edgecompress.training.checkpoints import weights_fingerprint

    audio = context.need_corpus(str(describe(technique)["kind"])).fingerprint
    return records.content_key([weights_fingerprint({"model": model.network}), audio, context.step])


def _keep(
    technique: InRounds,
    model: Model,
    context: Context,
    number: int,
    start: str,
    known: tuple[int, int, int],
    remember: bool,
) -> None:
    """Keep the model after a round, whole or not at all, and what was told since the technique began (``known``)."""
    if context.work is None or not start:
        return
    from edgecompress.model import save

    with records.whole_folder(context.work / KEPT) as beside:
        save(model, beside)
        progress = RoundProgress(
            technique=describe(technique),
            start=start,
            seed=context.seed,
            round=number,
            notes=context.notes[known[0] :],
            rounds=context.rounds[known[1] :],
            trainings=context.trainings[known[2] :],
        )
        progress.write(beside / "rounds.json")
    stays = trainings_of(context, number) if remember else []
    for left in context.work.glob("round-*"):
        if left not in stays:
            shutil.rmtree(left)


def trainings_of(context: Context, number: int) -> list[Path]:
    """Folders of the trainings after a round, in order: ``round-2``, ``round-2-again-1`` ..."""
    if context.work is None:
        return []
    found = [*context.work.glob(f"round-{number}"), *context.work.glob(f"round-{number}-again-*")]
    return sorted(found, key=lambda path: (len(path.name), path.name))  # the tenth after the ninth


def _resume(technique: InRounds, model: Model, context: Context, start: str) -> int:
    """How many rounds are done, from the same ``start``; ``model`` is then as the last of them left it."""
    if context.work is None or not (context.work / KEPT / "rounds.json").exists():
        return 0
    from edgecompress.model import load

    try:
        progress = RoundProgress.read(context.work / KEPT / "rounds.json")
        kept = load(context.work / KEPT)
    except (RecordError, ModelError) as fault:
        context.say(f"the rounds that were kept cannot be read ({fault.message}): from the beginning")
        return 0
    if (progress.technique, progress.seed, progress.start) != (describe(technique), context.seed, start):
        context.say("the rounds that were kept are of another run: from the beginning")
        return 0
    model.become(kept)
    context.notes.extend(progress.notes)
    context.rounds.extend(progress.rounds)
    context.trainings.extend(progress.trainings)
    context.say(f"goes on after round {progress.round}")
    return progress.round
