"""Tables as values: columns and cells that the page, ``report.md`` and ``table.csv`` each write in their own way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from edgecompress.report import formats
from edgecompress.report.facts import threads
from edgecompress.report.findings import Correlation
from edgecompress.report.folder import RunFolder
from edgecompress.report.headline import metric_name
from edgecompress.report.pairs import COLUMNS, Pair
from edgecompress.report.row import Metric, Row, ScoreCell

VERDICTS = {"faster": "good", "slower": "bad", "same": "muted", "unclear": "muted"}
VERDICT_TITLES = {"same": "cannot be told apart from dense", "unclear": "a single process: no interval"}


@dataclass(frozen=True)
class Cell:
    """What a cell says, its interval or other small print, what it sorts by, its tone, and what hovering tells."""

    text: str
    small: str = ""
    sort: float | str | None = None
    tone: str = ""
    title: str = ""


@dataclass(frozen=True)
class Table:
    """Columns are (name, what it means); names of text columns come first and are aligned to the left."""

    columns: list[tuple[str, str]]
    rows: list[list[Cell]]
    text_columns: int


NOTHING = Cell(formats.NOTHING, tone="muted")


def number(value: float | None, digits: int = 3, scale: float = 1.0) -> Cell:
    """A number in units of ``scale``."""
    if value is None:
        return NOTHING
    return Cell(formats.significant(value / scale, digits), sort=value)


def scored(cell: ScoreCell | None) -> Cell:
    """A score, its interval and how many items it is over."""
    if cell is None:
        return NOTHING
    estimate, difference = cell.estimate, cell.difference
    digits = formats.score_digits(estimate.value)
    title = f"{estimate.n} items"
    if difference is not None:
        title += f"; difference to dense {formats.with_interval(difference, digits)} over {difference.n} shared clips"
    if cell.in_torch:
        title += "; scored in torch, not in this export"
    if cell.of_checkpoint:
        title += "; of the checkpoint, in torch"
    groups = f" in {estimate.groups} group{'s' if estimate.groups > 1 else ''}" if estimate.groups else ""
    small = f"{formats.interval(estimate, digits)} n {estimate.n}{groups}".strip()
    return Cell(
        formats.fixed(estimate.value, digits) + ("†" if cell.in_torch else ""), small, estimate.value, "", title
    )


def _names(row: Row) -> list[Cell]:
    return [
        Cell(row.label, sort=row.label, title=row.technique.replace("_", " ")),
        Cell(row.format or formats.NOTHING),
        Cell(row.precision or formats.NOTHING),
    ]


NAME_COLUMNS = [("recipe", "the techniques that were applied"), ("format", ""), ("precision", "")]


def cost_table(rows: list[Row], metrics: list[Metric]) -> Table:
    """What each artifact costs and scores, whatever it runs on: one row an artifact."""
    columns = [
        *NAME_COLUMNS,
        ("parameters, M", "stored, in millions"),
        ("non-zero, M", "parameters that are not zero, in millions"),
        ("disk, MiB", "bytes a device must store"),
        ("GMAC / s of audio", "multiply-accumulates for one second of audio"),
        ("GMAC / inference", "multiply-accumulates of one pass over the counted input"),
        ("parity error", "greatest difference to torch / greatest torch value, over all lengths tried"),
        *[(metric_name(metric), f"task {metric[0]}, with its 95 % interval") for metric in metrics],
    ]
    seen: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        seen.setdefault((row.label, row.subject, row.format, row.precision), row)
    return Table(columns, [_cost_cells(row, metrics) for row in seen.values()], len(NAME_COLUMNS))


def _cost_cells(row: Row, metrics: list[Metric]) -> list[Cell]:
    cost = row.cost
    return [
        *_names(row),
        number(cost.parameters.total if cost else None, 4, 1e6),
        number(cost.parameters.nonzero if cost else None, 4, 1e6),
        number(row.size_bytes, 3, 2**20),
        number(cost.macs.per_second if cost and cost.macs else None, 3, 1e9),
        number(cost.macs.total if cost and cost.macs else None, 3, 1e9),
        Cell(f"{row.parity:.1e}", sort=row.parity) if row.parity is not None else NOTHING,
        *[scored(row.scores.get(metric)) for metric in metrics],
    ]


def device_table(rows: list[Row], device: str, metric: Metric | None) -> Table:
    """What each artifact takes on one device: one row a measurement."""
    here = [row for row in rows if row.device == device]
    columns = [
        *NAME_COLUMNS,
        ("input, s", "seconds of audio in one inference"),
        ("threads", "that the runtime was given"),
        ("median, ms", "latency of one inference, with its 95 % interval over repetitions and samples"),
        ("p90, ms", "by the early-stopping rule of MLPerf: needs 64 samples"),
        ("p95, ms", "by the same rule: needs 130 samples"),
        ("p99, ms", "by the same rule: needs 662 samples"),
        ("speed-up", "dense at the same precision on this device / this, with its 95 % interval"),
        ("against dense", "beyond the interval and beyond 2 %: faster or slower; same: cannot be told apart"),
        ("real-time factor", "latency / seconds of audio"),
        ("peak memory, MiB", "greatest resident size of the process (VmHWM)"),
        ("load, s", "making the runtime's session from warm pages, median of the repetitions"),
        *([(metric_name(metric), "with its 95 % interval")] if metric else []),
        *([("front", f"no other here is as fast and as good in {metric_name(metric)}")] if metric else []),
        ("n", "samples / fresh processes"),
        ("warnings", "see below"),
    ]
    return Table(columns, [_device_cells(row, metric) for row in here], len(NAME_COLUMNS))


def _device_cells(row: Row, metric: Metric | None) -> list[Cell]:
    timing, measurement = row.timing, row.measurement
    codes = dict.fromkeys(caveat.code for caveat in row.caveats)
    warnings = Cell(
        ", ".join(codes) or formats.NOTHING, tone="bad" if row.suspect else "muted", title=formats.clean(_rules(row))
    )
    told = [scored(row.scores.get(metric)), _front(row)] if metric else []
    audio = measurement.audio_seconds if measurement else None
    seconds = Cell(f"{audio:g}", sort=audio) if audio is not None else NOTHING
    given = threads(measurement).value if measurement else None
    asked = Cell(str(given), sort=given if isinstance(given, int) else str(given)) if given is not None else NOTHING
    name, *others = _names(row)
    names = [replace(name, small=formats.clean(row.conditions)), *others]
    if timing is None or measurement is None:
        return [*names, seconds, asked, *[NOTHING] * 9, *told, NOTHING, warnings]
    counts = sum(len(repetition.samples_ns) for repetition in measurement.repetitions)
    speedup, verdict = timing.speedup, timing.verdict
    return [
        *names,
        seconds,
        asked,
        Cell(
            formats.milliseconds(timing.latency.value), formats.latency_interval(timing.latency), timing.latency.value
        ),
        _percentile(timing.p90.value, timing.p90.needed, timing.latency.value),
        _percentile(timing.p95.value, timing.p95.needed, timing.latency.value),
        _percentile(timing.p99.value, timing.p99.needed, timing.latency.value),
        Cell(f"{speedup.value:.2f}×", formats.interval(speedup, 2), speedup.value) if speedup else NOTHING,
        Cell(verdict, tone=VERDICTS[verdict], title=VERDICT_TITLES.get(verdict, "")) if verdict else NOTHING,
        number(timing.real_time_factor),
        number(timing.peak_rss_bytes, 3, 2**20),
        number(timing.load_s),
        *told,
        Cell(f"{counts} / {timing.repetitions}", sort=counts),
        warnings,
    ]


def _rules(row: Row) -> str:
    """The codes behind the warnings; of those that void, what was seen."""
    rules = {one.rule: f"{one.rule}: {one.text}" if one.invalid else one.rule for one in row.caveats if one.rule}
    return "; ".join(rules.values())


def _percentile(value: float | None, needed: int, like: float) -> Cell:
    if value is None:
        return Cell(f"n/a (needs {needed})", tone="muted", title=f"needs {needed} samples")
    return Cell(formats.milliseconds(value, like), sort=value)


def _front(row: Row) -> Cell:
    if row.pareto is None:
        return NOTHING
    return Cell("★", sort=1, tone="good", title="on the Pareto front") if row.pareto else Cell("", sort=0)


def correlation_table(found: list[Correlation]) -> Table:
    """Does latency follow size? One row a device and precision."""
    counted = list(dict.fromkeys(one.counted for one in found))
    names = [("device", ""), ("precision", "")]
    columns = [*names, *[(f"with {name}", "Spearman, 1: same order") for name in counted], ("n", "models")]
    rows = []
    for device, precision in dict.fromkeys((one.device, one.precision) for one in found):
        here = {one.counted: one.estimate for one in found if (one.device, one.precision) == (device, precision)}
        told = [here.get(name) for name in counted]
        cells = [
            Cell(formats.fixed(one.value, 2), formats.interval(one, 2), one.value) if one else NOTHING for one in told
        ]
        n = max(one.n for one in here.values())
        rows.append([Cell(device), Cell(precision or formats.NOTHING), *cells, Cell(str(n), sort=n)])
    return Table(columns, rows, len(names))


def pair_table(found: list[Pair]) -> Table:
    """Plain against activation-aware."""
    used = [column for column in COLUMNS if any(column in pair.scores for pair in found)]
    used += sorted({column for pair in found for column in pair.scores} - set(used))
    names = [("technique", ""), ("rate", ""), ("precision", ""), ("metric", "")]
    columns = [*names, *[(COLUMNS.get(name, name), "") for name in used], ("dense", "")]
    rows = [
        [
            Cell(pair.technique.replace("_", " ")),
            Cell(pair.rate or formats.NOTHING),
            Cell(pair.precision or "torch"),
            Cell(metric_name(pair.metric)),
            *[_of_recipe(pair.scores.get(column)) for column in used],
            scored(pair.dense),
        ]
        for pair in found
    ]
    return Table(columns, rows, len(names))


def _of_recipe(cell: tuple[str, ScoreCell] | None) -> Cell:
    if cell is None:
        return NOTHING
    recipe, score = cell
    shown = scored(score)
    return Cell(shown.text, shown.small, shown.sort, "", f"{recipe}: {shown.title}")


def failure_table(folder: RunFolder) -> Table:
    """Cells that could not be filled, why, and what to do."""
    columns = [("cell", ""), ("stage", ""), ("error", ""), ("what to do", "")]
    rows = [
        [Cell(one.cell), Cell(one.stage), Cell(f"{one.kind}: {one.error}"), Cell(one.hint or formats.NOTHING)]
        for one in folder.failures.values()
    ]
    return Table(columns, rows, len(columns))
