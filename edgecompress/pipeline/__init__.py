"""The only place where rooms meet: a job carried out one guarded cell at a time, and gone on with where it was.

A cell is a folder or file named by a hash of all that went into it. A finished one is skipped without loading
anything; an unfinished one never appears (it is written beside its place and renamed). A cell that raises an
EdgeCompressError becomes a Failure and the rest goes on; anything else is a bug, and stops with its traceback.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgecompress.job import Job
from edgecompress.paths import expand
from edgecompress.pipeline.cells import artifacts_of, measure_all
from edgecompress.pipeline.checkpoints import TOOL, checkpoint_of, make_source, write_checkpoint
from edgecompress.pipeline.corpus import choose
from edgecompress.pipeline.scores import record_of, score, score_all, score_checkpoints, subject_of_artifact
from edgecompress.pipeline.state import Say, State, only_run, read_clips
from edgecompress.pipeline.steps import sweep
from edgecompress.records import Run

__all__ = ["RunResult", "choose", "read_clips", "record_of", "run", "score", "subject_of_artifact", "write_checkpoint"]


@dataclass(frozen=True)
class RunResult:
    """The report of a run, and how many cells were filled now, were there already, and failed."""

    report: Path
    filled: int
    skipped: int
    failed: int


def run(job: Job, progress: Say | None = None) -> RunResult:
    """Carry out a job: compress, export, score, measure, report; what is finished is skipped.

    Raises:
        EdgeCompressError: nothing could start (no model, no audio).
    """
    from edgecompress import report

    state = State(job, expand(job.output), progress or (lambda text: None))
    recipes = [recipe.name for recipe in job.recipes]
    _ = state.plan, state.devices  # a plan or a device that cannot be is told now, not after hours,
    for recipe in job.recipes:
        state.of_source.key(recipe.techniques)  # and so is a teacher that is not there
    record = Run(name=job.name, source=state.source, job=job.model_dump(mode="json"), recipes=recipes, tool=TOOL)
    state.say(
        f"{len(state.clips[0])} clips calibrate, {len(state.clips[1])} are scored, {len(state.clips[0].skipped)} were skipped"
    )
    if state.chosen is not None:
        left_out = f"{state.chosen.excluded} that calibrate or are scored are left out"
        state.say(f"{len(state.chosen.entries)} recordings to train on, {left_out}")
    with only_run(state.folder):
        record.write(state.folder / "run.json")
        make_source(state)
        checkpoints = [folder for recipe in job.recipes if (folder := checkpoint_of(state, recipe))]
        score_checkpoints(state, checkpoints)
        made = [one for checkpoint in checkpoints for one in artifacts_of(state, checkpoint)]
        for one in made:
            score_all(state, one)
        measure_all(state, made)
        state.sweep_failures()
        if not state.failed:
            sweep(state.folder)
        record.model_copy(update={"cells": sorted(state.cells)}).write(state.folder / "run.json")
        state.say("writing the report")
        return RunResult(report.write(state.folder), state.filled, state.skipped, state.failed)
