"""What Whisper still understands with a compressed encoder inside: word error rate, and slots of spoken orders."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgecompress.errors import AudioError, ModelError
from edgecompress.records import ScoreItem
from edgecompress.tasks import NamedClip, Progress, Result, Subject

SAMPLE_RATE = 16000
NUMBERS = dict(
    zip(
        ("1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "12", "16", "20"),
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve", "sixteen", "twenty"),
        strict=True,
    )
)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class WordErrorRate:
    """Word errors (substituted, deleted, inserted) over words of the reference, lower case, without punctuation.

    ``reference = "source"``: what the untouched model writes for the same clip, with its whole context.
    ``reference = "manifest"``: the column ``text`` of ``manifest``, a CSV file in the audio folder.
    """

    kind: ClassVar[str] = "wer"
    reference: Literal["source", "manifest"] = "source"
    manifest: Annotated[str, Field(pattern=r"^[^/\\]+\.csv$")] = "manifest.csv"

    def score(
        self,
        subject: Subject,
        source: Subject,
        clips: Sequence[NamedClip],
        folder: str | None,
        progress: Progress | None = None,
    ) -> Result:
        import jiwer

        need_decoder(subject, self.kind)
        truths = _manifest_texts(folder, self.manifest) if self.reference == "manifest" else {}
        items, skipped = [], {}
        references = [truths.get(clip.name, "") for clip in clips] if truths else source.texts(clips)
        for clip, text, reference in zip(clips, subject.texts(clips, progress), references, strict=True):
            wanted, said = plain(reference), plain(text)
            if not wanted:
                skipped[clip.name] = "the reference has no words"
                continue
            if said:
                counted = jiwer.process_words(wanted, said)
                errors = counted.substitutions + counted.deletions + counted.insertions
            else:
                errors = len(wanted.split())
            items.append(
                ScoreItem(
                    clip=clip.name,
                    numerator=errors,
                    denominator=len(wanted.split()),
                    detail={"text": text, "reference": reference},
                )
            )
        if not items:
            raise AudioError("none of the references has words", hint="look at the manifest's column text")
        reference = "the source model's text" if self.reference == "source" else "manifest text"
        return Result("wer", False, items, skipped, {"reference": reference, **_limits(subject, clips)})

    @property
    def truth_files(self) -> tuple[str, ...]:
        """What is read beside the audio."""
        return (self.manifest,) if self.reference == "manifest" else ()


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SlotRecall:
    """Share of an order's true slots (drink, size, roast ...) whose words stand in the transcript, in sequence.

    ``truths`` is a JSON file in the audio folder: ``{"clip.flac": {"slots": {"size": "twelve ounce", ...}}}``.
    With ``numbers_as_words`` a transcript's "12" counts as "twelve".
    """

    kind: ClassVar[str] = "slot_recall"
    truths: Annotated[str, Field(pattern=r"^[^/\\]+\.json$")] = "barista_slots.json"
    numbers_as_words: bool = False

    def score(
        self,
        subject: Subject,
        source: Subject,
        clips: Sequence[NamedClip],
        folder: str | None,
        progress: Progress | None = None,
    ) -> Result:
        need_decoder(subject, self.kind)
        slots = _slots(folder, self.truths)
        items, skipped = [], {}
        for clip, text in zip(clips, subject.texts(clips, progress), strict=True):
            truth = slots.get(clip.name)
            if not truth:
                skipped[clip.name] = f"{self.truths} has no slots for it"
                continue
            said = f" {plain(text, numbers=self.numbers_as_words)} "
            missed = [
                name
                for name, value in truth.items()
                if f" {plain(str(value), numbers=self.numbers_as_words)} " not in said
            ]
            items.append(
                ScoreItem(
                    clip=clip.name,
                    numerator=len(truth) - len(missed),
                    denominator=len(truth),
                    detail={"text": text, "missed": missed},
                )
            )
        if not items:
            raise AudioError(
                f"none of the clips has slots in {self.truths}", hint="give the audio folder that the file belongs to"
            )
        conditions = {"numbers_as_words": self.numbers_as_words, **_limits(subject, clips)}
        return Result("slot_recall", True, items, skipped, conditions)

    @property
    def truth_files(self) -> tuple[str, ...]:
        """What is read beside the audio."""
        return (self.truths,)


def plain(text: str, *, numbers: bool = False) -> str:
    """Lower case, letters and digits only, single spaces; digits as words when asked."""
    words = re.sub(r"[^\w ]|_", " ", text.lower()).split()
    return " ".join(NUMBERS.get(word, word) if numbers else word for word in words)


def need_decoder(subject: Subject, who: str) -> None:
    """Raise a ModelError unless the model can write text."""
    if not subject.model.architecture.endswith("ForConditionalGeneration"):
        raise ModelError(
            f"{who} needs a Whisper with its decoder, this is {subject.model.architecture}",
            hint="use the task fidelity for encoders",
        )


def _limits(subject: Subject, clips: Sequence[NamedClip]) -> dict[str, Any]:
    """What the score of a Whisper holds under: how many words at most, and how many clips it could not hear whole."""
    from edgecompress.model.decoding import MAX_NEW_TOKENS

    heard = subject.model.max_seconds or float("inf")
    return {
        "max_new_tokens": MAX_NEW_TOKENS,
        "encoder_hears_seconds": subject.model.max_seconds,
        "clips_longer_than_that": sum(len(clip.samples) / SAMPLE_RATE > heard for clip in clips),
    }


def _slots(folder: str | None, name: str) -> dict[str, dict[str, Any]]:
    """True slots by clip.

    Raises:
        AudioError: the file is missing, or not what it should be.
    """
    path = Path(folder or "") / name
    try:
        truths = json.loads(path.read_text(encoding="utf-8"))
        return {clip: dict(entry.get("slots", {})) for clip, entry in truths.items()}
    except OSError as cause:
        raise AudioError(
            f"{path} with the true slots is missing", hint="point [audio] folder at the recordings that have it"
        ) from cause
    except (ValueError, TypeError, AttributeError) as cause:
        raise AudioError(
            f"{path} does not hold slots ({cause})", hint='it is JSON: {"clip.flac": {"slots": {"size": "small"}}}'
        ) from cause


def _manifest_texts(folder: str | None, name: str) -> dict[str, str]:
    """True texts by clip; AudioError as in :func:`_slots`."""
    path = Path(folder or "") / name
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            texts = {row["path"]: row["text"] or "" for row in csv.DictReader(stream)}
            if not texts:
                raise ValueError("it has no rows")
            return texts
    except OSError as cause:
        raise AudioError(
            f"{path} is missing", hint='use reference = "source", or give a manifest with a column text'
        ) from cause
    except (KeyError, ValueError, csv.Error) as cause:
        raise AudioError(f"{path} has no column text ({cause})", hint='use reference = "source"') from cause
