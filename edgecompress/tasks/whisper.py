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
    ``reference = "manifest"``: the column ``text`` of the audio folder's ``manifest.csv``.
    """

    kind: ClassVar[str] = "wer"
    reference: Literal["source", "manifest"] = "source"

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
        truths = _manifest_texts(folder) if self.reference == "manifest" else {}
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
        conditions = {"reference": "the source model's text" if self.reference == "source" else "manifest text"}
        return Result("wer", False, items, skipped, conditions)


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
            truth = slots.get(clip.name, {}).get("slots")
            if not truth:
                skipped[clip.name] = f"{self.truths} has no slots for it"
                continue
            said = f" {plain(text, numbers=self.numbers_as_words)} "
            missed = [name for name, value in truth.items() if f" {plain(value)} " not in said]
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
        return Result("slot_recall", True, items, skipped, {"numbers_as_words": self.numbers_as_words})


def plain(text: str, *, numbers: bool = False) -> str:
    """Lower case, letters and digits only, single spaces; digits as words when asked."""
    words = re.sub(r"[^a-z0-9 ]", " ", text.lower()).split()
    return " ".join(NUMBERS.get(word, word) if numbers else word for word in words)


def need_decoder(subject: Subject, who: str) -> None:
    """Raise a ModelError unless the model can write text."""
    if not subject.model.architecture.endswith("ForConditionalGeneration"):
        raise ModelError(
            f"{who} needs a Whisper with its decoder, this is {subject.model.architecture}",
            hint="use the task fidelity for encoders",
        )


def _slots(folder: str | None, name: str) -> dict[str, Any]:
    path = Path(folder or "") / name
    if not folder or not path.exists():
        raise AudioError(
            f"{path} with the true slots is missing", hint="point [audio] folder at the recordings that have it"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def _manifest_texts(folder: str | None) -> dict[str, str]:
    path = Path(folder or "") / "manifest.csv"
    if not folder or not path.exists():
        raise AudioError(f"{path} is missing", hint='use reference = "source", or give a manifest with a column text')
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or "text" not in rows[0]:
        raise AudioError(f"{path} has no column text", hint='use reference = "source"')
    return {row["path"]: row["text"] for row in rows}
