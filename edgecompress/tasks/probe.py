"""The probe task: how well a linear classifier tells labels apart from what a frozen encoder says of each recording."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgecompress.errors import AudioError
from edgecompress.records import ScoreItem
from edgecompress.tasks import Progress, Result
from edgecompress.tasks.labelled import Fold, Labels, few_takes, held_back, leave_one_group_out, place_of, read_labels

if TYPE_CHECKING:
    from edgecompress.model import Model

Guess = Callable[[Fold, float], np.ndarray]
PENALTIES = (1.0, 10.0, 100.0)
MEL_BINS = 40


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Probe:
    """Accuracy of a linear classifier on a learned weighted sum of all layers, pooled over time (the SUPERB way).

    ``protocol = "leave_one_group_out"``: for every value of the column ``group`` (speakers), a probe is trained on all
    the others and scored on it. ``"few_takes"``: ``takes`` recordings of each class from the split ``train``, scored on the
    split ``test``, ``draws`` times over. ``train_split`` and ``test_split`` narrow either: give ``test_split = "test"``
    where the encoder itself has heard the rest. Unless ``penalty`` says it, each probe's is chosen among 1, 10 and 100 by
    cross-validation within its training recordings (group by group, or by thirds of each class): a weak one fits the
    speakers, a strong one starves ten takes a class.
    """

    kind: ClassVar[str] = "probe"
    subject: ClassVar[str] = "checkpoint"
    dataset: str = ""
    label: str = "label"
    manifest: Annotated[str, Field(pattern=r"\.csv$")] = "manifest.csv"
    protocol: Literal["leave_one_group_out", "few_takes"] = "leave_one_group_out"
    group: str = "speaker"
    takes: Annotated[int, Field(ge=1)] = 10
    draws: Annotated[int, Field(ge=1)] = 3
    seed: Annotated[int, Field(ge=0)] = 0
    pool: Literal["mean", "mean_std"] = "mean"
    penalty: Annotated[
        float | None,
        Field(
            gt=0,
            description="on the squared weights, the inverse of scikit-learn's C; default: chosen in training data",
        ),
    ] = None
    train_split: str | None = None
    test_split: str | None = None

    def score_model(self, model: Model, folder: str | None, say: Progress | None = None) -> Result:
        """Score an encoder, which is left as it is. ``folder`` is where the manifest lies, unless it says so itself.

        Raises:
            AudioError: the manifest has not what is asked for.
        """
        from edgecompress.tasks import encoding, weighted_sum

        labels = self._labels(folder)
        folds = self._folds(labels)
        used = _used(folds)
        states = encoding.pooled(model, [labels.rows[row].clip for row in used], self.pool, say)
        place = {row: number for number, row in enumerate(used)}
        numbers = _numbers(labels)
        shares: dict[str, list[float]] = {}

        def guess(fold: Fold, penalty: float) -> np.ndarray:
            train, test = ([place[row] for row in rows.tolist()] for rows in (fold.train, fold.test))
            probe = weighted_sum.fit(states[train], numbers[fold.train], len(labels.classes), penalty)
            shares[fold.name] = [round(share, 4) for share in probe.shares.tolist()]
            if say:
                say(f"probe {len(shares)} of {len(folds)}: {fold.name}")
            return probe.says(states[test])

        return self._result(labels, folds, guess, {"pooled": self.pool, "layer_weights": shares})

    def baseline(self, folder: str | None, say: Progress | None = None) -> Result:
        """The same protocol without an encoder: mean and deviation of log-mel over each clip, a linear probe.

        Raises:
            AudioError: the manifest has not what is asked for.
        """
        from edgecompress.tasks.encoding import log_mel

        labels = self._labels(folder)
        folds = self._folds(labels)
        numbers = _numbers(labels)
        values: dict[int, np.ndarray] = {}
        for row in _used(folds):
            frames = log_mel(labels.rows[row].clip, MEL_BINS)
            values[row] = np.concatenate([frames.mean(axis=0), frames.std(axis=0)])
        if say:
            say(f"log-mel of {len(values)} clips")

        def guess(fold: Fold, penalty: float) -> np.ndarray:
            train, test = (np.stack([values[row] for row in rows.tolist()]) for rows in (fold.train, fold.test))
            return _linear(train, numbers[fold.train], test, penalty)

        return self._result(labels, folds, guess, {"pooled": "log-mel mean and deviation", "mel_bins": MEL_BINS})

    @property
    def truth_files(self) -> tuple[str, ...]:
        """What is read beside the audio: a mended label is another score."""
        path = place_of(self.manifest, None)
        return (str(path if len(path.parts) == 1 else path.resolve()),)

    def _labels(self, folder: str | None) -> Labels:
        group = self.group if self.protocol == "leave_one_group_out" else None
        labels = read_labels(self.manifest, folder, dataset=self.dataset, label=self.label, group=group)
        if len(labels.classes) < 2:
            raise AudioError(
                f"dataset {self.dataset!r} has one value of {self.label}, {labels.classes[0]!r}: nothing to tell apart",
                hint="choose another dataset or label",
            )
        return labels

    def _folds(self, labels: Labels) -> list[Fold]:
        if self.protocol == "few_takes":
            return list(few_takes(labels.rows, self.train_split, self.test_split, self.takes, self.draws, self.seed))
        return list(leave_one_group_out(labels.rows, self.train_split, self.test_split))

    def _result(self, labels: Labels, folds: list[Fold], guess: Guess, conditions: dict[str, Any]) -> Result:
        """One item a recording: how often it was told right, of how often it was asked."""
        classes, numbers = labels.classes, _numbers(labels)
        right: dict[int, int] = {}
        said: dict[int, list[str]] = {}
        by_fold, penalties = {}, {}
        for fold in folds:
            penalties[fold.name] = self.penalty or _best_penalty(held_back(labels.rows, fold), guess, numbers)
            guesses = guess(fold, penalties[fold.name])
            wanted = [labels.rows[row].label for row in fold.test.tolist()]
            answers = [classes[number] for number in guesses.tolist()]
            by_fold[fold.name] = sum(a == b for a, b in zip(answers, wanted, strict=True)) / len(wanted)
            for row, answer in zip(fold.test.tolist(), answers, strict=True):
                right[row] = right.get(row, 0) + (answer == labels.rows[row].label)
                said.setdefault(row, []).append(answer)
        items = [
            ScoreItem(
                clip=labels.rows[row].clip.name,
                numerator=right[row],
                denominator=len(said[row]),
                detail={"label": labels.rows[row].label, "said": said[row], "group": labels.rows[row].group},
            )
            for row in sorted(right)
        ]
        spread = {name: round(value, 4) for name, value in by_fold.items()}
        asked = {
            "protocol": self.protocol,
            "dataset": self.dataset,
            "classes": len(classes),
            "accuracy_by_fold": spread,
            "penalty_by_fold": penalties,
        }
        return Result("accuracy", True, items, labels.skipped, {**asked, **conditions})


def _best_penalty(folds: Sequence[Fold], guess: Guess, numbers: np.ndarray) -> float:
    """The penalty that is right most often on what the folds hold back: the greatest of equal ones, 10 without folds."""
    if not folds:
        return PENALTIES[1]
    right = {
        penalty: sum(int((guess(fold, penalty) == numbers[fold.test]).sum()) for fold in folds) for penalty in PENALTIES
    }
    return max(PENALTIES, key=lambda penalty: (right[penalty], penalty))


def _used(folds: Iterable[Fold]) -> list[int]:
    """Rows that any fold needs, sorted: the rest is never encoded."""
    return sorted({row for fold in folds for row in (*fold.train.tolist(), *fold.test.tolist())})


def _numbers(labels: Labels) -> np.ndarray:
    """The class number of each row."""
    numbers = {label: number for number, label in enumerate(labels.classes)}
    return np.array([numbers[row.label] for row in labels.rows])


def _linear(train: np.ndarray, wanted: np.ndarray, test: np.ndarray, penalty: float) -> np.ndarray:
    """Logistic regression on standardised features, by scikit-learn."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1 / penalty, max_iter=2000))
    return np.asarray(probe.fit(train, wanted).predict(test))
