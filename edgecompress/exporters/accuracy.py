"""Quantisation held to an accuracy: what costs too much of a score stays in fp32, and nothing else does.

Each part is quantised alone to see how far that takes the answer from torch's; the worst are then left in fp32, as many
as bisection finds it takes to be within the tolerated drop. As OpenVINO's and Neural Compressor's accuracy-aware
modes do it, but with whole layers for parts, so that a model of 12 layers is written some twenty times and not hundreds.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.errors import ExportError
from edgecompress.exporters.converting import converting, written_and_opened
from edgecompress.exporters.order import Order, Written
from edgecompress.exporters.parity import distances, fitted, within

if TYPE_CHECKING:
    from edgecompress.exporters import Exporter
    from edgecompress.exporters.parity import Runner

Say = Callable[[str], None]
Opened = tuple[Written, "Runner"]
FIDELITY_CLIPS = 8
# Names of convolutions over time and of the projection behind them, as each format spells modules.
FRONT_END = re.compile(r"feature_extractor|feature_projection|conv_layers|(^|[/.])conv[12]?([/.]|$)")
LAYER = re.compile(r"^(.*?layers?[./]\d+)([./]|$)")


@dataclass(frozen=True)
class Judge:
    """Who says whether a quantised file is good enough: a task's score of what a runner answers, on some clips.

    ``reference`` is the score of the same model in torch on these clips, ``tolerated_drop`` how much worse a file may
    be (in the metric's own unit; None: the score is only recorded). ``clips`` counts them.
    """

    task: str
    metric: str
    higher_is_better: bool
    clips: int
    reference: float
    score: Callable[[Runner], float]
    tolerated_drop: float | None = None

    def drop(self, value: float) -> float:
        """How much worse than torch a score is; negative where it is better."""
        return self.reference - value if self.higher_is_better else value - self.reference

    def value(self, run: Runner) -> float:
        """The file's score.

        Raises:
            ExportError: the runtime failed on a clip; the cause is chained.
        """
        with converting(f"{self.task} cannot be scored", "try another format or precision"):
            return self.score(run)

    def record(self, value: float) -> dict[str, Any]:
        """What the certificate keeps."""
        return {
            "task": self.task, "metric": self.metric, "higher_is_better": self.higher_is_better, "clips": self.clips,
            "torch": self.reference, "file": value, "tolerated_drop": self.tolerated_drop,
        }  # fmt: skip


def groups_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Parts by what they are left out together with: those of one layer, and others each alone."""
    groups: dict[str, list[str]] = {}
    for name in names:
        found = LAYER.match(name)
        groups.setdefault(found[1] if found else name, []).append(name)
    return groups


def controlled(
    exporter: Exporter, order: Order, first: Opened, judge: Judge, say: Say | None = None
) -> tuple[Order, Opened, float]:
    """Write again, with as few parts in fp32 as it takes: the order that was carried out, what it wrote, its score.

    Raises:
        ExportError: the score is out of reach with anything quantised at all.
    """
    value = judge.value(first[1])
    limit = judge.tolerated_drop
    if limit is None or judge.drop(value) <= limit:
        return order, first, value
    with _beside(exporter, order) as (order, place):
        groups = groups_of(exporter.quantizable(_full(order)))
        ranked = _ranked(exporter, order, first[0], groups, place, say)
        best = _fewest(exporter, order, ranked, judge, place, say)
        if best is None:
            raise ExportError(
                f"{order.precision}: {judge.metric} drops by more than {limit:g} whatever stays in fp32 "
                f"({value:.4g} with all quantised, torch {judge.reference:.4g})",
                hint="allow a greater drop, calibrate with more recordings, or choose another precision",
            )
        return *_again(exporter, order, best[0]), best[1]


def front_end_in_fp32(exporter: Exporter, order: Order) -> tuple[Order, Opened] | None:
    """Write again with the front end in fp32; None where there is none that could stay, or nothing else is left."""
    if order.precision in ("fp32", "fp16") or order.precision.endswith("-naive"):
        return None
    with _beside(exporter, order) as (order, _):
        names, kept = exporter.quantizable(_full(order)), order.options.float_nodes
        front = [name for name in names if FRONT_END.search(name) and name not in kept]
        if not front or not set(names) - {*front, *kept}:
            return None
        return _again(exporter, order, (*kept, *front))


@contextmanager
def _beside(exporter: Exporter, order: Order) -> Iterator[tuple[Order, Path]]:
    """A folder for scratch, and the order with an fp32 file to start from: its own, or one in that folder."""
    with tempfile.TemporaryDirectory(prefix=".accuracy-", dir=order.folder.parent) as scratch:
        place = Path(scratch)
        if order.full is None:
            (place / "fp32").mkdir()
            written, _ = written_and_opened(exporter, replace(order, precision="fp32", folder=place / "fp32"))
            order = replace(order, full=place / "fp32" / written.model_file)
        yield order, place


def _full(order: Order) -> Path:
    assert order.full is not None
    return order.full


def _again(exporter: Exporter, order: Order, names: Sequence[str]) -> tuple[Order, Opened]:
    """Write in the place of what is there, with these parts in fp32. The order that is given back has no fp32 file."""
    for path in order.folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    chosen = replace(order, options=replace(order.options, float_nodes=tuple(names)))
    return replace(chosen, full=None), written_and_opened(exporter, chosen)


def fidelity(order: Order, opened: Opened, clips: Sequence[np.ndarray]) -> dict[str, Any] | None:
    """Mean cosine of the file's answer to torch's over some clips, as a score; None without clips."""
    written, run = opened
    if not clips or order.form.per_second is None:
        return None
    cosines = []
    for clip in clips[:FIDELITY_CLIPS]:
        feeds = fitted(order.model, order.form, clip, written)
        said, wanted = order.form.cut(run(feeds), feeds), order.form.answer(order.model, feeds)
        cosines += [distances(said[name], wanted[name])["cosine"] for name in wanted]
    value = float(np.mean(cosines))
    return {
        "task": "fidelity", "metric": "cosine", "higher_is_better": True, "clips": len(cosines), "torch": 1.0,
        "file": value, "tolerated_drop": None,
    }  # fmt: skip


def _try(exporter: Exporter, order: Order, names: Sequence[str], place: Path) -> Runner:
    """A file with these parts in fp32, opened; the one before it is gone."""
    attempt = place / "attempt"
    shutil.rmtree(attempt, ignore_errors=True)
    attempt.mkdir()
    trial = replace(order, folder=attempt, options=replace(order.options, float_nodes=tuple(names)))
    return written_and_opened(exporter, trial)[1]


def _ranked(
    exporter: Exporter, order: Order, written: Written, groups: dict[str, list[str]], place: Path, say: Say | None
) -> list[list[str]]:
    """Groups of names, first the one that takes the answer furthest from torch's when it alone is quantised."""
    feeds = [within(order.form, each, written) for each in order.calibration()[:2]]
    wanted = [order.form.answer(order.model, each) for each in feeds]
    found: list[tuple[float | None, list[str]]] = []
    for number, (group, names) in enumerate(groups.items(), 1):
        if len(groups) == 1:
            return [names]
        if say:
            say(f"quantising {group} alone ({number} of {len(groups)})")
        others = [name for other in groups.values() for name in other if name not in names]
        try:
            run = _try(exporter, order, others, place)
        except ExportError:  # some parts cannot be quantised without others; how much they cost is then not known
            found.append((None, names))
            continue
        errors = []
        for each, right in zip(feeds, wanted, strict=True):
            said = order.form.cut(run(each), each)
            errors += [1 - distances(said[name], right[name])["cosine"] for name in right]
        found.append((float(np.mean(errors)), names))
    usual = float(np.median([error for error, _ in found if error is not None] or [0.0]))
    return [names for _, names in sorted(found, key=lambda one: -(usual if one[0] is None else one[0]))]


def _fewest(
    exporter: Exporter, order: Order, ranked: list[list[str]], judge: Judge, place: Path, say: Say | None
) -> tuple[tuple[str, ...], float] | None:
    """The shortest beginning of the ranking that keeps the score, by bisection, and that score; never all of it."""
    assert judge.tolerated_drop is not None
    low, high, best = 1, len(ranked) - 1, None
    while low <= high:
        count = (low + high) // 2
        names = tuple(name for group in ranked[:count] for name in group)
        try:
            value = judge.value(_try(exporter, order, names, place))
        except ExportError:  # what is left cannot be quantised by itself
            high = count - 1
            continue
        if say:
            say(f"{count} of {len(ranked)} groups in fp32: {judge.metric} {value:.4g}, torch {judge.reference:.4g}")
        if judge.drop(value) <= judge.tolerated_drop:
            best, high = (names, value), count - 1
        else:
            low = count + 1
    return best
