"""``edgecompress predict``: what an artifact may take on a device, without measuring it there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgecompress.devices import Profile
    from edgecompress.predicting import Prediction
    from edgecompress.predicting.calibration import Fitted, Key
    from edgecompress.records import Artifact

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NAMES = {0: "roofline", 1: "calibrated"}


def predict(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact's folder.")],
    on: Annotated[str, typer.Option("--on", help="Device to predict for.")] = "local",
    profile: Annotated[
        str, typer.Option(help="A board that is not here (`edgecompress list devices`): its roofline alone.")
    ] = "",
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads the runtime may use.")] = 1,
    seconds: Annotated[float | None, typer.Option(help="Audio length, if not the golden input's.")] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="First measure probe models on the device, some minutes.")
    ] = False,
    depths: Annotated[str, typer.Option(help="Layers of the probes.")] = "2,6",
    widths: Annotated[str, typer.Option(help="Widths of the probes: around that of your models.")] = "192,384",
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Rounds of measuring the probes.")] = 3,
    min_seconds: Annotated[float, typer.Option(help="Sample each probe so long in each round.")] = 0.5,
    json: Json = False,
) -> None:
    """Predict the latency of an artifact on a device; a prediction is never a measurement.

    The roofline needs only the board's profile and answers with a range. After --calibrate, costs fitted to probe models
    that were measured there answer with a value and its 90 % interval, if they predict probes that they have not seen.
    """
    from edgecompress import devices
    from edgecompress.cli import say
    from edgecompress.errors import RecipeError
    from edgecompress.predicting import calibration
    from edgecompress.predicting.predict import predictions
    from edgecompress.records import Artifact

    record = Artifact.read(artifact / "artifact.json")
    if profile and (calibrate or on != "local"):
        raise RecipeError("--profile stands for a board that is not here", hint="leave --on and --calibrate out")
    if profile:
        found = predictions(record, artifact, profile, threads, devices.profile(profile), None, seconds)
    else:
        key = calibration.Key(on, record.runtime, record.precision, threads)
        if calibrate:
            _calibrated(record, key, _whole(depths, "--depths"), _whole(widths, "--widths"), rounds, min_seconds)
        fitted = calibration.read(key)
        found = predictions(record, artifact, on, threads, _board(on, fitted), fitted, seconds)
    if json:
        say.as_json([one.model_dump(by_alias=True, mode="json") for one in found])
    else:
        _tell(found, bool(profile))


def _calibrated(
    record: Artifact, key: Key, depths: list[int], widths: list[int], rounds: int, min_seconds: float
) -> None:
    from dataclasses import replace

    from edgecompress import devices
    from edgecompress.cli import say
    from edgecompress.predicting import calibration, probes

    wanted = probes.shapes(depths, widths)
    most = max(min_seconds, calibration.PLAN.max_seconds)
    plan = replace(calibration.PLAN, threads=key.threads, min_seconds=min_seconds, max_seconds=most)
    with devices.open_device(key.device) as device, say.working(f"calibrating {key.device}") as progress:
        calibration.calibrate(device, key, record.format, wanted, plan, rounds, progress)


def _board(on: str, fitted: Fitted | None) -> Profile | None:
    """The profile of a device: the one it was added with, else the one that its calibration or the device itself fits."""
    from edgecompress import devices, session

    with devices.open_device(on) as device:
        if device.profile is not None:
            return device.profile
        if fitted is not None:
            return devices.profile(fitted.record.profile) if fitted.record.profile else None
        return session.probe(device).profile


def _whole(text: str, option: str) -> list[int]:
    """``"2,6"`` as ``[2, 6]``."""
    from edgecompress.errors import RecipeError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) <= 5 for part in parts):
        raise RecipeError(f"{option} {text}: not whole numbers", hint=f"e.g. {option} 2,6")
    return [int(part) for part in parts]


def _tell(found: list[Prediction], no_device: bool) -> None:
    """A table of what is predicted, and below it what that rests on."""
    from edgecompress.cli import say

    first = found[0]
    length = f", {first.audio_seconds:g} s of audio" if first.audio_seconds else ""
    print(
        say.printable(
            f"predicted, not measured: {first.artifact} on {first.device}, {first.runtime} {first.precision}, "
            f"{first.threads} thread{'s' if first.threads > 1 else ''}{length}"
        )
    )
    say.table(("by", "latency", "range", "real-time factor", "usable"), [_row(one) for one in found])
    for one in found:
        _reasons(one)
    if len(found) == 1 and not no_device:
        print("\nnot calibrated: --calibrate measures probe models on the device first")


def _row(one: Prediction) -> tuple[str, ...]:
    value = f"{one.value * 1e3:.1f} ms" if one.value is not None else "-"
    if one.low is None or one.high is None:
        return NAMES[one.level], value, "-", "-", "no"
    factors = "-"
    if one.audio_seconds:
        factors = f"{one.low / one.audio_seconds:.3f} to {one.high / one.audio_seconds:.3f}"
    verdict = "yes" if one.usable else "not usable"
    return NAMES[one.level], value, f"{one.low * 1e3:.1f} to {one.high * 1e3:.1f} ms", factors, verdict


def _reasons(one: Prediction) -> None:
    from edgecompress.cli import say

    lines = [f"nothing can be said without {name}" for name in one.missing]
    for assumed in one.assumptions:
        ends = f"{assumed.low:.3g}" if assumed.low == assumed.high else f"{assumed.low:.3g} to {assumed.high:.3g}"
        lines.append(f"{assumed.name}: {ends} {assumed.unit}".rstrip() + f" ({assumed.source})")
    if one.fit:
        share, wanted = one.fit["held_out_within_10_percent"], one.fit["wanted_within"]
        lines.append(
            f"{share:.0%} of {one.fit['probes']} probes, each predicted from the others, came out within 10 % "
            f"({wanted:.0%} are wanted); the range is a {one.fit['coverage']:.0%} interval for models like the probes "
            "on the day they were measured"
        )
    lines += [f"beyond the probes: {text}" for text in one.outside]
    lines += [f"note: {text}" for text in one.notes]
    print(say.printable(f"\n{NAMES[one.level]}:"))
    for line in lines:
        print(say.printable(f"    {line}"))
