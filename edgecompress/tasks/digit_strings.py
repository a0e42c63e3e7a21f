"""The task digit_strings: strings of digits of an unheard speaker in a noisy room, read by CTC from a frozen encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgecompress.audio import Clip
from edgecompress.records import ScoreItem
from edgecompress.tasks import Progress, Result
from edgecompress.tasks.labelled import Labels, leave_one_group_out, place_of, read_labels
from edgecompress.tasks.strings import DigitString, make_strings, quiet_rooms, shaped_rooms

if TYPE_CHECKING:
    import torch

    from edgecompress.model import Model

ROOMS = 40  # different noises
MEL_BINS = 40
MEL_FRAMES = 2  # log-mel frames of 10 ms that make one of the baseline's, 20 ms like the encoders'
Read = Callable[[str, list[int], list[int]], tuple[list[list[int]], list[float]]]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DigitStrings:
    """Digit error rate of a small CTC head on a learned weighted sum of all layers, one speaker held out at a time.

    Each string is five to eight single recordings of one speaker with random gaps, under noise 10 to 30 dB below the
    speech: coloured like the quiet parts of the dataset ``noise``, or made up where none is named. The same seed makes the
    same strings for every model. ``folds`` limits how many speakers are held out. ``finetune`` trains a copy of the
    encoder for so many steps after its head; the model that is scored stays as it is.
    """

    kind: ClassVar[str] = "digit_strings"
    subject: ClassVar[str] = "checkpoint"
    dataset: str = ""
    label: str = "label"
    manifest: Annotated[str, Field(pattern=r"\.csv$")] = "manifest.csv"
    group: str = "speaker"
    noise: str | None = None
    strings: Annotated[int, Field(ge=1, description="strings of each speaker")] = 60
    folds: Annotated[int | None, Field(ge=1)] = None
    steps: Annotated[int, Field(ge=1, description="of the head's training")] = 600
    learning_rate: Annotated[float, Field(gt=0, description="of the head")] = 5e-3
    finetune: Annotated[int, Field(ge=0, description="further steps in which the encoder trains too")] = 0
    finetune_rate: Annotated[float, Field(gt=0, description="of the encoder, while it trains")] = 1e-4
    seed: Annotated[int, Field(ge=0)] = 0
    train_split: str | None = None
    test_split: str | None = None

    def score_model(self, model: Model, folder: str | None, say: Progress | None = None) -> Result:
        """Score an encoder, which is left as it is. ``folder`` is where the manifest lies, unless it says so itself.

        Raises:
            AudioError: the manifest has not what is asked for.
        """
        from edgecompress.tasks import ctc, encoding

        work = self._prepare(folder)
        states, stride = ctc.slowed(encoding.frame_states(model, work.clips, say), work.seconds)

        def read(name: str, train: list[int], test: list[int]) -> tuple[list[list[int]], list[float]]:
            head = self._head(work, states, train)
            if not self.finetune:
                return ctc.read(head, [states[row] for row in test]), head.shares.tolist()
            twin = model.clone()
            heard = [work.clips[row].samples for row in train]
            wanted = [work.wanted[row] for row in train]
            ctc.finetune(
                twin, head, heard, wanted, stride=stride, steps=self.finetune, rate=self.finetune_rate, seed=self.seed
            )
            tuned = encoding.frame_states(twin, [work.clips[row] for row in test])
            return ctc.read(head, [ctc.averaged(each, stride) for each in tuned]), head.shares.tolist()

        trained = {"encoder_trained_steps": self.finetune} if self.finetune else {"encoder": "frozen"}
        return self._result(work, read, trained, say)

    def baseline(self, folder: str | None, say: Progress | None = None) -> Result:
        """The same head on log-mel alone, two frames of 10 ms at a time, averaged as states are: what no encoder has to beat.

        Raises:
            AudioError: the manifest has not what is asked for.
        """
        import torch

        from edgecompress.tasks import ctc, encoding

        work = self._prepare(folder)
        states = []
        for clip in work.clips:
            frames = torch.from_numpy(encoding.log_mel(clip, MEL_BINS))
            whole = frames.shape[0] // MEL_FRAMES
            states.append(frames[: whole * MEL_FRAMES].reshape(1, whole, -1))
        states, _ = ctc.slowed(states, work.seconds)
        if say:
            say(f"log-mel of {len(states)} strings")

        def read(name: str, train: list[int], test: list[int]) -> tuple[list[list[int]], list[float]]:
            head = self._head(work, states, train)
            return ctc.read(head, [states[row] for row in test]), head.shares.tolist()

        return self._result(work, read, {"encoder": f"none: log-mel, {MEL_BINS} bins"}, say)

    @property
    def truth_files(self) -> tuple[str, ...]:
        """What is read beside the audio: a mended label is another score."""
        path = place_of(self.manifest, None)
        return (str(path if len(path.parts) == 1 else path.resolve()),)

    def _prepare(self, folder: str | None) -> Work:
        labels = read_labels(self.manifest, folder, dataset=self.dataset, label=self.label, group=self.group)
        groups = [fold.name for fold in leave_one_group_out(labels.rows, self.train_split, self.test_split, self.folds)]
        rooms = shaped_rooms(ROOMS, self.seed) if self.noise is None else quiet_rooms(self._noise_clips(folder))
        strings: list[DigitString] = []
        for split in sorted({self.train_split, self.test_split}, key=str):
            rows = [row for row in labels.rows if split is None or row.split == split]
            strings += make_strings(rows, self.strings, self.seed, split or "all", rooms)
        return Work(labels, strings, self.train_split or "all", self.test_split or "all", groups)

    def _noise_clips(self, folder: str | None) -> list[Clip]:
        found = read_labels(self.manifest, folder, dataset=self.noise or "", label="path", group=None, at_most=ROOMS)
        return [row.clip for row in found.rows]

    def _head(self, work: Work, states: Sequence[torch.Tensor], train: list[int]) -> Any:
        from edgecompress.tasks import ctc

        return ctc.train_head(
            [states[row] for row in train],
            [work.wanted[row] for row in train],
            len(work.labels.classes),
            frames_per_second=ctc.frame_rate(states, work.seconds),
            steps=self.steps,
            rate=self.learning_rate,
            seed=self.seed,
        )

    def _result(self, work: Work, read: Read, conditions: dict[str, Any], say: Progress | None) -> Result:
        from edgecompress.tasks.ctc import edits

        items, shares, rates, wanted = [], {}, {}, work.wanted
        for number, group in enumerate(work.groups, 1):
            train, test = work.rows_of(group)
            texts, shares[group] = read(group, train, test)
            errors = [edits(text, wanted[row]) for text, row in zip(texts, test, strict=True)]
            rates[group] = round(sum(errors) / sum(len(wanted[row]) for row in test), 4)
            for text, row, count in zip(texts, test, errors, strict=True):
                said = " ".join(work.labels.classes[one - 1] for one in text)
                items.append(_item(work.strings[row], count, said))
            if say:
                say(f"speaker {number} of {len(work.groups)} held out: {group}, error rate {rates[group]:.3f}")
        listened = {group: [round(share, 4) for share in values] for group, values in shares.items()}
        made = {"strings_of": self.dataset, "noise": self.noise or "made up", "error_rate_by_fold": rates}
        return Result(
            "digit_error_rate", False, items, work.labels.skipped, {**made, **conditions, "layer_weights": listened}
        )


@plain_dataclass(frozen=True)
class Work:
    """Strings, the parts of them that train and that are scored (of different groups), and the groups to hold out."""

    labels: Labels
    strings: list[DigitString]
    train_part: str
    test_part: str
    groups: list[str]

    @property
    def clips(self) -> list[Clip]:
        return [one.clip for one in self.strings]

    @property
    def seconds(self) -> float:
        return sum(clip.seconds for clip in self.clips)

    @property
    def wanted(self) -> list[list[int]]:
        """Class numbers of each string, from 1."""
        numbers = {label: number for number, label in enumerate(self.labels.classes, 1)}
        return [[numbers[label] for label in one.labels] for one in self.strings]

    def rows_of(self, group: str) -> tuple[list[int], list[int]]:
        """Strings of all the other groups to train on, and of this one to score."""
        train = [row for row, one in enumerate(self.strings) if one.part == self.train_part and one.group != group]
        test = [row for row, one in enumerate(self.strings) if one.part == self.test_part and one.group == group]
        return train, test


def _item(string: DigitString, errors: int, said: str) -> ScoreItem:
    detail = {
        "said": said,
        "reference": " ".join(string.labels),
        "group": string.group,
        "recordings": list(string.recordings),
    }
    return ScoreItem(clip=string.clip.name, numerator=errors, denominator=len(string.labels), detail=detail)
