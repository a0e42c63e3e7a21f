"""What ``export`` does around the room: the judge of a quantised file, and what a person is told of the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.errors import RecipeError
from edgecompress.records import Artifact

if TYPE_CHECKING:
    from edgecompress.audio import Clips
    from edgecompress.exporters.accuracy import Judge
    from edgecompress.model import Model

CALIBRATION_CLIPS = 64


def check(task: str | None, tolerated_drop: float | None, heard: Clips | None) -> None:
    """Refuse options that need each other, before a model is loaded.

    Raises:
        RecipeError: a drop of no task, or a task without recordings.
    """
    if tolerated_drop is not None and (task is None or tolerated_drop < 0):
        raise RecipeError("--tolerated-drop needs --task, and is not negative", hint="e.g. --task fidelity")
    if task is not None and not heard:
        raise RecipeError("--task needs --calibration, the recordings to judge on", hint="give a folder of recordings")


def judge(
    model: Model,
    input: str | None,
    padded: bool,
    task: str | None,
    heard: Clips | None,
    folder: Path | None,
    tolerated_drop: float | None,
    say: Callable[[str], None],
) -> Judge | None:
    """The judge that was asked for, if any."""
    if task is None or heard is None or folder is None:
        return None
    from edgecompress.cli import scoring
    from edgecompress.model.forms import form_of
    from edgecompress.pipeline.judging import judge_of

    place = folder if folder.is_dir() else folder.parent
    form = form_of(model, input, padded=padded)
    return judge_of(model, form, scoring.task(task), heard.items, str(place), tolerated_drop, say)


def told(artifact: Artifact) -> Iterator[str]:
    """The few lines that a person wants: size, parity, what was quantised, scores."""
    worst = max(case.relative for case in artifact.parity.cases)
    nearest = min(case.cosine for case in artifact.parity.cases)
    source = "PyTorch" if artifact.parity.reference == "torch" else "the given file"
    yield (
        f"{artifact.cost.bytes / 2**20:.1f} MiB; greatest difference from {source} {worst:.2e} of the output's greatest "
        f"value, least cosine {nearest:.6f}, {len(artifact.parity.cases)} comparisons in {artifact.runtime}"
    )
    if artifact.quantized_nodes is not None:
        kept = artifact.lineage.get("float_nodes", [])
        yield f"{artifact.quantized_nodes} nodes quantised" + (f"; left in fp32: {', '.join(kept)}" if kept else "")
    for score in artifact.parity.scores:
        yield f"{score['task']} ({score['metric']}, {score['clips']} clips): {score['file']:.4f}, torch {score['torch']:.4f}"
