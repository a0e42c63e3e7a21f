"""Techniques: what makes a model smaller. Here is the contract; each technique is one file.

A technique is a frozen dataclass of parameters with one verb, ``apply(model, context)``; its fields are its recipe
keys, its docstring is its help, its ``kind`` is the name of its entry point in the group ``edgecompress.techniques``.
It changes structure only through the model's edits, and may change weights. The driver below checks its promises.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from edgecompress.errors import EdgeCompressError, TechniqueError
from edgecompress.job import describe
from edgecompress.records import Step

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.model import Model


@dataclass
class Context:
    """What a technique may look at besides the model: calibration audio (16 kHz mono float32) and a seed.

    ``notes`` is where a technique says what a reader of its result must know.
    """

    clips: Sequence[np.ndarray] = ()
    seed: int = 0
    notes: list[str] = field(default_factory=list)

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


class Technique(Protocol):
    """The contract. A property ``needs_clips`` that says False spares it (and its cells) the calibration audio."""

    kind: ClassVar[str]

    def apply(self, model: Model, context: Context) -> None:
        """Carry the technique out on ``model``, in place."""


def needs_clips(techniques: Sequence[Technique]) -> bool:
    """Whether any of the techniques looks at calibration audio."""
    return any(getattr(technique, "needs_clips", True) for technique in techniques)


def compress(
    model: Model,
    techniques: Sequence[Technique],
    context: Context | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Step]:
    """Apply techniques to ``model`` in place, in order, and say what each did.

    Returns one :class:`records.Step` a technique, with the cost before and after.

    Raises:
        TechniqueError: which step, with which parameters; the model is then half done and should be thrown away.
    """
    from edgecompress import cost

    context = context or Context()
    steps = []
    before = cost.measure(model)
    for number, technique in enumerate(techniques, start=1):
        if progress:
            progress(f"step {number} of {len(techniques)}: {technique.kind}")
        started, known = time.perf_counter(), len(context.notes)
        where = f"step {number} ({technique.kind} {_fields(technique)})"
        try:
            with model.evaluating():
                technique.apply(model, context)
        except EdgeCompressError as cause:
            raise TechniqueError(f"{where}: {cause.message}", hint=cause.hint) from cause
        after = cost.measure(model)
        _check_promises(model, before.parameters.total, after.parameters.total, where)
        steps.append(
            Step(
                kind=technique.kind,
                parameters={k: v for k, v in describe(technique).items() if k != "kind"},
                seconds=round(time.perf_counter() - started, 3),
                before=before,
                after=after,
                notes=context.notes[known:],
            )
        )
        before = after
    return steps


def _fields(technique: Technique) -> str:
    return " ".join(f"{k}={v!r}" for k, v in describe(technique).items() if k != "kind" and v is not None)


def _check_promises(model: Model, before: int, after: int, where: str) -> None:
    """A technique never grows the model, and never leaves numbers that are none."""
    import torch

    if after > before:
        raise TechniqueError(
            f"{where}: the model grew from {before:,} to {after:,} parameters",
            hint="ask for a smaller rank, or leave the step out",
        )
    broken = [name for name, value in model.network.named_parameters() if not torch.isfinite(value).all()]
    if broken:
        raise TechniqueError(
            f"{where}: {broken[0]} holds numbers that are not finite", hint="check the source model's weights"
        )


def count_of(ratio: float, total: int) -> int:
    """How many of ``total`` a ratio means: the nearest whole number, halves up."""
    return min(total, int(ratio * total + 0.5))
