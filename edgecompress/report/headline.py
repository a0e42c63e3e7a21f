"""Is smaller really faster, and what does it cost in accuracy? The answer in sentences, each computed from the rows."""

from __future__ import annotations

from edgecompress.report import formats
from edgecompress.report.findings import Best, Correlation, best, correlations, groups, quantized, smaller, speaks
from edgecompress.report.join import reference_row
from edgecompress.report.row import Metric, Row

ACRONYMS = ("wer", "cer", "per")
RANDOM = "Random weights: the times are real, the scores say nothing about accuracy."


def metric_name(metric: Metric) -> str:
    """``("barista", "slot_recall")`` as ``barista slot recall``; a task that its metric already names is left out."""
    task, name = (part.upper() if part in ACRONYMS else part.replace("_", " ") for part in metric)
    return name if task in name else f"{task} {name}"


def lead(rows: list[Row], metric: Metric | None, random_weights: bool) -> str:
    """The one sentence on top."""
    counts, kept = _verdicts(rows, metric)
    unclear = counts.pop("unclear")
    total = sum(counts.values())
    if not total and unclear:
        return f"Nothing here can answer yet: {unclear} timings lack a second fresh process, and one says nothing of the next."
    if not total:
        return "Nothing here can answer yet: no compressed model was measured beside dense on the same device."
    answer = "Yes" if counts["faster"] == total else "No" if not counts["faster"] else "Not always"
    said = f"{answer}: of {total} timings of smaller models, {counts['faster']} are faster than dense beyond the noise"
    said += f", {counts['same']} cannot be told from it, {counts['slower']} are slower"
    if metric and counts["faster"] and not random_weights:
        said += f"; {kept} of the faster ones keep {metric_name(metric)} within the noise of dense"
    if unclear:
        said += f"; {unclear} more rest on one process and say nothing"
    return f"{said}.{_disturbed(rows)}"


def _disturbed(rows: list[Row]) -> str:
    """A sentence on timings that other programs may have slowed down, or nothing."""
    timed = [row for row in rows if row.timing]
    disturbed = sum(row.disturbed for row in timed)
    if not disturbed:
        return ""
    return f" {disturbed} of all {len(timed)} timings were taken while other programs used more than half a CPU."


def _verdicts(rows: list[Row], metric: Metric | None) -> tuple[dict[str, int], int]:
    counts, kept = {"faster": 0, "same": 0, "slower": 0, "unclear": 0}, 0
    for here in groups(rows).values():
        for row in here:
            reference = reference_row(row, rows, row.precision)
            if not row.timing or not row.timing.verdict or reference is None or not smaller(row, reference):
                continue
            counts[row.timing.verdict] += 1
            cell = row.scores.get(metric) if metric else None
            kept += bool(
                cell and metric and row.timing.verdict == "faster" and cell.within_noise and speaks(row, metric)
            )
    return counts, kept


def details(rows: list[Row], metric: Metric | None, random_weights: bool) -> list[str]:
    """One sentence for each thing worth knowing, device by device."""
    said = [RANDOM] if random_weights else []
    kept_out = sum(row.suspect for row in rows)
    if kept_out:
        said.append(
            f"{kept_out} of {sum(bool(row.timing) for row in rows)} timings are kept out of this: see the warnings."
        )
    related = correlations(rows)
    for device in dict.fromkeys(device for device, _ in groups(rows)):
        if metric and not random_weights:
            said += [_best(found, metric) for found in best(rows, device, metric)] or _none_kept(rows, device, metric)
        for row, reference, speedup in quantized(rows):
            if row.where == device:
                times = formats.with_interval(speedup, 2, "×")
                said.append(f"{device}: dense at {row.precision} is {times} as fast as dense at {reference.precision}.")
        first = next((one.precision for one in related if one.device == device), None)
        here = [one for one in related if (one.device, one.precision) == (device, first)]
        said += [_related(here)] if here else []
    return said


def _best(found: Best, metric: Metric) -> str:
    row, cell = found.row, found.row.scores[metric]
    dense = found.reference.scores.get(metric)
    difference = cell.difference
    digits = formats.score_digits(cell.estimate.value)
    over = f", difference {formats.with_interval(difference, digits)} over {difference.n} clips" if difference else ""
    loss = cell.loss or 0.0
    open_loss = f": a loss of {formats.fixed(loss, digits)} is not excluded" if loss > 0 else ""
    scores = formats.fixed(cell.estimate.value, digits)
    scores += f" against {formats.fixed(dense.estimate.value, digits)}" if dense else ""
    return (
        f"{row.where}, {row.precision}: the fastest within noise of dense is {row.label}, "
        f"{formats.with_interval(found.speedup, 2, '×')} as fast; {metric_name(metric)} {scores}{over}{open_loss}."
    )


def _none_kept(rows: list[Row], device: str, metric: Metric) -> list[str]:
    here = [row for row in rows if row.where == device and metric in row.scores and row.technique != "dense"]
    scored = [row for row in here if speaks(row, metric)]
    if not scored:
        return []
    few = max((cell.difference.n for row in scored if (cell := row.scores[metric]).difference), default=0)
    if few < 20:
        return [f"{device}: {few} clips are too few to say which model keeps {metric_name(metric)}."]
    return [f"{device}: no model is faster than dense and within the noise of its {metric_name(metric)}."]


def _related(here: list[Correlation]) -> str:
    if not here[0].estimate.has_interval:
        return f"{here[0].device}: {here[0].estimate.n} models are too few to correlate latency with size."
    told = [f"{formats.with_interval(one.estimate, 2)} with {one.counted}" for one in here]
    where = ", ".join(part for part in (here[0].device, here[0].precision) if part)
    return f"{where}: rank correlation of latency is {', '.join(told)} (n = {here[0].estimate.n})."
