"""``edgecompress device`` for boards themselves: what one is made of, what it can do, what we put there and take back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Name = Annotated[str, typer.Argument(help="A device that is known.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Runtimes = Annotated[list[str] | None, typer.Option("--runtime", help="A runtime that it is to have; may be repeated.")]


def details(device: Any, identity: dict[str, Any], profile: Any, timeout_s: float) -> dict[str, Any]:
    """What a probe says of the board beyond a job's facts: details, wheels that fit, what the profile has otherwise."""
    from edgecompress import runtimes
    from edgecompress.devices import board, wheels
    from edgecompress.errors import RecipeError

    found = board.read(device, timeout_s)
    try:
        target = wheels.target(found)
        fitting = {name: str(wheels.choose(name, target)) for name in runtimes.names()}
    except RecipeError as why:
        fitting = dict.fromkeys(runtimes.names(), f"none: {why.message}")
    differs = board.disagreements(profile, identity, found) if profile else []
    return {"board": found.model_dump(mode="json"), "wheels": fitting, "disagreements": differs}


def rows(told: dict[str, Any]) -> list[tuple[str, object]]:
    """The same as lines of a table: (what, value)."""
    found, absent = told["board"], told["board"]["absent"]
    lines: list[tuple[str, object]] = [("disagrees", line) for line in told["disagreements"]]
    lines += [(f"wheel {name}", choice) for name, choice in sorted(told["wheels"].items())]
    for one in found["clusters"]:
        clock = f", {one['khz_max'] / 1000:.0f} MHz" if one["khz_max"] else ""
        capacity = f", capacity {one['capacity']}" if one["capacity"] else ""
        lines.append(("cores", f"{_cores(one['ids'])}: {one['core'] or 'unnamed'}{clock}{capacity}"))
    lines.append(("cores usable", _cores(found["usable_cores"])))
    if limits := found["cgroup"]:
        cpus = f"{limits['cpus']:g} cores" if limits["cpus"] else "no limit of cores"
        memory = f"{limits['memory_bytes'] >> 20} MiB" if limits["memory_bytes"] else "no limit of memory"
        lines.append((f"cgroup v{limits['version']}", f"{cpus}, {memory}"))
    for zone in found["thermal_zones"]:
        value = f"{zone['celsius']:.1f} C" if zone["celsius"] is not None else f"unreadable: {zone['why']}"
        trips = "".join(f", {kind} at {celsius:g} C" for kind, celsius in zone["trips"])
        lines.append((f"zone {zone['type']}", value + trips))
    lines += [(f"throttling by {one['kind']}", one["path"] + _but(one["why"])) for one in found["throttle_sources"]]
    lines += [(f"rail {one['meter']} {one['name']}", one["path"] + _but(one["why"])) for one in found["rails"]]
    for area in found["swap"]:
        kind = "zram" if area["zram"] else "swap"
        lines.append((kind, f"{area['name']}, {area['bytes'] >> 20} MiB, {area['used_bytes'] >> 20} MiB used"))
    lines += [("swap", "none")] if not found["swap"] and "swap" not in absent else []
    lines.append(("glibc", found["glibc"] or absent.get("glibc", "")))
    if found["page_bytes"]:
        lines.append(("page", f"{found['page_bytes']} bytes"))
    if found["disk_free_bytes"] is not None:
        lines.append(("disk free", f"{found['disk_free_bytes'] >> 20} MiB"))
    lines += [(f"no {name}", why) for name, why in sorted(absent.items())]
    return lines


def _but(why: str) -> str:
    return f", but: {why}" if why else ""


def _cores(ids: list[int]) -> str:
    from edgecompress.devices import board

    return board.as_ranges(ids) or "none"


