"""One flat dict for each artifact on each device, units in its keys: ``table.csv`` and ``--json``."""

from __future__ import annotations

import csv
import io
from typing import Any

from edgecompress.report import formats
from edgecompress.report.facts import threads
from edgecompress.report.row import Metric, Row, Timing
from edgecompress.stats import Estimate


def flat(row: Row, metrics: list[Metric], random_weights: bool) -> dict[str, Any]:
    """A row as plain values; ``None`` where there is nothing. All rows of a report have the same keys."""
    cost, measurement = row.cost, row.measurement
    values: dict[str, Any] = {
        "recipe": row.label,
        "technique": row.technique,
        "format": row.format,
        "precision": row.precision,
        "random_weights": random_weights,
        "parameters": cost.parameters.total if cost else None,
        "nonzero_parameters": cost.parameters.nonzero if cost else None,
        "disk_bytes": row.size_bytes,
        "macs_per_second_of_audio": cost.macs.per_second if cost and cost.macs else None,
        "macs_per_inference": row.macs,
        "parity_max_relative_error": row.parity,
    }
    for metric in metrics:
        values |= _score(row, metric)
    values |= {
        "device": row.device,
        "conditions": row.conditions or None,
        "runtime": f"{measurement.runtime} {measurement.runtime_version}" if measurement else None,
        "threads": threads(measurement).value if measurement else None,
        "input_seconds": measurement.audio_seconds if measurement else None,
    }
    values |= _timing(row.timing)
    values["pareto_front"] = row.pareto
    values["comparable"] = None if row.timing is None else not row.suspect
    values["warnings"] = " ".join(dict.fromkeys(caveat.code for caveat in row.caveats))
    values["validity"] = " ".join(dict.fromkeys(caveat.rule for caveat in row.caveats if caveat.rule))
    return values


def _score(row: Row, metric: Metric) -> dict[str, Any]:
    cell = row.scores.get(metric)
    name = f"{metric[0]}_{metric[1]}" if metric[0] != metric[1] else metric[0]
    return {
        **_estimate(name, "", cell.estimate if cell else None),
        f"{name}_clips": cell.estimate.n if cell else None,
        f"{name}_scored_in_torch": cell.in_torch if cell else None,
        **_estimate(f"{name}_minus_dense", "", cell.difference if cell else None),
    }


def _timing(timing: Timing | None) -> dict[str, Any]:
    return {
        **_estimate("latency_median", "_ms", timing.latency if timing else None, 1e3),
        "latency_p90_ms": timing.p90.value * 1e3 if timing and timing.p90.value is not None else None,
        "latency_p95_ms": timing.p95.value * 1e3 if timing and timing.p95.value is not None else None,
        "latency_p99_ms": timing.p99.value * 1e3 if timing and timing.p99.value is not None else None,
        "samples": timing.latency.n if timing else None,
        "repetitions": timing.repetitions if timing else None,
        "real_time_factor": timing.real_time_factor if timing else None,
        "peak_rss_bytes": timing.peak_rss_bytes if timing else None,
        "load_s": timing.load_s if timing else None,
        **_estimate("speedup_over_dense", "", timing.speedup if timing else None),
        "against_dense": timing.verdict if timing else None,
    }


def _estimate(name: str, unit: str, estimate: Estimate | None, scale: float = 1.0) -> dict[str, Any]:
    ends = (estimate.value, estimate.low, estimate.high) if estimate else (None, None, None)
    names = (f"{name}{unit}", f"{name}_low95{unit}", f"{name}_high95{unit}")
    return {key: end * scale if end is not None else None for key, end in zip(names, ends, strict=True)}


def csv_table(rows: list[dict[str, Any]]) -> str:
    """The dicts as CSV; text that a spreadsheet would take for a formula is made plain text."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    if rows:
        writer.writerow([formats.csv_text(name) for name in rows[0]])
    for row in rows:
        writer.writerow([_csv_value(value) for value in row.values()])
    return stream.getvalue()


def _csv_value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else formats.csv_text(str(value))
