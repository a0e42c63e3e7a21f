"""What the rows say together: what smaller models gained, correlations, and warnings that need more than one record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgecompress import stats
from edgecompress.report import formats
from edgecompress.report.caveats import TITLES, Caveat
from edgecompress.report.folder import RunFolder
from edgecompress.report.join import reference_row, samples_s
from edgecompress.report.row import PRECISIONS, Metric, Row
from edgecompress.stats import Estimate

SMALLER = 0.99


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of latency with a count, on one device at one precision."""

    device: str
    precision: str
    counted: str
    estimate: Estimate


@dataclass(frozen=True)
class Best:
    """The fastest row of a device whose score cannot be told from dense's."""

    row: Row
    reference: Row
    speedup: Estimate


def groups(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows that can be compared, by (device and conditions, precision), in the order of ``PRECISIONS``."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.timing and row.device and not row.suspect:
            found.setdefault((row.where, row.precision or ""), []).append(row)
    return dict(sorted(found.items(), key=lambda item: (item[0][0], _place(item[0][1]))))


def _place(precision: str) -> int:
    return PRECISIONS.index(precision) if precision in PRECISIONS else len(PRECISIONS)


def correlations(rows: list[Row]) -> list[Correlation]:
    """Latency against multiply-accumulates, non-zero and stored parameters, wherever there are three rows or more."""
    found = []
    for (device, precision), here in groups(rows).items():
        costed = [row for row in here if row.cost and row.timing and row.macs is not None]
        latencies = [row.timing.latency.value for row in costed if row.timing]
        counts = {
            "multiply-accumulates": [row.macs or 0.0 for row in costed],
            "non-zero parameters": [float(row.cost.parameters.nonzero) for row in costed if row.cost],
            "stored parameters": [float(row.cost.parameters.total) for row in costed if row.cost],
        }
        for counted, values in counts.items():
            estimate = stats.spearman(latencies, values)
            if estimate is not None:
                found.append(Correlation(device, precision, counted, estimate))
    return found


def smaller(row: Row, reference: Row) -> bool:
    """Whether a row has fewer non-zero parameters or multiply-accumulates than dense."""
    if row.cost is None or reference.cost is None or row.macs is None or reference.macs is None:
        return False
    fewer = row.cost.parameters.nonzero < SMALLER * reference.cost.parameters.nonzero
    return fewer or row.macs < SMALLER * reference.macs


def best(rows: list[Row], device: str, metric: Metric) -> list[Best]:
    """For each precision of a device (``Row.where``): the fastest row surely faster than dense and within its noise in score."""
    found = []
    for (where, precision), here in groups(rows).items():
        fit = [
            row
            for row in here
            if where == device and row.timing and row.timing.verdict == "faster"
            if metric in row.scores and row.scores[metric].within_noise and speaks(row, metric)
        ]
        fit.sort(key=lambda row: -(row.timing.speedup.value if row.timing and row.timing.speedup else 0.0))
        reference = reference_row(fit[0], rows, precision) if fit else None
        if reference and fit[0].timing and fit[0].timing.speedup:
            found.append(Best(fit[0], reference, fit[0].timing.speedup))
    return found


def speaks(row: Row, metric: Metric) -> bool:
    """Whether a row's score is its own: that of a checkpoint is an fp32 artifact's too, and no other's."""
    cell = row.scores[metric]
    return not cell.in_torch and (not cell.of_checkpoint or row.precision in (None, "fp32"))


def quantized(rows: list[Row]) -> Iterator[tuple[Row, Row, Estimate]]:
    """(row, dense at the first precision, speed-up) for dense at every other precision."""
    dense = [row for row in rows if row.technique == "dense" and row.measurement and row.timing and not row.suspect]
    for row in dense:
        first = min((one.precision or "" for one in dense if one.where == row.where), key=_place)
        reference = reference_row(row, rows, first)
        if row.precision != first and reference and reference.measurement and row.measurement:
            yield row, reference, stats.ratio(samples_s(reference.measurement), samples_s(row.measurement))


# --- warnings of more than one record --------------------------------------------------------------------------------
def run_caveats(folder: RunFolder, rows: list[Row]) -> list[tuple[str, Caveat]]:
    """(where, caveat) of everything: each measurement's own, then what only the join can see."""
    found = [(_where(row), caveat) for row in rows for caveat in row.caveats]
    found += _zeros(rows)
    for row in rows:
        timing, measurement = row.timing, row.measurement
        if timing and timing.speedup and measurement and timing.reference_seconds != measurement.audio_seconds:
            lengths = (
                f"takes {_seconds(measurement.audio_seconds)} where dense takes {_seconds(timing.reference_seconds)}"
            )
            found.append((_where(row), Caveat("length", f"one inference {lengths}; the speed-up is per inference")))
    if folder.random_weights:
        found.append(
            (folder.title, Caveat("random", "never trained: times are real, scores say nothing about accuracy"))
        )
    twice = dict.fromkeys(row.label for row in rows if row.label != row.recipe)
    found += [(label, Caveat("twice", "an earlier cell of a recipe that was changed since?")) for label in twice]
    torch = dict.fromkeys(
        row.label for row in rows if row.format and any(cell.in_torch for cell in row.scores.values())
    )
    found += [(label, Caveat("torch-score", "the fp32 export was not scored itself")) for label in torch]
    for score in folder.scores.values():
        if score.skipped:
            text = f"{len(score.skipped)} of {len(score.skipped) + len(score.items)} clips"
            found.append((f"{score.subject} · {score.task}", Caveat("skipped", text)))
    found += _heard(folder)
    found += [("", Caveat("unreadable", text)) for text in folder.unreadable]
    return found


def _heard(folder: RunFolder) -> Iterator[tuple[str, Caveat]]:
    """A line a task: how many of its items its models had heard in training, with labels or without."""
    seen: dict[str, list[tuple[int, int]]] = {}
    for score in folder.scores.values():
        heard = score.conditions.get("heard_in_training")
        if isinstance(heard, int) and heard > 0:
            seen.setdefault(score.task, []).append((heard, len(score.items)))
    for task, counts in seen.items():
        heard, items = max(counts)
        text = f"{heard:,} of {items:,} items, {len(counts)} model{'s' if len(counts) > 1 else ''}"
        yield task, Caveat("heard", f"{text}; a labelled task of unheard recordings may come out lower")


def _seconds(value: float | None) -> str:
    return f"{value:g} s" if value is not None else "another input"


def _where(row: Row) -> str:
    return " · ".join(part for part in (row.where, row.label, row.precision) if part)


def _zeros(rows: list[Row]) -> Iterator[tuple[str, Caveat]]:
    """Weight pruning stores zeros in a network of the same shape: say what they brought."""
    for row in rows:
        if row.cost is None or row.timing is None or row.timing.speedup is None:
            continue
        reference = reference_row(row, rows, row.precision)
        share = 1 - row.cost.parameters.nonzero / max(1, row.cost.parameters.total)
        if share < 0.05 or reference is None or reference.cost is None:
            continue
        macs, whole = row.cost.macs, reference.cost.macs
        if macs and whole and macs.total < SMALLER * whole.total:
            continue  # something else made this one smaller
        seen = f"{share:.0%} zeros, measured {formats.with_interval(row.timing.speedup, 2, '×')}"
        why = "another cause than zeros?" if row.timing.verdict == "faster" else "dense runtimes do not use zeros"
        yield _where(row), Caveat("zeros", f"{seen}: {why}")


def grouped(found: list[tuple[str, Caveat]]) -> list[tuple[str, bool, list[str]]]:
    """(title, whether it voids measurements, "where: what" lines) in the order of ``TITLES``."""
    lines: dict[str, list[str]] = {}
    for where, caveat in found:
        text = f"{caveat.text} [{caveat.rule}]" if caveat.rule else caveat.text
        lines.setdefault(caveat.code, []).append(f"{where}: {text}" if where else text)
    invalid = {caveat.code for _, caveat in found if caveat.invalid}
    order = list(TITLES)
    return [(TITLES[code], code in invalid, lines[code]) for code in sorted(lines, key=order.index)]