def calibrate(
    name: Name,
    threads: Annotated[
        list[int] | None, typer.Option(help="Threads; may be repeated; default: 1, and one on each core.")
    ] = None,
    affinity: Annotated[str, typer.Option(help="Cores, as taskset takes them; default: the strongest kind.")] = "",
    seconds: Annotated[float, typer.Option(help="How long each kind of work is repeated.")] = 0.5,
    timeout_s: Annotated[float, typer.Option(help="Limit of each stage.")] = 120.0,
    json: Json = False,
) -> None:
    """Measure what a board's cores and memory can do at best: clock, bandwidth, products of matrices.

    Raw samples and their conditions are stored among your settings; the rates printed are of the best sample.
    """
    from edgecompress import devices
    from edgecompress.cli import say
    from edgecompress.cli.runs import _cores as parse_cores
    from edgecompress.devices import calibration

    cores = parse_cores(affinity)
    with devices.open_device(name) as device, say.working(f"calibrating {name}") as tell:
        found = calibration.calibrate(
            device, threads=threads or (), affinity=cores, seconds=seconds, timeout_s=timeout_s, progress=tell
        )
    if json:
        say.as_json(found.model_dump(mode="json", by_alias=True))
        return
    lines: list[tuple[object, ...]] = []
    for chain in found.clock:
        lines.append((f"additions on core {chain.core}", 1, f"{chain.iterations / min(chain.ns):.3f}", "G/s"))
    lines += [(f"memory {one.kind}", one.threads, f"{one.gb_per_s:.2f}", "GB/s") for one in found.memory]
    lines += [
        (f"{one.library} matmul {one.size}", one.threads, f"{one.gmacs_per_s:.2f}", "GMAC/s") for one in found.matmul
    ]
    say.table(("what", "threads", "best", ""), lines, numbers=(1, 2))
    for stage, why in found.absent.items():
        say.note(f"{stage}: {why}")
    say.note(f"stored in {calibration.path_of(name)}")


def provision(
    name: Name,
    runtime: Runtimes = None,
    folder: Annotated[Path | None, typer.Option("--wheels", help="Take wheels from here; fetch none.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take away what provisioning put there.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Even where `site` is a folder of yours.")] = False,
    timeout_s: Annotated[float, typer.Option(help="Limit of each step on the device.")] = 600.0,
    json: Json = False,
) -> None:
    """Give a board runtimes: wheels for its Python are fetched here, checked, sent and unpacked in one folder there.

    The board needs no network, no pip and no root. Nothing of a wheel is run for it.
    """
    from edgecompress import devices
    from edgecompress.cli import say
    from edgecompress.devices import provisioning
    from edgecompress.errors import RecipeError

    if remove and (runtime or folder):
        raise RecipeError("--remove takes everything away: no --runtime, no --wheels", hint="give one or the other")
    with devices.open_device(name) as device, say.working(f"provisioning {name}") as tell:
        if remove:
            _tell_cleaned(provisioning.clean(device, remove=True, parts=("site",), timeout_s=timeout_s), True, json)
            return
        done = provisioning.provision(
            device, runtime or (), folder, replace=replace, timeout_s=timeout_s,
            progress=lambda sent, total: tell(f"sending {sent >> 20} of {total >> 20} MiB"),
        )  # fmt: skip
    if json:
        say.as_json(done.__dict__)
        return
    say.table(("wheel", "sha256"), list(done.wheels.items()))
    for one in done.skipped:
        say.note(f"does not fit: {one}")
    print(f"{'unpacked in' if done.new else 'was there already:'} {done.site}")
    print(f"next: edgecompress device probe {name}")


def clean(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without, only say what is there.")] = False,
    json: Json = False,
) -> None:
    """Say what of ours is on a device, and with --yes remove it: objects, jobs, runtimes. Nothing else is touched."""
    from edgecompress import devices
    from edgecompress.cli import say
    from edgecompress.devices import provisioning

    with devices.open_device(name) as device, say.working(f"looking at {name}"):
        found = provisioning.clean(device, remove=yes)
    _tell_cleaned(found, yes, json)
    if found.parts and not yes and not json:
        say.note(f"nothing was removed; to remove it: edgecompress device clean {name} --yes")


def _tell_cleaned(found: Any, removed: bool, json: bool) -> None:
    from edgecompress.cli import say

    if json:
        say.as_json(found.model_dump(mode="json") | {"removed": removed})
        return
    if found.parts:
        columns = ("removed" if removed else "there", "entries", "bytes")
        say.table(columns, [(one.name, one.entries, one.bytes) for one in found.parts], numbers=(1, 2))
    else:
        print(f"nothing of ours in {say.printable(found.cache)}")
    for other in found.others:
        say.note(f"not ours, left alone: {found.cache}/{other}")
