"""``edgecompress advise``: whether a lower precision will pay on a device, measured there or by its instruction set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgecompress import session
    from edgecompress.advice import Advice, Measured, Opinion
    from edgecompress.devices import Device

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NOT_ASKED = "no probe was asked for"


def advise(
    on: Annotated[str, typer.Option("--on", help="Device to advise on; default: local.")] = "",
    profile: Annotated[
        str, typer.Option(help="A board that is not here (`edgecompress list devices`): its profile alone is asked.")
    ] = "",
    probe: Annotated[bool, typer.Option("--probe/--no-probe", help="Measure on the device, some 20 s.")] = True,
    threads: Annotated[int, typer.Option(help="Threads the probe may use.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Rounds of the probe, two processes each.")] = 2,
    min_seconds: Annotated[float, typer.Option(help="Sample each file so long in each process.")] = 0.3,
    json: Json = False,
) -> None:
    """Advise whether int8 or fp16 will be faster than fp32 on a device, and say why.

    The probe times the matrix products of a Transformer layer in ONNX Runtime on the device. What it measures beats what
    the rules expect of the instruction set; where they disagree it is said.
    """
    from edgecompress import devices
    from edgecompress.cli import say
    from edgecompress.errors import RecipeError

    if profile and on:
        raise RecipeError("--on and --profile exclude each other", hint="a device that is here tells its own flags")
    if profile:
        from edgecompress import advice

        board = devices.profile(profile)
        core = advice.core_of(profile=board)
        _tell(advice.advise(core, unmeasured="a board that is not here"), "", board.id, json)
        return
    name = on or "local"
    with devices.open_device(name) as device, say.working(f"asking {name}") as progress:
        given, board_id = _asked(device, _plan(threads, min_seconds) if probe else None, rounds, progress)
    _tell(given, name, board_id, json)


def _plan(threads: int, min_seconds: float) -> session.Plan:
    from dataclasses import replace

    from edgecompress.advice import probing

    return replace(
        probing.PLAN, threads=threads, min_seconds=min_seconds, max_seconds=max(min_seconds, probing.PLAN.max_seconds)
    )


def _asked(
    device: Device, plan: session.Plan | None, rounds: int, progress: Callable[[str], None]
) -> tuple[Advice, str | None]:
    """Advice on a device, with a probe if there is a plan for it and both ends can."""
    from edgecompress import advice, session
    from edgecompress.advice import probing
    from edgecompress.errors import RuntimeMissing

    found = session.probe(device)
    measured: list[Measured] = []
    notes: list[str] = []
    unmeasured = ""
    if plan is None:
        unmeasured = NOT_ASKED
    elif found.runtimes.get(probing.RUNTIME) is None:
        unmeasured = f"{device.name} has no {probing.RUNTIME}"
    else:
        try:
            measured, notes = probing.probe(device, plan, rounds, progress)
        except RuntimeMissing as why:
            unmeasured = why.message
        except ModuleNotFoundError as why:
            if why.name != "onnx":
                raise
            unmeasured = "the probe is made with onnx, which is not installed here: pip install 'edgecompress[onnx]'"
    core = advice.core_of(found.identity, found.profile)
    given = advice.advise(core, measured, unmeasured, notes)
    return given, found.profile.id if found.profile else None


def _tell(given: Advice, device: str, board: str | None, json: bool) -> None:
    """A table of verdicts, and below it why and who says so."""
    from edgecompress.advice import spelt
    from edgecompress.cli import say

    if json:
        say.as_json(_as_data(given, device, board))
        return
    say.table(("precision", "verdict", "measured", "rule", "of"), [_row(one) for one in given.opinions])
    runtimes = {one.measured.runtime for one in given.opinions if one.measured}
    if runtimes:
        print(f"measured: {', '.join(sorted(runtimes))}; times as fast as fp32, with its 95 % interval")
    else:
        print(f"not measured: {given.unmeasured or 'no file could be'}; this is what the instruction set lets expect")
    for other in given.others:
        print(f"{other.part}, {other.precision}: {spelt(other.speedup)} times as fast as fp32")
    for one in given.opinions:
        print(say.printable(f"\n{one.precision}: {one.reason}"))
        for source in one.rule.sources if one.rule else ():
            print(f"    {source}")
    for note in given.notes:
        print(say.printable(f"note: {note}"))


def _row(one: Opinion) -> tuple[str, str, str, str, str]:
    from edgecompress.advice import spelt, spelt_range

    seen = spelt(one.measured.speedup) if one.measured else "-"
    verdict = f"{one.verdict}{', against the rule' if one.agrees is False else ''}"
    if one.rule is None:
        return one.precision, verdict, seen, "none", "-"
    expected = spelt_range(one.rule)
    return one.precision, verdict, seen, one.rule.verdict + (f" ({expected})" if expected else ""), one.rule.name


def _as_data(given: Advice, device: str, board: str | None) -> dict[str, Any]:
    """What ``--json`` prints."""
    core = given.core
    return {
        "schema": "edgecompress.advice/1",
        "device": device or None,
        "profile": board,
        "core": {
            "arch": core.arch,
            "names": list(core.names),
            "present": sorted(core.present),
            "absent": sorted(core.absent),
            "whole": core.whole,
        },
        "measured": any(one.measured for one in given.opinions),
        "unmeasured": given.unmeasured or None,
        "precisions": {one.precision: _opinion(one) for one in given.opinions},
        "others": [{"precision": one.precision, "part": one.part, **_measured(one)} for one in given.others],
        "notes": list(given.notes),
    }


def _opinion(one: Opinion) -> dict[str, Any]:
    return {
        "verdict": one.verdict,
        "by": one.by,
        "agrees": one.agrees,
        "reason": one.reason,
        "measured": _measured(one.measured) if one.measured else None,
        "rule": one.rule.model_dump(exclude={"precision", "arch"}) if one.rule else None,
    }


def _measured(one: Measured) -> dict[str, Any]:
    return {
        "speedup": one.speedup.value,
        "low": one.speedup.low,
        "high": one.speedup.high,
        "fp32_ms": one.fp32_ms,
        "latency_ms": one.ms,
        "processes": one.processes,
        "runtime": one.runtime,
    }
