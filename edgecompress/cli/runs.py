"""Commands that measure and report: bench, report, run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from edgecompress.records import Measurement

MOST = 10**9  # of one dimension
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def bench(
    target: Annotated[
        Path, typer.Argument(metavar="FILE_OR_ARTIFACT", help="An artifact folder, or any .onnx, .xml or .tflite file.")
    ],
    on: Annotated[str, typer.Option("--on", help="Device to measure on.")] = "local",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for the measurement; `report` reads it.")
    ] = None,
    level: Annotated[
        str, typer.Option(help="smoke, quick, default or publish: how much is measured; options below come first.")
    ] = "default",
    threads: Annotated[int, typer.Option(help="Threads the runtime may use.")] = 1,
    repetitions: Annotated[int | None, typer.Option(help="Fresh processes.")] = None,
    warmup_s: Annotated[float, typer.Option(help="Warm-up in each process, seconds; then until it is steady.")] = 0.5,
    min_samples: Annotated[int | None, typer.Option(help="At least so many samples in each process ...")] = None,
    min_seconds: Annotated[float | None, typer.Option(help="... over at least so many seconds,")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="but no longer than this.")] = None,
    timeout_s: Annotated[float | None, typer.Option(help="Limit of the whole measurement, seconds.")] = None,
    cooldown_s: Annotated[float | None, typer.Option(help="Wait between two lengths, seconds.")] = None,
    ambient_celsius: Annotated[float | None, typer.Option(help="Temperature of the room; publish needs it.")] = None,
    scenario: Annotated[
        str, typer.Option(help="single_stream, paced_stream (with --hop-s) or offline (with --batch).")
    ] = "single_stream",
    hop_s: Annotated[float | None, typer.Option(help="Seconds between two arrivals of a paced stream.")] = None,
    batch: Annotated[int, typer.Option(help="Inputs in one run, offline.")] = 1,
    seconds: Annotated[
        list[float] | None,
        typer.Option(help="Audio length to time, if not the golden input's; several give one measurement each."),
    ] = None,
    memory_pass: Annotated[bool, typer.Option(help="Look at memory in a process of its own.")] = True,
    profile_operators: Annotated[
        bool, typer.Option("--profile-operators", help="Time each operator, in a process of its own.")
    ] = False,
    dim: Annotated[list[str] | None, typer.Option(help="Size of a dimension of a plain file: NAME=SIZE.")] = None,
    inputs: Annotated[Path | None, typer.Option(help="Inputs for a plain file: .npz, or folder of .npy.")] = None,
    audio: Annotated[
        Path | None,
        typer.Option(help="Recording for a plain file that takes audio, (1, n) or so, tiled or cut to fit."),
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="Runtime for a plain file (`edgecompress list runtimes`); default: that of its suffix.")
    ] = "",
    affinity: Annotated[str, typer.Option(help="Cores to run on: 4-7, or 0,2.")] = "",
    json: Json = False,
) -> None:
    """Measure a model on a device: latency, memory, and whether the device's answer is right."""
    from edgecompress import devices, session
    from edgecompress.audio import read_clip
    from edgecompress.cli import measured, say
    from edgecompress.records import Artifact

    asked: dict[str, Any] = {
        "threads": threads, "repetitions": repetitions, "warmup_s": warmup_s, "min_samples": min_samples,
        "min_seconds": min_seconds, "max_seconds": max_seconds, "timeout_s": timeout_s, "cooldown_s": cooldown_s,
        "affinity": _cores(affinity), "scenario": scenario, "hop_s": hop_s, "batch": batch, "memory_pass": memory_pass,
        "profile_operators": profile_operators, "ambient_celsius": ambient_celsius,
    }  # fmt: skip
    lengths: list[float | None] = [*seconds] if seconds else [None]
    plans = [session.Plan.of(level, **asked, seconds=length) for length in lengths]
    ours = (target / "artifact.json").is_file()
    given = given_inputs(dim or [], inputs, audio)
    _only_for_plain_files(target, ours, {"--inputs": inputs, "--dim": dim, "--audio": audio, "--runtime": runtime})
    samples = read_clip(audio).samples if audio else None
    written: list[Path] = []
    with devices.open_device(on) as device, say.working(f"measuring {target.name} on {on}") as progress:
        artifact = Artifact.read(target / "artifact.json") if ours else None
        measurements: list[Measurement] = []
        for number, plan in enumerate(plans):
            if number:
                session.cool_down(plan, progress)
            if artifact is not None:
                measurements.append(session.measure(device, artifact, target, plan, progress))
            else:
                measurements.append(session.measure_file(device, target, plan, given, runtime, progress, samples))
            if output is not None:
                written.append(_written(output, target, on, measurements[-1]))
    if json:
        told = [one.model_dump(by_alias=True, mode="json") for one in measurements]
        say.as_json(told if len(told) > 1 else told[0])
    elif len(measurements) > 1:
        measured.told_lengths(measurements)
    else:
        measured.told(measurements[0])
    for file in [] if json else written:
        print(file)


