"""Commands that hold measurements against each other: compare, history."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from edgecompress.comparing.history import Change, History
    from edgecompress.comparing.loop import Outcome
    from edgecompress.comparing.record import Comparison

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def compare(
    targets: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B [C ...]", help="Artifact folders or model files; A is what others are held against."
        ),
    ],
    on: Annotated[str, typer.Option("--on", help="Device to measure on.")] = "local",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for all sessions; a comparison that ended early goes on there."),
    ] = None,
    half_width: Annotated[
        float, typer.Option(help="Stop when the 95 % interval of the log ratio reaches so far to either side.")
    ] = 0.01,
    budget_minutes: Annotated[float, typer.Option(help="Stop after so many minutes in blocks.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Fixes the order.")] = 0,
    canary: Annotated[Path | None, typer.Option(help="Model that shows whether the machine moved; default: A.")] = None,
    across_runtimes: Annotated[
        bool,
        typer.Option("--across-runtimes", help="Compare models of different runtimes: model and runtime together."),
    ] = False,
    threads: Annotated[int, typer.Option(help="Threads the runtime may use.")] = 1,
    warmup_s: Annotated[float, typer.Option(help="Warm-up of each session, seconds.")] = 0.5,
    min_samples: Annotated[int, typer.Option(help="At least so many samples in each session ...")] = 20,
    min_seconds: Annotated[float, typer.Option(help="... over at least so many seconds,")] = 2.0,
    max_seconds: Annotated[float, typer.Option(help="but no longer than this.")] = 20.0,
    timeout_s: Annotated[float, typer.Option(help="Limit of one session, seconds.")] = 600.0,
    seconds: Annotated[float | None, typer.Option(help="Audio length to time, if not the golden input's.")] = None,
    dim: Annotated[list[str] | None, typer.Option(help="Size of a dimension of plain files: NAME=SIZE.")] = None,
    inputs: Annotated[Path | None, typer.Option(help="Inputs for plain files: .npz, or folder of .npy.")] = None,
    audio: Annotated[Path | None, typer.Option(help="Recording for plain files that take audio.")] = None,
    runtime: Annotated[str, typer.Option(help="Runtime for plain files; default: that of the suffix.")] = "",
    affinity: Annotated[str, typer.Option(help="Cores to run on: 4-7, or 0,2.")] = "",
    json: Json = False,
) -> None:
    """Say how many times as fast B is as A, how sure that is, or that nobody can say yet.

    Blocks run every model once, in mirrored pairs, between canaries; a block in which the machine moved by more than
    3 % does not count. After 8, 12, 16, 24 ... blocks the interval is looked at. Run again with the same folder, a
    comparison that was ended goes on where it was; one that is complete is told again.
    """
    from edgecompress import __version__, devices, session
    from edgecompress.audio import read_clip
    from edgecompress.cli import say
    from edgecompress.cli.runs import _cores, given_inputs
    from edgecompress.comparing import campaign, loop, subjects
    from edgecompress.comparing.record import Question

    rule = loop.Rule(half_width, budget_minutes * 60, seed)
    plan = session.Plan(
        threads=threads, repetitions=1, warmup_s=warmup_s, min_samples=min_samples, min_seconds=min_seconds,
        max_seconds=max_seconds, timeout_s=timeout_s, seconds=seconds, affinity=_cores(affinity),
        memory_pass=False,
    )  # fmt: skip
    fed = given_inputs(dim or [], inputs, audio)
    given = subjects.Given(fed, runtime, read_clip(audio).samples if audio else None)
    variants = subjects.targets(targets, given, across_runtimes)
    bird = subjects.target(canary, subjects.Given()) if canary else None
    question = Question(
        variants=[one.subject for one in variants], canary=bird.subject if bird else None, device=on, seed=seed,
        plan=asdict(plan) | {"affinity": list(plan.affinity)}, inputs=given.described(),
        across_runtimes=across_runtimes,
    )  # fmt: skip
    with ExitStack() as stack:
        folder = output or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "compare"
        device = stack.enter_context(devices.open_device(on))
        progress = stack.enter_context(say.working(f"comparing {len(variants)} models on {on}"))
        measure = subjects.measuring(device, variants, bird, given, None)
        held = campaign.Campaign(folder, question, plan, measure, f"edgecompress {__version__}", progress)
        outcome = held.carry_out(rule)
    if json:
        say.as_json(campaign.as_data(held.comparison, outcome))
        return
    _told(held.comparison, outcome)
    if output is not None:
        print(output)


def _told(comparison: Comparison, outcome: Outcome) -> None:
    from edgecompress.cli import say
    from edgecompress.comparing import campaign

    data = campaign.as_data(comparison, outcome)
    rows = [
        (one["name"], "none" if one["median_s"] is None else f"{one['median_s'] * 1e3:.3f} ms")
        for one in data["variants"]
    ]
    say.table(("model", "median latency"), rows, numbers=(1,))
    for result in data["results"]:
        print(say.printable(result["text"]))
    if not data["results"]:
        print(f"undecided: {len(data['void'])} of {data['blocks']} blocks are void")
    why = {"precise": "the interval is narrow enough", "budget": "the budget is spent"}.get(
        outcome.ended, outcome.ended
    )
    say.note(f"{data['counted']} blocks count, {len(data['void'])} are void; ended since {why}")
    for void in data["void"]:
        say.note(f"  block {void['block']}: {void['why']}")


def history(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Measurements, in this folder and all below.")],
    artifact: Annotated[str, typer.Option(help="Only this artifact: its name, or how its SHA-256 begins.")] = "",
    on: Annotated[str, typer.Option("--on", help="Only on this device.")] = "",
    fail_on_regression: Annotated[
        bool, typer.Option("--fail-on-regression", help="End with status 1 if one became slower.")
    ] = False,
    json: Json = False,
) -> None:
    """Tell how the latency of an artifact on a device changed over time, oldest first.

    Each measurement is held against the one before and the first under the same conditions; where runtime version,
    kernel, threads, governor or input differ, that is said instead.
    """
    from edgecompress.cli import say
    from edgecompress.comparing import history as room
    from edgecompress.errors import RecordError

    measurements, faults = room.read(folder)
    found = room.histories(measurements, artifact, on)
    for path, why in faults.items():
        say.note(f"skipped {path}: {why}")
    if not found:
        which = " ".join(filter(None, [f"of {artifact}" if artifact else "", f"on {on}" if on else ""]))
        there = sorted({f"{one.artifact} on {one.device}" for _, one in measurements})
        raise RecordError(
            f"{folder}: no measurements {which}".rstrip(),
            hint=f"there are: {', '.join(there[:8])}" if there else "`bench -o` and `run` write them",
        )
    if json:
        say.as_json([room.as_data(one) for one in found])
    else:
        for one in found:
            _told_history(one)
    if fail_on_regression and any(entry.regressed for one in found for entry in one.entries):
        raise typer.Exit(1)


def _told_history(history: History) -> None:
    from edgecompress.cli import say

    print(say.printable(f"{history.artifact} on {history.device}"))
    rows: list[tuple[Any, ...]] = []
    for entry in history.entries:
        latency = f"{entry.latency.value * 1e3:.3f} ms"
        said = "REGRESSION" if entry.regressed else ""
        if entry.invalid:
            said = f"invalid: {'; '.join(entry.invalid)}"
        elif entry.differs:
            said = f"{said} not comparable with the one before: {'; '.join(entry.differs)}".strip()
        rows.append((entry.measurement.started, latency, _change(entry.previous), _change(entry.first), said))
    say.table(("started", "median", "against the one before", "against the first", "remarks"), rows, numbers=(1,))


def _change(change: Change | None) -> str:
    if change is None:
        return "-"
    speed = change.speed
    interval = f" [{speed.low:.3f}, {speed.high:.3f}]" if speed.has_interval else ""
    return f"{speed.value:.3f}x as fast{interval}: {change.verdict}"
