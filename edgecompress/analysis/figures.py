"""Heat maps of heads and layers, as plain data for plotly.js."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgecompress.analysis.record import Analysis
from edgecompress.analysis.relations import CATEGORIES, categories, order_name
from edgecompress.report.figures import Figure

MEASURES = {
    "diagonality": ("Diagonality", "Minus the mean distance of what is attended to, over T: near 0 is near itself."),
    "verticality": (
        "Verticality",
        "Minus the entropy of the mean row, nats: high where all frames attend to the same.",
    ),
    "globalness": ("Globalness", "Mean entropy of the rows, nats: high where a frame attends to many."),
    "entropy": ("Entropy", "Mean entropy of the rows over log T: 1 is uniform."),
    "padding": ("Attention to padding", "Share of attention that goes to frames without audio."),
}
KIND_COLOURS = ("#3FA7E0", "#E69F00", "#9467BD")


def of_heads(found: Analysis) -> list[Figure]:
    """What heads attend to: their categories, and a map for each measure."""
    drawn = [_kinds(found)]
    for name, (title, caption) in MEASURES.items():
        values = [float(getattr(head, name)) for head in found.heads]
        if name != "padding" or any(values):
            drawn.append(_map(found, title, caption, values, "%{z:.3f}"))
    return drawn


def of_survival(found: Analysis) -> list[Figure]:
    """A map for each order: in which round a head goes."""
    drawn = []
    for order, rounds in found.rounds.items():
        caption = f"Round of removal, 1 to {rounds}; {rounds + 1}: outlives all."
        values = [float(head.survival[order]) for head in found.heads]
        figure = _map(found, f"Removal by {order_name(order)}", caption, values, "round %{z}")
        figure.data[0] |= {"zmin": 1, "zmax": rounds + 1}
        drawn.append(figure)
    return drawn + [_left(found, order, rounds) for order, rounds in found.rounds.items() if order.endswith("_global")]


def _left(found: Analysis, order: str, rounds: int) -> Figure:
    """How many heads each layer has left after each round: which layers a score empties first."""
    lives = {layer: [one.survival[order] for one in found.heads if one.layer == layer] for layer in found.layers}
    after = range(rounds + 1)
    rows = [[sum(life > number for life in lives[layer]) for number in after] for layer in found.layers]
    trace = _trace([*map(str, after)], [*map(str, found.layers)], rows, "layer %{y} after round %{x}: %{z} heads")
    trace["zmin"] = 0
    title = f"Heads left by {order_name(order)}"
    return Figure(title, "After each round, by layer.", [trace], _layout("round", "layer"), [])


def of_layers(found: Analysis) -> list[Figure]:
    """How alike hidden states are."""
    names = ["input", *map(str, found.layers)]
    trace = _trace(names, names, [list(row) for row in found.similarity], "%{y} and %{x}: %{z:.3f}")
    trace |= {"zmin": 0, "zmax": 1}
    caption = f"Linear CKA over {found.compared_frames:,} frames: 1 is the same up to rotation and scale."
    return [Figure("Likeness of hidden states", caption, [trace], _layout("output of layer", "output of layer"), [])]


def _kinds(found: Analysis) -> Figure:
    kinds = list(CATEGORIES)
    values = [float(kinds.index(kind)) for kind in categories(found.heads)]
    figure = _map(found, "Categories", "Where a head ranks highest among all heads.", values, "%{text}")
    trace = figure.data[0]
    third = 1 / len(kinds)
    steps = [[place, colour] for i, colour in enumerate(KIND_COLOURS) for place in (i * third, (i + 1) * third)]
    trace |= {"zmin": -0.5, "zmax": len(kinds) - 0.5, "colorscale": steps}
    trace["colorbar"] |= {"tickvals": list(range(len(kinds))), "ticktext": kinds}
    trace["text"] = [[None if z is None else kinds[int(z)] for z in row] for row in trace["z"]]
    return figure


def _map(found: Analysis, title: str, caption: str, values: Sequence[float], told: str) -> Figure:
    """One number a head, by layer (first below) and head; heads that are gone are holes."""
    numbers = sorted({head.head for head in found.heads})
    known = {(head.layer, head.head): value for head, value in zip(found.heads, values, strict=True)}
    rows = [[known.get((layer, head)) for head in numbers] for layer in found.layers]
    trace = _trace([*map(str, numbers)], [*map(str, found.layers)], rows, f"layer %{{y}}, head %{{x}}: {told}")
    return Figure(title, caption, [trace], _layout("head", "layer"), [])


def _trace(x: list[str], y: list[str], z: list[list[Any]], told: str) -> dict[str, Any]:
    return {
        "type": "heatmap",
        "x": x,
        "y": y,
        "z": z,
        "xgap": 1,
        "ygap": 1,
        "colorscale": "Viridis",
        "hoverongaps": False,
        "hovertemplate": f"{told}<extra></extra>",
        "colorbar": {"thickness": 12, "outlinewidth": 0},
    }


def _layout(x: str, y: str) -> dict[str, Any]:
    shared = {"type": "category", "showgrid": False}
    return {"xaxis": {**shared, "title": {"text": x}}, "yaxis": {**shared, "title": {"text": y}}}