def _written(output: Path, target: Path, on: str, measurement: Measurement) -> Path:
    stem = target.resolve().name if target.is_dir() else target.stem
    file = output / "measurements" / f"bench-{stem}-{on}-{_key(measurement)}.json"
    measurement.write(file)
    return file


def _key(measurement: Measurement) -> str:
    """What a file's name must tell apart: the plan, the very model, what it was fed, and what ran it."""
    from edgecompress.records import content_key

    ran = [measurement.runtime, measurement.runtime_version]
    return content_key([measurement.plan, measurement.artifact_sha256, measurement.input, ran])


def given_inputs(dim: list[str], inputs: Path | None, audio: Path | None) -> Path | dict[str, int] | None:
    """What a plain file is fed: arrays, or sizes for inputs that are made.

    Raises:
        RecipeError: options that exclude each other, or a size that is none.
    """
    from edgecompress.errors import RecipeError

    if inputs is not None and (dim or audio):
        other = "--dim" if dim else "--audio"
        raise RecipeError(f"--inputs and {other} exclude each other", hint="given arrays have their sizes already")
    return inputs or _one_each(dim)


def _only_for_plain_files(target: Path, ours: bool, asked: dict[str, Any]) -> None:
    """An artifact has its own inputs and names its runtime: nothing asked is passed over."""
    from edgecompress.errors import RecipeError

    names = [name for name, value in asked.items() if value]
    if names and ours:
        raise RecipeError(
            f"{' and '.join(names)}: only for plain files, and {target} is an artifact",
            hint="an artifact has its golden input and names its runtime; --seconds sets its length",
        )


def _cores(text: str) -> tuple[int, ...]:
    """``"0,4-7"`` as ``(0, 4, 5, 6, 7)``."""
    import re

    from edgecompress.errors import RecipeError

    cores: set[int] = set()
    for part in text.split(",") if text else []:
        found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise RecipeError(f"--affinity {text}: not core numbers", hint="e.g. --affinity 4-7, or --affinity 0,2")
        cores |= set(range(first, last + 1))
    return tuple(sorted(cores))


def sizes(pairs: list[str]) -> dict[str, list[int]]:
    """``["batch=1", "batch=3"]`` as ``{"batch": [1, 3]}``.

    Raises:
        RecipeError: not NAME=SIZE.
    """
    from edgecompress.errors import RecipeError

    found: dict[str, list[int]] = {}
    for pair in pairs:
        name, _, size = pair.rpartition("=")
        if not name or not size.isascii() or not size.isdigit() or not 1 <= int(size) <= MOST:
            raise RecipeError(f"--dim {pair}: not NAME=SIZE", hint="e.g. --dim batch=1 --dim samples=16000")
        found.setdefault(name, []).append(int(size))
    return found


def _one_each(pairs: list[str]) -> dict[str, int] | None:
    from edgecompress.errors import RecipeError

    found = sizes(pairs)
    for name, values in found.items():
        if len(values) > 1:
            raise RecipeError(f"--dim {name}: {len(values)} sizes", hint="one size is timed: measure again for another")
    return {name: values[0] for name, values in found.items()} or None


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder, or one that `bench -o` wrote.")],
    json: Json = False,
) -> None:
    """Write the report of a folder: an offline HTML page, table.csv and report.md."""
    from edgecompress import report as room
    from edgecompress.cli import say
    from edgecompress.errors import RecordError

    if not folder.is_dir():
        raise RecordError(
            f"no such folder: {folder}", hint="give the folder that `edgecompress run` or `bench -o` wrote"
        )
    page = room.write(folder)
    if json:
        say.as_json(room.summary(folder))
    else:
        print(page)


def run(
    job: Annotated[Path, typer.Argument(metavar="JOB.toml", help="What to compress, export, score and measure.")],
    json: Json = False,
) -> None:
    """Do all that a job asks for, cell by cell, and report. Run again, it skips what is finished.

    Exit status 0: every cell is filled; 1: the report is written, but some cells failed; 2: nothing could start.
    """
    from edgecompress import devices, pipeline
    from edgecompress.cli import say
    from edgecompress.paths import existing
    from edgecompress.recipe import read_job

    asked = read_job(job, devices=set(devices.config.names()))
    if asked.audio is not None and asked.audio.folder is not None:
        existing(asked.audio.folder, "audio folder")  # now, not in the first cell that wants a clip
    with say.working(f"running {asked.name}") as progress:
        result = pipeline.run(asked, progress=progress)
    say.note(f"{result.filled} cells filled, {result.skipped} already there, {result.failed} failed")
    if json:
        say.as_json(_as_data(result))
    else:
        print(result.report)
    if result.failed:
        raise typer.Exit(1)


def _as_data(result: Any) -> dict[str, Any]:
    return {"report": str(result.report), "filled": result.filled, "skipped": result.skipped, "failed": result.failed}
