"""Plain against activation-aware: recipes that differ only in how importance was judged, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgecompress.records import canonical_json
from edgecompress.report.folder import RunFolder
from edgecompress.report.row import Metric, Row, ScoreCell

JUDGED_BY = ("score", "by")
# What only an activation-aware score needs; a pair may differ in these too.
CALIBRATION = ("compensate", "calibration", "calibration_seconds", "calibration_clips", "seed")
COLUMNS = {
    "plain": "plain (weights only)",
    "first_order": "first order (gradients)",
    "activation": "activation-aware",
}
_PLAIN = ("l1", "l2", "magnitude", "weight", "weights", "svd")


@dataclass(frozen=True)
class Pair:
    """One technique at one rate: a score for each way of judging, and dense beside them."""

    technique: str
    rate: str
    precision: str | None
    metric: Metric
    dense: ScoreCell | None
    scores: dict[str, tuple[str, ScoreCell]]  # column -> (recipe, score)


def judged_by(techniques: list[dict[str, Any]]) -> str:
    """The column of a recipe: how its steps judge importance; plain when no step says."""
    said = {str(step[key]) for step in techniques for key in JUDGED_BY if step.get(key) is not None}
    aware = sorted({"activation" if name == "activations" else name for name in said if name not in _PLAIN})
    return " + ".join(aware) or "plain"


def _rest(techniques: list[dict[str, Any]]) -> list[dict[str, Any]]:
    left_out = {*JUDGED_BY, *CALIBRATION}
    return [{key: value for key, value in step.items() if key not in left_out} for step in techniques]


def pairs(folder: RunFolder, rows: list[Row], metrics: list[Metric]) -> list[Pair]:
    """All groups of two or more recipes that differ only in ``score`` or ``by``, for each precision and metric."""
    judged: dict[str, dict[str, str]] = {}  # the rest of the recipe -> column -> recipe
    steps: dict[str, list[dict[str, Any]]] = {}
    for checkpoint in folder.checkpoints.values():
        rest = canonical_json(_rest(checkpoint.techniques))
        judged.setdefault(rest, {})[judged_by(checkpoint.techniques)] = checkpoint.recipe
        steps[rest] = _rest(checkpoint.techniques)
    found = []
    for rest, columns in judged.items():
        if len(columns) > 1:
            found += _of_group(steps[rest], columns, folder.reference, rows, metrics)
    return found


def _of_group(
    steps: list[dict[str, Any]], columns: dict[str, str], reference: str, rows: list[Row], metrics: list[Metric]
) -> list[Pair]:
    technique = " + ".join(str(step.get("kind", "unknown")) for step in steps)
    told = [
        ", ".join(f"{key} {value}" for key, value in step.items() if key != "kind" and value is not None)
        for step in steps
    ]
    scored = {
        (row.recipe, row.format, row.precision, metric): cell for row in rows for metric, cell in row.scores.items()
    }
    kinds = dict.fromkeys((row.format, row.precision) for row in rows if row.recipe in columns.values())
    several = len({format for format, _ in kinds}) > 1
    found = []
    for metric in metrics:
        for format, precision in kinds:
            cells = {
                column: (recipe, scored[recipe, format, precision, metric])
                for column, recipe in sorted(columns.items(), key=lambda item: [*COLUMNS, item[0]].index(item[0]))
                if (recipe, format, precision, metric) in scored
            }
            if cells:
                dense = scored.get((reference, format, precision, metric))
                kind = f"{format} {precision}" if several and format else precision
                found.append(Pair(technique, "; ".join(filter(None, told)), kind, metric, dense, cells))
    return found
