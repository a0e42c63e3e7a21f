"""The cells of a run that compress: the source model where a job makes one, and a checkpoint a recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress import __version__, records, sources
from edgecompress.job import Recipe, describe
from edgecompress.pipeline.state import Say, State
from edgecompress.pipeline.steps import Ingredients, Kept
from edgecompress.records import Checkpoint, Source, TrainingAudio

if TYPE_CHECKING:
    from edgecompress.audio import Clips
    from edgecompress.model import Model
    from edgecompress.training.data import Corpus

TOOL = f"edgecompress {__version__}"


def make_source(state: State) -> None:
    """Make the source model out of the given one, where the job asks for it; once.

    Raises:
        EdgeCompressError: it cannot be made, and without it nothing else can.
    """
    folder = state.source_folder
    if folder is None or state.there(folder):
        return
    state.say(f"source: {folder.name}")
    recipe = Recipe("source", state.job.source_techniques)
    kept = Kept(state.folder, state.of_given, recipe.techniques)
    _write(state, recipe, state.of_given, state.given_model, folder, kept, state.source)
    state.filled += 1


def checkpoint_of(state: State, recipe: Recipe) -> Path | None:
    """The folder of a compressed model, or None if it failed."""
    folder = state.folder / "checkpoints" / f"{recipe.name}-{state.of_source.key(recipe.techniques)}"
    if state.there(folder):
        return folder
    with state.cell(folder.name, stage="compress", recipe=recipe.name):
        kept = Kept(state.folder, state.of_source, recipe.techniques)
        _write(state, recipe, state.of_source, state.source_model, folder, kept)
        return folder
    return None


def _write(
    state: State,
    recipe: Recipe,
    into: Ingredients,
    source: Model,
    folder: Path,
    kept: Kept,
    becomes: Source | None = None,
) -> None:
    chosen = into.chosen_for(recipe.techniques)
    corpus = state.corpus if chosen else None
    write_checkpoint(
        source,
        recipe,
        folder,
        clips=into.clips_for(recipe.techniques),
        seed=into.seed,
        progress=state.say,
        corpus=corpus,
        audio=chosen.record(corpus) if chosen and corpus else None,
        kept=kept,
        becomes=becomes,
    )
    kept.finished()


def write_checkpoint(
    source: Model,
    recipe: Recipe,
    folder: Path,
    *,
    clips: Clips | None = None,
    seed: int = 0,
    progress: Say | None = None,
    corpus: Corpus | None = None,
    audio: TrainingAudio | None = None,
    kept: Kept | None = None,
    becomes: Source | None = None,
) -> Checkpoint:
    """Compress a copy of ``source`` by a recipe and write it whole or not at all.

    ``corpus`` is what techniques train on, and ``audio`` what the record says of it. With ``kept``, a recipe that was
    interrupted goes on where it was. ``becomes`` is who the model is from then on: by itself, still the one it was
    made of.

    Raises:
        TechniqueError: a technique could not be carried out.
    """
    from edgecompress import cost, model, techniques

    tell = progress or (lambda text: None)
    reached = kept.reached() if kept else None
    if reached and progress:
        progress(f"going on after step {len(reached[1])} of {len(recipe.techniques)}, which was done before")
    small = model.load(reached[0]) if reached else source.clone()
    context = techniques.Context(
        clips=clips.arrays if clips else (), seed=seed, corpus=corpus, source=source,
        say=lambda text: tell(f"{recipe.name}, step {context.step} of {len(recipe.techniques)}: {text}"),
    )  # fmt: skip
    done = reached[1] if reached else []
    steps = techniques.compress(small, recipe.techniques, context, progress, done=done, keeper=kept)
    for step in steps[len(done) :]:
        if step.training and progress:
            progress(f"done: {recipe.name}, {step.kind}: {_trained(step.training)}")
    if becomes is not None:
        config = {k: v for k, v in small.origin.config.items() if k != sources.RANDOM_MARK or becomes.random_weights}
        small.origin = dataclasses.replace(small.origin, source=becomes, config=config)
    with records.whole_folder(folder) as beside:
        model.save(small, beside)
        checkpoint = Checkpoint(
            recipe=recipe.name,
            family=small.family,
            source=small.origin.source,
            techniques=[describe(technique) for technique in recipe.techniques],
            steps=steps,
            cost=cost.measure(small),
            calibration=[clip.name for clip in (clips or ()) if _looked(recipe, corpus)],
            corpus=audio,
            files={file.name: records.file_sha256(file) for file in sorted(beside.iterdir())},
            tool=TOOL,
            versions=_versions("torch", "transformers"),
        )
        checkpoint.write(beside / "checkpoint.json")
    return checkpoint


def _looked(recipe: Recipe, corpus: Corpus | None) -> bool:
    """Whether the techniques looked at the clips: to calibrate, or to train for want of other audio."""
    from edgecompress.techniques import needs_clips, needs_corpus

    return needs_clips(recipe.techniques) or (corpus is None and needs_corpus(recipe.techniques))


def _trained(training: dict[str, Any]) -> str:
    """``435 steps, 0.91 h of audio, loss 1.31 to 0.42``."""
    told = f"{training['steps']:,} steps, {training['audio_hours']:.2g} h of audio"
    if training["first_loss"] is not None and training["last_loss"] is not None:
        told += f", loss {training['first_loss']:.4g} to {training['last_loss']:.4g}"
    return told


def _versions(*names: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in names}
