"""Scores of checkpoints: what a model can do whatever it is exported to, in a table and against what it costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgecompress.report import formats
from edgecompress.report.figures import INK, Axis, Figure, colours, draw, exact, side
from edgecompress.report.folder import RunFolder
from edgecompress.report.headline import metric_name
from edgecompress.report.join import baseline_rows, of_checkpoints, scored_checkpoints
from edgecompress.report.row import Metric, Row
from edgecompress.report.tables import NOTHING, Cell, Table, number, scored
from edgecompress.stats import Estimate

BASELINE = "baseline"
CAPTION = "{n} checkpoints, each scored in torch on {clips} items. Bars: 95 % intervals. Dashed: {baselines}."


@dataclass(frozen=True)
class CheckpointSection:
    """All that the page says of them: a table, a figure a metric, and the colour of each technique in these."""

    table: Table
    figures: list[Figure]
    techniques: dict[str, str]


def section(folder: RunFolder) -> CheckpointSection | None:
    """The section of a run, or None where no checkpoint was scored."""
    metrics = of_checkpoints(folder)
    found = rows(folder)
    if not metrics or not found:
        return None
    figures = [figure for metric in metrics if (figure := _figure(found, metric)) is not None]
    palette = colours([row for row in found if row.technique != BASELINE])
    return CheckpointSection(_table(found, metrics), figures, palette)


def rows(folder: RunFolder) -> list[Row]:
    """One row a checkpoint that was scored, and one a baseline."""
    return [row for row in [*scored_checkpoints(folder), *baseline_rows(folder)] if row.scores]


def _table(found: list[Row], metrics: list[Metric]) -> Table:
    """The best of the first metric on top."""
    main = metrics[0]
    higher = next((row.scores[main].higher_is_better for row in found if main in row.scores), True)
    dense = next((row for row in found if row.technique == "dense"), None)

    def place(row: Row) -> tuple[bool, float]:
        cell = row.scores.get(main)
        return cell is None, (-1 if higher else 1) * cell.estimate.value if cell else 0.0

    columns = [
        ("recipe", "the techniques that were applied"),
        ("technique", ""),
        ("parameters, M", "stored, in millions"),
        ("non-zero, M", "parameters that are not zero, in millions"),
        ("GMAC / s of audio", "multiply-accumulates for one second of audio"),
        ("of dense's MACs", "for one second of audio"),
        *[column for metric in metrics for column in _columns(metric)],
    ]
    return Table(columns, [_cells(row, metrics, dense) for row in sorted(found, key=place)], 2)


def _columns(metric: Metric) -> list[tuple[str, str]]:
    name = metric_name(metric)
    return [
        (name, "with its 95 % interval"),
        ("− dense", f"{name}: difference to dense, paired, with its 95 % interval"),
    ]


def _cells(row: Row, metrics: list[Metric], dense: Row | None) -> list[Cell]:
    cost = row.cost
    rate, whole = _per_second(row), _per_second(dense) if dense else None
    share = rate / whole if rate is not None and whole else None
    told = [
        Cell(row.label, sort=row.label),
        Cell(row.technique.replace("_", " ")),
        number(cost.parameters.total if cost else None, 4, 1e6),
        number(cost.parameters.nonzero if cost else None, 4, 1e6),
        number(rate, 3, 1e9),
        Cell(f"{share:.1%}", sort=share) if share is not None else NOTHING,
    ]
    for metric in metrics:
        cell = row.scores.get(metric)
        told.append(scored(cell))
        told.append(_difference(cell.difference) if cell and cell.difference else NOTHING)
    return told


def _per_second(row: Row) -> float | None:
    """Multiply-accumulates for a second of audio, where the row has them."""
    return row.cost.macs.per_second if row.cost and row.cost.macs else None


def _difference(difference: Estimate) -> Cell:
    return Cell(formats.fixed(difference.value, 3), formats.interval(difference, 3), difference.value)


def _figure(found: list[Row], metric: Metric) -> Figure | None:
    """Score against multiply-accumulates; baselines, which have none, are dashed lines."""
    here = [row for row in found if metric in row.scores]
    drawn = [row for row in here if row.cost]
    baselines = [row for row in here if row.technique == BASELINE]
    if not drawn:
        return None
    name, higher = metric_name(metric), drawn[0].scores[metric].higher_is_better
    rates = {id(row): _per_second(row) for row in drawn}
    macs = Axis("GMAC for one second of audio", {key: exact(rate / 1e9) for key, rate in rates.items() if rate})
    score = Axis(
        side(metric, higher),
        {id(row): row.scores[metric].estimate for row in here},
        zero=False,
    )
    clips = max(row.scores[metric].estimate.n for row in drawn)
    told = ", ".join(f"{row.label} {formats.score(score.values[id(row)].value)}" for row in baselines)
    caption = CAPTION.format(n=len(drawn), clips=clips, baselines=told or "none")
    title = f"{name[:1].upper()}{name[1:]} against multiply-accumulates"
    figure = draw(title, caption, drawn, macs, score, colours(found), around=baselines, symbol="circle")
    ends = figure.layout["xaxis"]["range"]
    if figure.layout["xaxis"]["type"] == "log":
        ends = [10.0**end for end in ends]
    lines = [_level(row.label, score.values[id(row)].value, ends) for row in baselines]
    return replace(figure, data=[*lines, *figure.data])


def _level(name: str, value: float, ends: list[float]) -> dict[str, object]:
    return {
        "type": "scatter", "mode": "lines", "x": ends, "y": [value, value], "opacity": 0.6, "hoverinfo": "text",
        "hovertext": f"{name} {formats.score(value)}", "line": {"color": INK, "width": 1.2, "dash": "dash"},
    }  # fmt: skip
