"""Recovery: a training after something was taken away, so that what is left makes up for it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgecompress.errors import TechniqueError

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.techniques import Context
    from edgecompress.training import Hook, Objective
    from edgecompress.training.loop import History
    from edgecompress.training.settings import Training


def recover(
    model: Model,
    context: Context,
    training: Training | None,
    name: str,
    hooks: Sequence[Hook] = (),
    *,
    optimizer_state: Any = None,
    objective: Objective | None = None,
) -> History | None:
    """Train ``model`` in place as ``training`` asks, towards its objective; None where nothing is asked (one shot).

    ``name`` tells one recovery of a technique from another: its state is kept in ``context.work / name`` so that a
    recovery that was interrupted goes on, and its batches are drawn by a seed of its own. ``optimizer_state`` is that
    of an earlier recovery (``History.optimizer_state``), ``objective`` one that is there already. Afterwards the model
    is in eval mode, on the device it was on, and a note says how long it trained and how the loss went.

    Raises:
        TechniqueError: there is no audio to train on, or no teacher where the objective needs one; or the model hears
            no audio at all.
    """
    if training is None or not training.steps:
        return None
    if model.anatomy.takes != "audio":
        raise TechniqueError(
            f"{name} trains on audio, and {model.family} takes {model.anatomy.takes}",
            hint="leave the training out, or take a step that has none",
        )
    from edgecompress.training import objectives
    from edgecompress.training.loop import train

    corpus = context.need_corpus(name)
    seed = seed_of(context, name)
    device = model.device
    try:
        if objective is None:
            objective = objectives.build(training.objective, model, source=context.source, corpus=corpus, seed=seed)
        history = train(
            objective,
            corpus,
            training,
            seed=seed,
            folder=None if context.work is None else context.work / name,
            say=context.say,
            hooks=hooks,
            optimizer_state=optimizer_state,
        )
    finally:
        model.to(device)
        model.eval()
    context.notes.append(f"{name}: {told(history)}")
    context.trained(history)
    return history


def seed_of(context: Context, name: str) -> int:
    """A seed for one training of one step: the same audio in every round would teach less."""
    return zlib.crc32(f"{context.seed} {context.step} {name}".encode())


def told(history: History) -> str:
    """A training in one line: steps, loss at both ends, audio, and steps that were skipped."""
    few = max(1, min(20, len(history.losses) // 10))
    first, last = history.mean_loss(first=few), history.mean_loss(last=few)
    ends = "" if first is None else f", loss {first:.4g} to {last:.4g}"
    skipped = f", {history.skipped_steps} steps without a finite loss skipped" if history.skipped_steps else ""
    return f"trained {history.steps:,} steps{ends}, {history.audio_seconds / 3600:.3g} h of audio{skipped}"
