"""The join: one row for each artifact on each device, with what it costs, scores and takes there.

A part that is missing (no artifact, no score, no measurement) is ``None`` in the row; the row stays.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgecompress import stats
from edgecompress.records import Artifact, Checkpoint, Measurement, Score
from edgecompress.report.caveats import of_measurement
from edgecompress.report.conditions import key as conditions_key
from edgecompress.report.conditions import labels
from edgecompress.report.folder import RunFolder
from edgecompress.report.row import PRECISIONS, Metric, Row, ScoreCell, Timing
from edgecompress.stats import Estimate


def technique_of(checkpoint: Checkpoint | None, recipe: str, reference: str) -> str:
    """The one kind of technique of a recipe, ``combination`` for several, ``dense`` for none."""
    kinds = [str(step.get("kind", "unknown")) for step in checkpoint.techniques] if checkpoint else []
    if len(set(kinds)) > 1:
        return "combination"
    if kinds:
        return kinds[0]
    return "dense" if checkpoint or recipe == reference else "unknown"


def metrics(folder: RunFolder) -> list[Metric]:
    """All (task, metric) pairs: tasks before fidelity, more-is-better first; the first is the main one.

    Scores of artifacts come before those of checkpoints, which do not tell one artifact of a recipe from another.
    """
    found = {(one.task, one.metric): one.higher_is_better for one in folder.scores.values()}
    torch = of_checkpoints(folder)
    return sorted(found, key=lambda name: (name[0] == "fidelity", name in torch, not found[name], name))


def of_checkpoints(folder: RunFolder) -> list[Metric]:
    """The (task, metric) pairs of tasks that score checkpoints, in the order of their names."""
    return sorted({(one.task, one.metric) for one in folder.scores.values() if one.level != "artifact"})


def rows(folder: RunFolder) -> list[Row]:
    """All rows in the order of the run's recipes, then precision, then device."""
    built = [*_artifact_rows(folder), *_checkpoint_rows(folder), *_stray_rows(folder), *baseline_rows(folder)]
    built += _empty_rows(folder, {row.recipe for row in built})
    built = _labelled(built)
    told = labels([row.measurement for row in built if row.measurement])
    built = [
        replace(row, conditions=told[conditions_key(row.measurement)]) if row.measurement else row for row in built
    ]
    built = [_compared(row, built) for row in built]
    order = {name: place for place, name in enumerate(folder.run.recipes if folder.run else [])}
    built.sort(key=lambda row: (order.get(row.recipe, len(order)), row.label, *_place(row), row.where))
    main = next(iter(metrics(folder)), None)
    return _with_front(built, main) if main else built


def _place(row: Row) -> tuple[str, int, str]:
    precision = row.precision or ""
    return row.format or "", PRECISIONS.index(precision) if precision in PRECISIONS else len(PRECISIONS), precision


# --- rows ------------------------------------------------------------------------------------------------------------
def checkpoint_for(folder: RunFolder, artifact: Artifact) -> tuple[str | None, Checkpoint | None]:
    """The checkpoint an artifact came from: named in its lineage, else the last of its recipe."""
    same = {name: one for name, one in folder.checkpoints.items() if one.recipe == artifact.recipe}
    told = [str(value) for value in artifact.lineage.values() if isinstance(value, str)]
    for name, checkpoint in same.items():
        if any(name in value for value in told):
            return name, checkpoint
    return next(reversed(same.items())) if same else (None, None)


def _artifact_rows(folder: RunFolder) -> list[Row]:
    built = []
    for name, artifact in folder.artifacts.items():
        checkpoint_name, checkpoint = checkpoint_for(folder, artifact)
        row = Row(
            recipe=artifact.recipe,
            label=artifact.recipe,
            technique=technique_of(checkpoint, artifact.recipe, folder.reference),
            subject=name,
            format=_format(folder, artifact),
            precision=artifact.precision,
            source=artifact.source.sha256,
            cost=artifact.cost,
            size_bytes=_model_bytes(artifact),
            parity=max((case.relative for case in artifact.parity.cases), default=None),
            scores={
                **(checkpoint_scores(folder, checkpoint_name) if checkpoint_name else {}),
                **_scores(folder, name, checkpoint_name if artifact.precision == "fp32" else None),
            },
        )
        measured = [one for one in folder.measurements.values() if one.artifact == name]
        built += [_timed(row, measurement) for measurement in measured] or [row]
    return built


def _format(folder: RunFolder, artifact: Artifact) -> str:
    """The format, and the input's name where a family was exported in two forms."""
    forms = {one.inputs[0].name for one in folder.artifacts.values() if one.format == artifact.format}
    return f"{artifact.format} ({artifact.inputs[0].name})" if len(forms) > 1 else artifact.format


