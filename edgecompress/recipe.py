"""TOML in, frozen values out: a Recipe (a name and its techniques) or a Job (all that a run is asked to do).

Every fault of a file is named at once, in one RecipeError, with the nearest spelling. Parsing needs no torch.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from edgecompress import plugins
from edgecompress.errors import RecipeError
from edgecompress.faults import Faults, build, step_of
from edgecompress.job import (
    DENSE,
    LOG_MEL,
    UNTRAINED,
    AudioSource,
    Export,
    Job,
    Measure,
    ModelSource,
    Name,
    Recipe,
    Table,
    TrainingSource,
    calibrates,
    describe,
    scores_checkpoints,
)

__all__ = ["DENSE", "Job", "Recipe", "describe", "read_job", "read_recipe"]


class _Head(Table):
    """What a job says at its top level, its tables aside."""

    name: Name
    output: str
    seed: int = 0


class _RecipeHead(Table):
    name: Name


_TABLES = ("model", "audio", "training", "recipe", "export", "score", "measure")


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file: ``name`` and ``[[technique]]`` tables.

    Raises:
        RecipeError: all that is wrong with it.
    """
    data = read_toml(path)
    faults = Faults(path.name)
    recipe = _recipe(faults, data, "")
    faults.raise_if_any()
    assert recipe is not None
    return recipe


def read_job(path: Path, devices: Collection[str] | None = None) -> Job:
    """Read a job file. ``devices`` are the names that ``measure.devices`` may hold; None leaves them unchecked.

    Raises:
        RecipeError: all that is wrong with it, unknown techniques, tasks, formats and devices among it.
    """
    data = read_toml(path)
    faults = Faults(path.name)
    head = build(faults, _Head, {k: v for k, v in data.items() if k not in _TABLES}, "", also=_TABLES)
    model, source_steps = _model(faults, data.get("model", {}))
    audio = build(faults, AudioSource, data["audio"], "[audio]") if "audio" in data else None
    training = build(faults, TrainingSource, data["training"], "[training]") if "training" in data else None
    measure = build(faults, Measure, data["measure"], "[measure]") if "measure" in data else None
    recipes = _job_recipes(faults, faults.tables(data, "recipe"))
    exports = [
        build(faults, Export, table, f"export {number}")
        for number, table in enumerate(faults.tables(data, "export"), 1)
    ]
    scores, limits = _scores(faults, faults.tables(data, "score"), [recipe.name for recipe in recipes])
    _check_names(faults, [e for e in exports if e], measure, devices)
    _check_judges(faults, [e for e in exports if e], [task for task in scores if task], audio)
    _check_needs(faults, data, audio, [task for task in scores if task])
    faults.raise_if_any()
    assert head is not None and model is not None
    return Job(
        **head.model_dump(), model=model, audio=audio, training=training, measure=measure, file=path,
        source_techniques=source_steps, recipes=(Recipe(DENSE), *recipes), exports=tuple(exports), scores=tuple(scores),
        score_recipes=limits if any(limits) else (),
    )  # fmt: skip


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's tables.

    Raises:
        RecipeError: no such file, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise RecipeError(f"no such file: {path}", hint="give the path of a TOML file") from cause
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as cause:
        raise RecipeError(
            f"{path}: not readable as TOML: {cause}", hint="strings stand in quotes, tables in [brackets]"
        ) from cause


def _recipe(faults: Faults, data: dict[str, Any], where: str) -> Recipe | None:
    """A recipe from its table; faults are noted."""
    head = build(faults, _RecipeHead, {k: v for k, v in data.items() if k != "technique"}, where, also=("technique",))
    tables = faults.tables(data, "technique", where)
    if not tables:
        faults.add(where, "no techniques", "add a [[technique]] table with a kind")
    steps = _techniques(faults, tables, f"{where}: " if where else "")
    return Recipe(head.name, steps) if head else None


def _techniques(faults: Faults, tables: list[dict[str, Any]], prefix: str) -> tuple[Any, ...]:
    """The techniques of ``[[technique]]`` tables; None stands for one whose faults are noted."""
    named = [(f"{prefix}step {number}", table) for number, table in enumerate(tables, 1)]
    return tuple(step_of(faults, "techniques", table, where, key="kind") for where, table in named)


def _model(faults: Faults, data: Any) -> tuple[ModelSource | None, tuple[Any, ...]]:
    """The table ``[model]`` and the ``[[model.technique]]`` in it, which make the source model out of what it names."""
    if not isinstance(data, dict):
        return build(faults, ModelSource, data, "[model]"), ()
    given = {key: value for key, value in data.items() if key != "technique"}
    model = build(faults, ModelSource, given, "[model]", also=("technique",))
    return model, _techniques(faults, faults.tables(data, "technique", "[model]"), "[model]: ")


