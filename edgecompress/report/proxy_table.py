"""Which size tells the order of latencies: a row for each count, on each device and runtime."""

from __future__ import annotations

from edgecompress import proxies
from edgecompress.proxies import Point, Proxy
from edgecompress.report import formats
from edgecompress.report.row import Row
from edgecompress.report.tables import NOTHING, Cell, Table
from edgecompress.stats import Estimate

MACS = "multiply-accumulates"
COLUMNS = [
    ("device", ""),
    ("runtime", ""),
    ("count", "what stands in for latency"),
    ("Spearman", "rank correlation with latency, 1: same order"),
    ("Kendall", "tau-b, with latency"),
    ("Spearman within 25 % of MACs", "in the band of nearly equal multiply-accumulates that holds the most models"),
    ("pairs not ordered rightly", "or not at all, of those whose intervals of latency lie apart"),
    ("latency lost", "by taking the model whose count is least, against the fastest"),
    ("n", "models, all precisions together"),
]
TEXT_COLUMNS = 3


def points(rows: list[Row]) -> dict[tuple[str, str], list[Point]]:
    """Measured models with their counts, by (device and conditions, runtime); those that are suspect are left out."""
    found: dict[tuple[str, str], list[Point]] = {}
    for row in rows:
        if row.timing is None or row.measurement is None or row.suspect or row.cost is None or row.macs is None:
            continue
        counts = {
            "stored parameters": float(row.cost.parameters.total),
            "non-zero parameters": float(row.cost.parameters.nonzero),
            MACS: row.macs,
            "bytes": float(row.size_bytes or row.cost.bytes),
        }
        key = (row.where, row.measurement.runtime)
        found.setdefault(key, []).append(Point(row.label, row.timing.latency, counts))
    return dict(sorted(found.items()))


def proxy_table(rows: list[Row]) -> Table | None:
    """How well each count orders the models of a device and runtime; None where nowhere three were measured."""
    lines = []
    for (where, runtime), here in points(rows).items():
        for counted in here[0].counts:
            told = proxies.judge(here, counted, MACS)
            if told is not None:
                lines.append(
                    [Cell(where), Cell(runtime), Cell(counted), *_cells(told), Cell(str(len(here)), sort=len(here))]
                )
    return Table(COLUMNS, lines, TEXT_COLUMNS) if lines else None


def _cells(told: Proxy) -> list[Cell]:
    tau = Cell(formats.fixed(told.kendall, 2), sort=told.kendall) if told.kendall is not None else NOTHING
    share = told.wrong / told.certain if told.certain else None
    wrong = Cell(f"{share:.0%}", f"{told.wrong} of {told.certain}", share) if share is not None else NOTHING
    return [
        _correlation(told.spearman),
        tau,
        _correlation(told.band),
        wrong,
        Cell(f"{told.regret:.0%}", sort=told.regret),
    ]


def _correlation(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return NOTHING
    small = f"{formats.interval(estimate, 2)}, n = {estimate.n}".lstrip(", ")
    return Cell(formats.fixed(estimate.value, 2), small, estimate.value)