def _model_bytes(artifact: Artifact) -> int:
    """Bytes that a device must store: the artifact's files but for the golden input and output."""
    golden = {*artifact.golden.inputs.values(), *artifact.golden.outputs.values()}
    return sum(record.bytes for name, record in artifact.files.items() if name not in golden)


def _checkpoint_rows(folder: RunFolder) -> list[Row]:
    """Checkpoints of which nothing was exported: they may still have a score."""
    exported = {artifact.recipe for artifact in folder.artifacts.values()}
    return [
        _checkpoint_row(folder, name, one, {**checkpoint_scores(folder, name), **_scores(folder, name, None)})
        for name, one in folder.checkpoints.items()
        if one.recipe not in exported
    ]


def scored_checkpoints(folder: RunFolder) -> list[Row]:
    """One row a checkpoint, with the scores that it has as a checkpoint."""
    return [
        _checkpoint_row(folder, name, one, checkpoint_scores(folder, name)) for name, one in folder.checkpoints.items()
    ]


def _checkpoint_row(folder: RunFolder, name: str, one: Checkpoint, scores: dict[Metric, ScoreCell]) -> Row:
    return Row(
        recipe=one.recipe,
        label=one.recipe,
        technique=technique_of(one, one.recipe, folder.reference),
        subject=name,
        source=one.source.sha256,
        cost=one.cost,
        scores=scores,
    )


def baseline_rows(folder: RunFolder) -> list[Row]:
    """What checkpoints are compared with that is no model of the run: features alone, an encoder that never learned."""
    names = {one.subject: one.recipe for one in folder.scores.values() if one.level == "baseline"}
    return [
        Row(recipe=recipe, label=recipe, technique="baseline", subject=name, scores=checkpoint_scores(folder, name))
        for name, recipe in names.items()
    ]


def _stray_rows(folder: RunFolder) -> list[Row]:
    """Measurements of what lies in no ``artifacts/`` here: ``bench`` of any file."""
    return [
        _timed(
            Row(
                recipe=one.recipe or one.artifact,
                label=one.recipe or one.artifact,
                technique="dense" if one.recipe == folder.reference else "unknown",
                subject=one.artifact,
                format=one.format or None,
                precision=one.precision or None,
            ),
            one,
        )
        for one in folder.measurements.values()
        if one.artifact not in folder.artifacts
    ]


def _empty_rows(folder: RunFolder, seen: set[str]) -> list[Row]:
    """Recipes that left nothing but failures."""
    asked = folder.run.recipes if folder.run else []
    failed = [failure.recipe for failure in folder.failures.values()]
    missing = dict.fromkeys(name for name in (*asked, *failed) if name and name not in seen)
    return [
        Row(recipe=name, label=name, technique="dense" if name == folder.reference else "unknown") for name in missing
    ]


def _labelled(built: list[Row]) -> list[Row]:
    """Rows whose recipe was made twice (changed and run again) get the key of their folder behind the name."""
    subjects: dict[tuple[Any, ...], set[str | None]] = {}
    for row in built:
        subjects.setdefault((row.recipe, row.format, row.precision), set()).add(row.subject)
    return [
        replace(row, label=f"{row.recipe} #{(row.subject or '').rpartition('-')[2][:6]}")
        if len(subjects[row.recipe, row.format, row.precision]) > 1
        else row
        for row in built
    ]


# --- scores and times ------------------------------------------------------------------------------------------------
def clip_parts(score: Score) -> dict[str, tuple[float, float]]:
    """(numerator, denominator) of each clip."""
    return {item.clip: (item.numerator, item.denominator) for item in score.items}


def groups_of(score: Score) -> list[str]:
    """Who speaks in each item, where the task told; "" where not."""
    return [str(item.detail.get("group") or "") for item in score.items]


def _scores(folder: RunFolder, subject: str, fallback: str | None) -> dict[Metric, ScoreCell]:
    """Scores of ``subject``; where it has none, those of the checkpoint ``fallback``, marked as scored in torch."""
    found: dict[Metric, ScoreCell] = {}
    for wanted in (fallback, subject):
        for score in folder.scores.values():
            if wanted is None or score.subject != wanted or score.level != "artifact":
                continue
            cell = _cell(folder, score)
            if cell is not None:
                found[score.task, score.metric] = replace(cell, in_torch=score.format is None)
    return found


def checkpoint_scores(folder: RunFolder, subject: str) -> dict[Metric, ScoreCell]:
    """What tasks that score checkpoints say of one, or of a baseline."""
    here = [one for one in folder.scores.values() if one.subject == subject and one.level != "artifact"]
    cells = {(one.task, one.metric): _cell(folder, one) for one in here}
    return {metric: replace(cell, of_checkpoint=True) for metric, cell in cells.items() if cell is not None}


