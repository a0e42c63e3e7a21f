"""Figures as plain data for plotly.js: latency against what models cost, and score against latency.

Nothing here imports plotly; a figure is a JSON value. All text in it is escaped, since plotly reads a little HTML.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgecompress.report import formats
from edgecompress.report.findings import groups
from edgecompress.report.headline import metric_name
from edgecompress.report.join import front
from edgecompress.report.row import PRECISIONS, Metric, Row
from edgecompress.stats import Estimate

INK = "ink"  # the page's text colour, filled in by the page for light and dark
COLOURS = {
    "dense": INK,
    "prune_weights": "#E69F00",
    "prune_heads": "#3FA7E0",
    "prune_ffn": "#009E73",
    "factorize": "#CC79A7",
    "drop_layers": "#D55E00",
    "trim_context": "#4C78C8",
    "combination": "#9467BD",
    "prune_jointly": "#C44E52",
    "prune_front_end": "#B8860B",
    "distill": "#2A9D8F",
}
OTHER_COLOURS = ("#8C6D31", "#7F9F2F", "#B5546B", "#4AA3A2", "#A0A0A0")
SYMBOLS = {
    "fp32": "circle",
    "fp16": "square",
    "int8": "diamond",
    "int8-static": "triangle-up",
    "int8-weights": "star",
    "int4-weights": "pentagon",
    "int8-naive": "x",
    "int8-static-naive": "cross",
}
LOG_FROM = 8.0  # a linear axis squeezes everything into a corner when the range is wider


@dataclass(frozen=True)
class Figure:
    """One figure: its title, caption, and what plotly draws; ``labels`` are placed by the page where there is room."""

    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    labels: list[dict[str, Any]]


@dataclass(frozen=True)
class Axis:
    """One side of a figure: its title, how to read a row, and whether zero belongs on it."""

    title: str
    values: dict[int, Estimate]
    zero: bool = True


def colours(rows: list[Row]) -> dict[str, str]:
    """A colour for each technique in use."""
    used = list(dict.fromkeys(row.technique for row in rows))
    others = [name for name in used if name not in COLOURS]
    spare = {name: OTHER_COLOURS[place % len(OTHER_COLOURS)] for place, name in enumerate(sorted(others))}
    return {name: COLOURS.get(name) or spare[name] for name in sorted(used, key=[*COLOURS, *sorted(others)].index)}


def symbol(precision: str | None) -> str:
    """The marker of a precision."""
    return SYMBOLS.get(precision or "", "cross")


def escape(text: str) -> str:
    """Text that plotly draws as it is."""
    return formats.clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def figures(rows: list[Row], device: str, metrics: list[Metric]) -> list[Figure]:
    """All figures of one device, those of different conditions apart; none where nothing comparable was measured."""
    here = [row for found in groups(rows).values() for row in found if row.device == device]
    palette = colours(rows)
    drawn = []
    for conditions in dict.fromkeys(row.conditions for row in here):
        alike = [row for row in here if row.conditions == conditions]
        drawn += _of_conditions(alike, formats.clean(conditions), metrics, palette)
    return drawn


def _of_conditions(here: list[Row], conditions: str, metrics: list[Metric], palette: dict[str, str]) -> list[Figure]:
    latency = Axis(
        "median latency of one inference, ms", {id(row): _scaled(row.timing.latency, 1e3) for row in here if row.timing}
    )
    macs = Axis("GMAC of one inference", {id(row): exact(row.macs / 1e9) for row in here if row.macs})
    nonzero = Axis(
        "non-zero parameters, millions",
        {id(row): exact(row.cost.parameters.nonzero / 1e6) for row in here if row.cost},
    )
    drawn = []
    for title, cost in (
        ("Latency against multiply-accumulates", macs),
        ("Latency against non-zero parameters", nonzero),
    ):
        costed = [row for row in here if id(row) in cost.values]
        if costed:
            figure = draw(
                title, f"{_caption(costed)} Dotted: as fast per unit as dense.", costed, cost, latency, palette
            )
            figure.data.insert(0, _proportional(costed, cost, latency))
            drawn.append(figure)
    for metric in metrics:
        scored = [row for row in here if metric in row.scores]
        if scored:
            drawn.append(_score_figure(metric, scored, latency, palette))
    mark = f" ({conditions})" if conditions else ""
    return [replace(figure, title=f"{figure.title}{mark}") for figure in drawn if figure.labels]


def _score_figure(metric: Metric, scored: list[Row], latency: Axis, palette: dict[str, str]) -> Figure:
    higher = scored[0].scores[metric].higher_is_better
    score = Axis(
        side(metric, higher),
        {id(row): row.scores[metric].estimate for row in scored},
        zero=False,
    )
    marked, name = front(scored, metric), metric_name(metric)
    clips = max(row.scores[metric].estimate.n for row in scored)
    caption = f"{_caption(scored)} Scores over {clips} clips. Line and rings: the Pareto front."
    figure = draw(f"{name[:1].upper()}{name[1:]} against latency", caption, scored, latency, score, palette, marked)
    figure.data.insert(0, _front_line([row for row in scored if id(row) in marked], latency, score))
    return figure


def exact(value: float) -> Estimate:
    """A number that was counted."""
    return Estimate(value, None, None, 1)


def _scaled(estimate: Estimate, scale: float) -> Estimate:
    ends = [end * scale if end is not None else None for end in (estimate.low, estimate.high)]
    return Estimate(estimate.value * scale, ends[0], ends[1], estimate.n)


def _caption(rows: list[Row]) -> str:
    return f"{len(rows)} measurements. Bars: 95 % intervals."


def side(metric: Metric, higher: bool) -> str:
    """What stands along a score's side: the metric alone, for with a long task's name it would not fit beside the plot."""
    return f"{metric_name(('', metric[1]))} ({'higher' if higher else 'lower'} is better)"


def draw(
    title: str,
    caption: str,
    rows: list[Row],
    x: Axis,
    y: Axis,
    palette: dict[str, str],
    marked: set[int] | None = None,
    *,
    around: Sequence[Row] = (),
    symbol: str | None = None,
) -> Figure:
    """Rows as points, coloured by technique; those ``marked`` (``id``) are ringed.

    ``around`` are more rows that the vertical axis has room for; ``symbol`` replaces the markers of precisions.
    """
    marked = marked or set()
    traces: dict[tuple[str, str | None], list[Row]] = {}
    for row in rows:
        traces.setdefault((row.technique, row.precision), []).append(row)
    last = sorted(traces.items(), key=lambda item: item[0][0] == "dense")  # on top, and smaller: it hides nothing
    data = [_trace(found, x, y, palette[technique], marked) for (technique, _), found in last]
    if symbol is not None:
        for trace in data:
            trace["marker"]["symbol"] = symbol
    first = min((row.precision or "" for row in rows), key=_place)
    ordered = sorted(rows, key=lambda row: (id(row) not in marked, row.technique != "dense", row.precision != first))
    log = any(axis.zero and _span(axis, rows) > LOG_FROM for axis in (x, y))
    labels = [
        {"x": x.values[id(row)].value, "y": y.values[id(row)].value, "text": formats.clean(row.label)}
        for row in ordered
    ]
    return Figure(
        title, caption, data, {"xaxis": _axis(x, rows, log), "yaxis": _axis(y, [*rows, *around], log)}, labels
    )


def _place(precision: str) -> int:
    return PRECISIONS.index(precision) if precision in PRECISIONS else len(PRECISIONS)


def _trace(rows: list[Row], x: Axis, y: Axis, colour: str, marked: set[int]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [x.values[id(row)].value for row in rows],
        "y": [y.values[id(row)].value for row in rows],
        "error_x": _bars([x.values[id(row)] for row in rows], colour),
        "error_y": _bars([y.values[id(row)] for row in rows], colour),
        "hoverinfo": "text",
        "hovertext": [_hover(row) for row in rows],
        "cliponaxis": False,
        "marker": {
            "color": colour,
            "symbol": symbol(rows[0].precision),
            "size": 7 if rows[0].technique == "dense" else 10,
            "opacity": 0.9,
            "line": {"color": INK, "width": [2.5 if id(row) in marked else 0 for row in rows]},
        },
    }


def _bars(estimates: list[Estimate], colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [one.high - one.value if one.high is not None else 0 for one in estimates],
        "arrayminus": [one.value - one.low if one.low is not None else 0 for one in estimates],
        "color": colour,
        "thickness": 1.2,
        "width": 3,
        "visible": any(one.has_interval for one in estimates),
    }


def _hover(row: Row) -> str:
    timing, cost = row.timing, row.cost
    lines = [f"<b>{escape(row.label)}</b> {escape(row.precision or '')}"]
    if timing:
        lines.append(f"{formats.milliseconds(timing.latency.value)} ms {formats.latency_interval(timing.latency)}")
        if timing.speedup:
            lines.append(f"{formats.with_interval(timing.speedup, 2, '×')} of dense")
    if cost and row.macs:
        lines.append(f"{row.macs / 1e9:.3g} GMAC, {cost.parameters.nonzero / 1e6:.4g} M non-zero parameters")
    for metric, cell in row.scores.items():
        digits = formats.score_digits(cell.estimate.value)
        lines.append(f"{escape(metric_name(metric))} {formats.with_interval(cell.estimate, digits)}")
    return "<br>".join(lines)


# --- axes and lines --------------------------------------------------------------------------------------------------
def _ends(axis: Axis, rows: list[Row]) -> tuple[float, float]:
    values = [axis.values[id(row)] for row in rows]
    low = min(one.low if one.low is not None else one.value for one in values)
    return low, max(one.high if one.high is not None else one.value for one in values)


def _span(axis: Axis, rows: list[Row]) -> float:
    low, high = _ends(axis, rows)
    return high / low if low > 0 else 1.0


def _axis(axis: Axis, rows: list[Row], log: bool) -> dict[str, Any]:
    """Linear from zero (or around the values); logarithmic where the range of either side is wide.

    Both sides of a cost figure change together, so that "proportional" stays a straight line.
    """
    low, high = _ends(axis, rows)
    layout: dict[str, Any] = {"title": {"text": escape(axis.title)}}
    if log and axis.zero and low > 0:
        ends = [math.log10(low) - 0.08, math.log10(high) + 0.12]
        ticks = _ticks(*ends)
        return {**layout, "type": "log", "range": ends, "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    if axis.zero:
        return {**layout, "type": "linear", "range": [0, high * 1.12]}
    room = 0.08 * (high - low or abs(high) or 1.0)
    return {**layout, "type": "linear", "range": [low - room, high + room]}


def _ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(low), math.ceil(high) + 1)
    steps = (1, 2, 5) if high - low > 0.9 else (1, 1.5, 2, 3, 5, 7)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    inside = [tick for tick in ticks if low <= math.log10(tick) <= high]
    return inside if high - low < 3 else [tick for tick in inside if math.log10(tick) % 1 < 1e-9]


def _proportional(rows: list[Row], x: Axis, y: Axis) -> dict[str, Any]:
    """Where every point would lie if latency were proportional to the cost, as seen from dense."""
    dense = [row for row in rows if row.technique == "dense"]
    dense.sort(key=lambda row: _place(row.precision or ""))
    points: list[tuple[float, float]] = []
    if dense:
        across, up = x.values[id(dense[0])].value, y.values[id(dense[0])].value
        low = min(x.values[id(row)].value for row in rows) * 0.9
        high = max(x.values[id(row)].value for row in rows) * 1.1
        points = [(end, up * end / across) for end in (low, high)]
    return _line(points, {"color": INK, "width": 1, "dash": "dot"})


def _front_line(rows: list[Row], x: Axis, y: Axis) -> dict[str, Any]:
    points = sorted((x.values[id(row)].value, y.values[id(row)].value) for row in rows)
    return _line(points, {"color": INK, "width": 1, "shape": "hv"})


def _line(points: list[tuple[float, float]], style: dict[str, Any]) -> dict[str, Any]:
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    return {"type": "scatter", "mode": "lines", "x": xs, "y": ys, "line": style, "opacity": 0.45, "hoverinfo": "skip"}
