"""What a recipe has reached is kept, so that a job that was killed in its third step does not begin with the first.

The model after each of a recipe's first steps has a key of its own: a hash of all that went into it. Recipes that begin
alike share these keys, so what one of them trained the next one takes over, from ``work/`` or from a finished
checkpoint. ``work/`` is removed when everything that a job asks for is there.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress import records, sources
from edgecompress.job import describe
from edgecompress.pipeline.places import model_folder
from edgecompress.records import Checkpoint, Progress, Source, Step

if TYPE_CHECKING:
    from edgecompress.audio import Clips
    from edgecompress.model import Model
    from edgecompress.pipeline.corpus import Chosen

SLOW_S = 10.0  # a step that took longer is kept even where it trained nothing


@dataclass(frozen=True)
class Ingredients:
    """All that goes into the model of a recipe besides its techniques."""

    source: Source
    seed: int
    clips: Clips
    chosen: Chosen | None = None

    def clips_for(self, techniques: Sequence[Any]) -> Clips | None:
        """The calibration clips if the techniques look at them: directly, or for want of audio to train on."""
        from edgecompress.techniques import needs_clips, needs_corpus

        wanted = needs_clips(techniques) or (self.chosen is None and needs_corpus(techniques))
        return self.clips if wanted else None

    def chosen_for(self, techniques: Sequence[Any]) -> Chosen | None:
        """The training audio if the techniques train."""
        from edgecompress.techniques import needs_corpus

        return self.chosen if needs_corpus(techniques) else None

    def key(self, techniques: Sequence[Any]) -> str:
        """What names the model that these techniques make."""
        return records.content_key(self.parts(techniques))

    def parts(self, techniques: Sequence[Any]) -> list[Any]:
        """What goes into the model that these techniques make, as JSON values."""
        tables = [describe(technique) for technique in techniques]
        clips, chosen = self.clips_for(techniques), self.chosen_for(techniques)
        parts: list[Any] = [self.source.sha256, tables, clips.keys if clips else [], self.seed]
        if chosen is not None:
            parts.append(chosen.sha256)
        taught = [sources.of_folder(model_folder(name)).sha256 for name in _teachers(tables)]
        return [*parts, taught] if taught else parts


def made_source(given: Ingredients, techniques: Sequence[Any]) -> Source:
    """Who the model is that these techniques make of the given one: trained, if any of them trains."""
    from edgecompress.techniques import needs_corpus

    digest = hashlib.sha256(records.canonical_json(given.parts(techniques)).encode()).hexdigest()
    kinds = " + ".join(str(type(technique).kind) for technique in techniques)
    chosen = given.chosen_for(techniques)
    lineage = {
        "given": given.source.model_dump(mode="json", exclude={"lineage"}),
        "techniques": [describe(technique) for technique in techniques],
        "training_audio_sha256": chosen.sha256 if chosen else None,
        "seed": given.seed,
    }
    random = given.source.random_weights and not needs_corpus(techniques)
    return Source(name=f"{given.source.name} + {kinds}", sha256=digest, random_weights=random, lineage=lineage)


def _teachers(value: Any) -> list[str]:
    """Every ``teacher`` that is named anywhere in a technique's table."""
    if isinstance(value, list):
        return [name for one in value for name in _teachers(one)]
    if not isinstance(value, dict):
        return []
    named = [value["teacher"]] if isinstance(value.get("teacher"), str) else []
    return named + [name for one in value.values() for name in _teachers(one)]


class Kept:
    """The steps of one recipe that are done, and the state of the one under way (a ``techniques.Keeper``)."""

    def __init__(self, run: Path, ingredients: Ingredients, techniques: Sequence[Any]) -> None:
        self.run = run
        self.techniques = techniques
        self.keys = [ingredients.key(techniques[:count]) for count in range(1, len(techniques) + 1)]

    def state(self, step: int) -> Path:
        """A folder for the state of a step (1, 2, ...) under way."""
        return self.run / "work" / "state" / self.keys[step - 1]

    def keep(self, model: Model, steps: Sequence[Step]) -> None:
        """Write the model after a step that was work. The last step's is the checkpoint, which is written anyway."""
        if len(steps) == len(self.techniques) or not self._was_work(steps[-1]):
            return
        from edgecompress.model import save

        with records.whole_folder(self._done(len(steps))) as beside:
            save(model, beside)
            Progress(steps=list(steps)).write(beside / "step.json")
        shutil.rmtree(self.state(len(steps)), ignore_errors=True)

    def _was_work(self, step: Step) -> bool:
        from edgecompress.techniques import needs_corpus

        return step.seconds > SLOW_S or needs_corpus(self.techniques)

    def _done(self, count: int) -> Path:
        return self.run / "work" / "steps" / self.keys[count - 1]

    def reached(self) -> tuple[Path, list[Step]] | None:
        """The model's folder after the most steps that are done, and these steps; None where none is."""
        for count in range(len(self.techniques), 0, -1):
            place = self._done(count)
            if (place / "step.json").is_file():
                return place, Progress.read(place / "step.json").steps
            for found in sorted(self.run.glob(f"checkpoints/*-{self.keys[count - 1]}/checkpoint.json")):
                if not found.parent.name.startswith("."):
                    return found.parent, Checkpoint.read(found).steps
        return None

    def finished(self) -> None:
        """The checkpoint is written: the state of its last step is of no more use."""
        if self.keys:
            shutil.rmtree(self.state(len(self.keys)), ignore_errors=True)


def sweep(run: Path) -> None:
    """Everything that was asked for is there: what it took on the way may go."""
    shutil.rmtree(run / "work", ignore_errors=True)