def _cell(folder: RunFolder, score: Score) -> ScoreCell | None:
    estimate = stats.score(
        [item.numerator for item in score.items], [item.denominator for item in score.items], groups_of(score)
    )
    if estimate is None:
        return None
    return ScoreCell(estimate, _difference(folder, score), score.higher_is_better)


def _kind(score: Score) -> tuple[str | None, ...]:
    return score.task, score.metric, score.format, score.precision


def _source(folder: RunFolder, score: Score) -> str | None:
    """Hash of the weights that a scored model was made of; None where its record is not here."""
    record = folder.artifacts.get(score.subject) or folder.checkpoints.get(score.subject)
    return record.source.sha256 if record else None


def _difference(folder: RunFolder, score: Score) -> Estimate | None:
    """Against dense of the same weights, format, precision, task and metric. A baseline has no weights of its own."""
    if score.recipe == folder.reference:
        return None
    source = _source(folder, score)
    groups = {item.clip: group for item, group in zip(score.items, groups_of(score), strict=True)}
    for other in reversed(folder.scores.values()):
        same = score.level == "baseline" or _source(folder, other) == source
        if other.recipe == folder.reference and _kind(other) == _kind(score) and same:
            return stats.score_difference(clip_parts(score), clip_parts(other), groups)
    return None


def samples_s(measurement: Measurement) -> list[list[float]]:
    """Raw samples in seconds, one list a repetition."""
    return [[sample / 1e9 for sample in repetition.samples_ns] for repetition in measurement.repetitions]


def _timed(row: Row, measurement: Measurement) -> Row:
    seconds = samples_s(measurement)
    row = replace(row, device=measurement.device, measurement=measurement, caveats=of_measurement(measurement))
    if not any(seconds):
        return row
    pooled = [sample for samples in seconds for sample in samples]
    latency = stats.median(seconds)
    timing = Timing(
        latency=latency,
        p90=stats.percentile(pooled, 0.90),
        p95=stats.percentile(pooled, 0.95),
        p99=stats.percentile(pooled, 0.99),
        real_time_factor=latency.value / measurement.audio_seconds if measurement.audio_seconds else None,
        peak_rss_bytes=max(repetition.peak_rss_bytes for repetition in measurement.repetitions),
        load_s=sorted(repetition.load_s for repetition in measurement.repetitions)[len(seconds) // 2],
        repetitions=len(seconds),
    )
    return replace(row, timing=timing)


def reference_row(row: Row, built: list[Row], precision: str | None) -> Row | None:
    """Dense of the same weights, on the same device under the same conditions, at ``precision``; of the same length if any.

    Of files measured alone the weights they come from are not known: of several dense ones among them none is taken.
    """
    if row.measurement is None:
        return None
    key, seconds = conditions_key(row.measurement), row.measurement.audio_seconds
    found = [
        one
        for one in built
        if one.technique == "dense" and one.format == row.format and one.precision == precision
        if one.source == row.source
        if one.measurement and one.timing and not one.suspect and conditions_key(one.measurement) == key
    ]
    if row.source is None and len({one.measurement.artifact_sha256 for one in found if one.measurement}) > 1:
        return None
    found.sort(
        key=lambda one: (
            (one.measurement.audio_seconds != seconds, one.measurement.started) if one.measurement else (True, "")
        )
    )
    return found[0] if found else None


def _compared(row: Row, built: list[Row]) -> Row:
    """The row with its speed-up over dense of the same precision; none where something voids its samples."""
    if row.timing is None or row.measurement is None or row.technique == "dense" or row.suspect:
        return row
    reference = reference_row(row, built, row.precision)
    if reference is None or reference.measurement is None:
        return row
    speedup = stats.ratio(samples_s(reference.measurement), samples_s(row.measurement))
    timing = replace(row.timing, speedup=speedup, reference_seconds=reference.measurement.audio_seconds)
    return replace(row, timing=timing)


def front(built: list[Row], metric: Metric) -> set[int]:
    """Identities (``id``) of the rows that no other of their device and conditions beats in latency and score at once."""
    marked: set[int] = set()
    for where in {row.where for row in built if row.device}:
        here = [row for row in built if row.where == where and row.timing and metric in row.scores and not row.suspect]
        if here:
            scores = [row.scores[metric].estimate.value for row in here]
            latencies = [row.timing.latency.value for row in here if row.timing]
            marks = stats.pareto(latencies, scores, here[0].scores[metric].higher_is_better)
            marked |= {id(row) for row, mark in zip(here, marks, strict=True) if mark}
    return marked


def _with_front(built: list[Row], metric: Metric) -> list[Row]:
    marked = front(built, metric)
    return [replace(row, pareto=id(row) in marked) if row.timing and metric in row.scores else row for row in built]