def _job_recipes(faults: Faults, tables: list[dict[str, Any]]) -> list[Recipe]:
    recipes = []
    seen = {DENSE}
    for number, table in enumerate(tables, 1):
        where = f"recipe {table.get('name', number)!r}" if isinstance(table.get("name"), str) else f"recipe {number}"
        recipe = _recipe(faults, table, where)
        if recipe is not None and recipe.name in seen:
            hint = (
                "the untouched model is added by itself under that name" if recipe.name == DENSE else "names are unique"
            )
            faults.add(where, f"there is already a recipe {recipe.name!r}", hint)
        elif recipe is not None:
            seen.add(recipe.name)
            recipes.append(recipe)
    return recipes


def _scores(
    faults: Faults, tables: list[dict[str, Any]], recipes: list[str]
) -> tuple[list[Any], tuple[tuple[str, ...], ...]]:
    """The tasks, and the recipes (baselines among them) that each one's key ``recipes`` limits it to; () means all."""
    known = [DENSE, *recipes, LOG_MEL, UNTRAINED]
    tasks, limits = [], []
    for number, table in enumerate(tables, 1):
        tasks.append(step_of(faults, "tasks", table, f"score {number}", key="task", also=("recipes",)))
        only = table.get("recipes")
        if only is not None and not (isinstance(only, list) and only and all(isinstance(name, str) for name in only)):
            faults.add(f"score {number}", f"recipes: not a list of names (it is {only!r})", "leave it out to score all")
            only = None
        for name in [name for name in only or () if name not in known]:
            faults.add(f"score {number}", f"recipes: no recipe is called {name!r}", plugins.nearest(name, known))
        limits.append(tuple(only or ()))
    return tasks, tuple(limits)


def _check_names(
    faults: Faults, exports: list[Export], measure: Measure | None, devices: Collection[str] | None
) -> None:
    formats = plugins.names("exporters")
    for number, export in enumerate(exports, 1):
        if export.format not in formats:
            faults.add(
                f"export {number}", f"no format is called {export.format!r}", plugins.nearest(export.format, formats)
            )
            continue
        offered = list(plugins.find("exporters", export.format).precisions)
        for precision in set(export.precisions) - set(offered):
            hint = plugins.nearest(precision, offered)
            faults.add(f"export {number}", f"{export.format} has no precision {precision!r}", hint)
    for device in measure.devices if measure and devices is not None else ():
        if device not in devices:  # type: ignore[operator]
            hint = plugins.nearest(device, sorted(devices))  # type: ignore[arg-type]
            faults.add(
                "[measure]", f"no device is called {device!r}", f"{hint}; `edgecompress device add` makes one known"
            )


def _check_judges(faults: Faults, exports: list[Export], tasks: list[Any], audio: AudioSource | None) -> None:
    """A judge is a task of the job that scores files; it and calibrated precisions need calibration clips."""
    known = sorted({task.kind for task in tasks if not scores_checkpoints(task)})
    for number, export in enumerate(exports, 1):
        where = f"export {number}"
        if export.judge is not None and export.judge not in known:
            hint = plugins.nearest(export.judge, known) if known else "add [[score]] with a task that scores files"
            faults.add(where, f"judge: no task of this job that scores files is called {export.judge!r}", hint)
        wants = [precision for precision in export.precisions if calibrates(precision)]
        if (wants or export.judge) and (audio is None or audio.calibration == 0):
            what = wants[0] if wants else f"judge = {export.judge!r}"
            faults.add(where, f"{what} needs calibration audio", "set calibration under [audio], e.g. 20")


def _check_needs(faults: Faults, data: dict[str, Any], audio: AudioSource | None, tasks: list[Any]) -> None:
    """What one table needs of another. A task that scores checkpoints has data of its own, and needs no clips."""
    wants_clips = not all(scores_checkpoints(task) for task in tasks)
    if wants_clips and "audio" not in data:
        faults.add("", "[[score]] needs clips, and there is no [audio]", "add [audio] with a folder or synthetic clips")
    if wants_clips and audio is not None and audio.evaluation == 0:
        faults.add(
            "[audio]", "[[score]] needs clips, and evaluation is 0", "set evaluation to the number of clips to score"
        )
    if "measure" in data and not data.get("export"):
        faults.add("", "[measure] needs an artifact, and there is no [[export]]", "add [[export]] with a format")
