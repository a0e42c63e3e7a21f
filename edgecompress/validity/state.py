"""What facts before and after a repetition say: throttling, limits, cores, power, swapping, temperature, other programs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from statistics import median
from typing import Any

from edgecompress.records import Measurement, Repetition
from edgecompress.validity import stored
from edgecompress.validity.facts import cpu_count, flags, grown, number, numbers, plain, tables
from edgecompress.validity.rules import RULES, Code, limit

Found = Iterator[Code]


def found(code: str, text: str, seen: dict[str, Any], threshold: float | None = None, voids: bool = True) -> Code:
    """A code as its rule has it; ``voids`` can only take away."""
    return Code(code, text, seen, threshold, voids and RULES[code].voids)


def throttled(repetition: Repetition) -> Found:
    """Flags that are up now or came on between before and after, and counts of overheating that rose."""
    before, after = flags(repetition.facts_before.get("throttled")), flags(repetition.facts_after.get("throttled"))
    meanwhile = 0
    for _, value in stored.column(repetition, "flags"):
        meanwhile |= int(value) & int(limit("E_THROTTLE_FLAG", "now"))
    if before is not None and after is not None:
        for code in ("E_THROTTLE_FLAG", "E_UNDERVOLT"):
            now, since = int(limit(code, "now")), int(limit(code, "since_boot"))
            raised = (after & ~before & since) | ((after | meanwhile) & now)
            if raised:
                seen = {"before": before, "after": after, "meanwhile": meanwhile}
                yield found(code, f"flags {before:#x} before, {after | meanwhile:#x} after", seen, 0)
    counts = grown(repetition.facts_before.get("thermal_throttle"), repetition.facts_after.get("thermal_throttle"))
    if counts:
        yield found("E_THROTTLE_FLAG", f"the processor was too hot {_times(sum(counts.values()))}", counts, 0)
    was, now_ = (facts.get("cgroup") for facts in (repetition.facts_before, repetition.facts_after))
    stopped = grown(was, now_).get("throttled")
    if stopped:
        text = f"the control group's quota of CPU time stopped us {_times(stopped)}"
        yield found("E_THROTTLE_FLAG", text, {"cgroup_throttled": stopped}, 0, voids=False)


def _times(count: float) -> str:
    return "once" if count == 1 else f"{count:.0f} times"


def under_voltage(repetition: Repetition) -> Found:
    """The supply as the board tells it: its alarm, or volts below what a Raspberry Pi 5 needs."""
    least = limit("E_UNDERVOLT", "volts")
    told = [number(facts.get("supply_volts")) for facts in (repetition.facts_before, repetition.facts_after)]
    low = [volts for volts in told if volts is not None and volts < least]
    if low:
        yield found("E_UNDERVOLT", f"{min(low):.2f} V at the input (limit {least:.2f} V)", {"volts": min(low)}, least)
    elif repetition.facts_after.get("under_voltage") is True:
        yield found("E_UNDERVOLT", "the kernel's alarm of the supply is on", {"alarm": True})


def clock(repetition: Repetition) -> Found:
    """A clock that fell: by the measured loop, or momentarily under a governor that holds it."""
    kept = limit("E_CLOCK_DROP", "kept")
    was, now = stored.rates(repetition.clock_before), stored.rates(repetition.clock_after)
    for core in [core for core in was if core in now]:
        if now[core] < kept * was[core]:
            share = now[core] / was[core]
            on = "" if core is None else f" on core {core}"
            yield found(
                "E_CLOCK_DROP", f"the clock loop ran at {share:.0%} of its rate before{on}", {"kept": share}, kept
            )
            return
    if "performance" not in plain(repetition.facts_before.get("governor")):
        return
    for policy, first, second in _policies(repetition):
        if "cur" in first and "cur" in second and second["cur"] < kept * first["cur"]:
            seen = {"before_khz": first["cur"], "after_khz": second["cur"]}
            yield found("E_CLOCK_DROP", _changed(policy, "cur", first, second), seen, kept)
            return


def nominal(measurement: Measurement, repetition: Repetition) -> Found:
    """The clock while timing against what its maker says, on the measured cores."""
    told = numbers(repetition.facts_before.get("frequency_nominal_khz"))
    off = limit("W_CLOCK_NOMINAL", "off")
    for policy in _measured(told, stored.cores(measurement)):
        column = [value for _, value in stored.column(repetition, f"khz:{policy}")]
        if not column or not told[policy]:
            continue
        share = median(column) / told[policy]
        if abs(share - 1) > off:
            text = f"{policy}: {median(column) / 1e6:.2f} GHz while timing, {told[policy] / 1e6:.2f} GHz by its maker"
            yield found("W_CLOCK_NOMINAL", text, {"median_khz": median(column), "nominal_khz": told[policy]}, off)
            return


def _measured(policies: dict[str, float], cores: list[int]) -> list[str]:
    """The policies of these cores (one is named by its first core); without cores, the fastest one."""
    first = {int(name[6:]): name for name in policies if re.fullmatch(r"policy\d{1,4}", name)}
    if not cores:
        return sorted(policies, key=lambda name: -policies[name])[:1]
    holding = [max((start for start in first if start <= core), default=None) for core in cores]
    return [first[start] for start in dict.fromkeys(holding) if start is not None]


def _policies(repetition: Repetition) -> Iterator[tuple[str, dict[str, float], dict[str, float]]]:
    was, now = (tables(facts.get("frequency_khz")) for facts in (repetition.facts_before, repetition.facts_after))
    for policy in sorted(was.keys() & now.keys()):
        yield policy, was[policy], now[policy]


def _changed(policy: str, kind: str, first: dict[str, float], second: dict[str, float]) -> str:
    return f"{policy}: {kind} {first[kind] / 1e6:.2f} GHz before, {second[kind] / 1e6:.2f} GHz after"


def time_in_state(repetition: Repetition) -> Found:
    """Time below the limit, under a governor that holds the clock there."""
    governors = repetition.facts_before.get("governor")
    was, now = (tables(facts.get("time_in_state")) for facts in (repetition.facts_before, repetition.facts_after))
    for policy, limits, _ in _policies(repetition):
        if not isinstance(governors, dict) or governors.get(policy) != "performance" or "max" not in limits:
            continue
        spent = grown(was.get(policy), now.get(policy))
        below = sum(ticks for khz, ticks in spent.items() if khz.isdigit() and int(khz) < limits["max"])
        if below > limit("E_TIME_IN_STATE", "ticks"):
            text = f"{policy}: {below / 100:.2f} s of {sum(spent.values()) / 100:.2f} s below {limits['max'] / 1e6:.2f} GHz"
            yield found("E_TIME_IN_STATE", text, {"ticks_below": below, "ticks": sum(spent.values())}, 0)
            return


def cores_lost(repetition: Repetition) -> Found:
    """Cores that went away, or came."""
    yield from _differ("E_CORES_LOST", repetition, ("cores_online",))


def governor_changed(repetition: Repetition) -> Found:
    """Another governor, other limits, another power mode."""
    for code in _differ("E_GOVERNOR_CHANGED", repetition, ("governor", "power_mode", "energy_preference", "boost")):
        yield code
        return
    for policy, first, second in _policies(repetition):
        for kind in ("max", "min"):
            if kind in first and kind in second and first[kind] != second[kind]:
                seen = {"before_khz": first[kind], "after_khz": second[kind]}
                yield found("E_GOVERNOR_CHANGED", _changed(policy, kind, first, second), seen)
                return


def _differ(code: str, repetition: Repetition, names: tuple[str, ...]) -> Found:
    before, after = repetition.facts_before, repetition.facts_after
    for name in names:
        was, now = before.get(name), after.get(name)
        if was not in (None, "", {}) and now not in (None, "", {}) and was != now:
            text = f"{name.replace('_', ' ')}: {plain(was)} before, {plain(now)} after"
            yield found(code, text, {"before": was, "after": now})


def power_limit(repetition: Repetition) -> Found:
    """Over-current events, and cooling that takes clock away; a fan that speeds up takes nothing."""
    before, after = repetition.facts_before, repetition.facts_after
    events = grown(before.get("over_current"), after.get("over_current"))
    if events:
        yield found("E_JETSON_OC", f"events of the supply: {plain(events)}", events, limit("E_JETSON_OC", "events"))
    steps = {name: by for name, by in grown(before.get("cooling"), after.get("cooling")).items() if _slows(name)}
    for name, state in numbers(before.get("cooling")).items():
        highest = max(
            (value for _, value in stored.column(repetition, f"cooling:{name.partition(':')[0]}")), default=0.0
        )
        if _slows(name) and highest > state:
            steps[name] = max(steps.get(name, 0.0), highest - state)
    if steps:
        yield found("E_JETSON_OC", f"cooling rose: {plain(steps)}", steps, limit("E_JETSON_OC", "cooling_steps"))


def _slows(name: str) -> bool:
    return "fan" not in name.lower()


def suspended(repetition: Repetition) -> Found:
    """Two clocks that went on unlike: the device slept."""
    was, now = (numbers(facts.get("clocks_ns")) for facts in (repetition.facts_before, repetition.facts_after))
    passed = [now[name] - was[name] for name in ("boottime", "monotonic") if name in was and name in now]
    most = limit("E_CLOCKSTEP", "seconds")
    if len(passed) == 2 and abs(passed[0] - passed[1]) / 1e9 > most:
        slept = (passed[0] - passed[1]) / 1e9
        yield found("E_CLOCKSTEP", f"the device was suspended for {slept:.1f} s", {"seconds": slept}, most)


def hot_start(measurement: Measurement, facts: dict[str, Any]) -> Found:
    """Hot before the first repetition; it voids where the plan asked for a cool start (``thermal = "burst"``)."""
    most = limit("E_TEMP_START", "celsius")
    hottest = max(numbers(facts.get("temperature_celsius")).values(), default=None)
    if hottest is not None and hottest >= most:
        text = f"{hottest:.0f} °C before the first repetition (limit {most:.0f} °C)"
        asked = measurement.plan.get("thermal") == "burst"
        yield found("E_TEMP_START", text, {"celsius": hottest}, most, voids=asked)


def busy_start(measurement: Measurement, facts: dict[str, Any]) -> Found:
    """CPUs in use while we only waited; else the load average, where ticks do not tell better: it remembers our own last
    measurement for a minute, and so voids nothing.
    """
    waited, most = number(facts.get("busy_share")), limit("E_BUSY_START", "busy_share")
    if waited is not None:
        if waited >= most:
            yield found("E_BUSY_START", f"{waited:.0%} of a CPU was in use before we began", {"share": waited}, most)
        return
    if any(_others(measurement, one) is not None or stored.load(one) for one in measurement.repetitions):
        return
    load, cpus, per_cpu = facts.get("load_1min"), cpu_count(facts), limit("E_BUSY_START", "load_per_cpu")
    if isinstance(load, float) and cpus and load > per_cpu * cpus:
        text = f"1-minute load {load:.2f} on {cpus} CPUs before the first repetition"
        yield found("E_BUSY_START", text, {"load": load, "cpus": cpus}, per_cpu * cpus, voids=False)


def other_load(measurement: Measurement) -> Found:
    """What others took: in the timed phase where that is known, else over whole processes, where it voids nothing."""
    timed = {place: seen for place, one in enumerate(measurement.repetitions) if (seen := stored.load(one))}
    most, stolen = limit("E_OTHER_LOAD", "share"), limit("E_OTHER_LOAD", "stolen")
    sure = limit("E_OTHER_LOAD", "resolution_s")
    over = {
        place: one
        for place, one in timed.items()
        if (one.others - most) * one.seconds > sure or (one.stolen - stolen) * one.seconds > sure
    }
    if over:
        worst = max(over.values(), key=lambda one: one.others + one.stolen)
        text = f"{worst.others:.0%} of a CPU went to other programs and {worst.stolen:.1%} to the host while timing"
        shares = {"share": worst.others, "stolen": worst.stolen}
        yield _loaded(text, worst.others + worst.stolen, shares, most, tuple(over), True)
    if timed:
        return
    least, told = limit("E_OTHER_LOAD", "whole_process"), [_others(measurement, one) for one in measurement.repetitions]
    share = max((one for one in told if one is not None), default=0.0)
    if share > least:
        text = f"at least {share:.0%} of a CPU went to other programs or to the host"
        yield _loaded(text, share, {"share": share}, least, (), False)


def _loaded(
    text: str, share: float, seen: dict[str, Any], threshold: float, where: tuple[int, ...], voids: bool
) -> Code:
    word = "busy" if share > limit("E_OTHER_LOAD", "much") else ""
    return Code("E_OTHER_LOAD", text, seen, threshold, voids and RULES["E_OTHER_LOAD"].voids, where, word)


def _others(measurement: Measurement, repetition: Repetition) -> float | None:
    """CPUs that others surely used: all busy and stolen ticks, less all that our threads could have used.

    None where the device did not tell its ticks.
    """
    was, now = (numbers(facts.get("cpu_ticks")) for facts in (repetition.facts_before, repetition.facts_after))
    cpus = cpu_count(repetition.facts_before)
    spent = {kind: now[kind] - was[kind] for kind in was.keys() & now.keys()}
    wall = sum(spent.values()) / cpus if cpus else 0.0
    if wall <= 0:
        return None
    busy = sum(ticks for kind, ticks in spent.items() if kind not in ("idle", "iowait"))
    ours = {**measurement.plan, **measurement.options}.get("threads")
    return max(0.0, busy / wall - (ours if isinstance(ours, int) and ours > 0 else cpus or 1))


def swapped(repetition: Repetition) -> Found:
    """Pages that were swapped: in the timed phase, or at any time between before and after, where it voids nothing."""
    pages = stored.swapped(repetition)
    if pages > limit("E_SWAP", "pages"):
        yield found("E_SWAP", f"{pages} pages went to or came from swap while timing", {"pages": pages}, 0)
        return
    before, after = repetition.facts_before, repetition.facts_after
    whole = grown(before.get("swapped_pages"), after.get("swapped_pages"))
    compressed = grown({"zram": before.get("zram_bytes")}, {"zram": after.get("zram_bytes")})
    if whole or compressed:
        text = "pages went to or came from swap between before and after"
        yield found("E_SWAP", text, {**whole, **compressed}, 0, voids=False)


def page_faults(repetition: Repetition) -> Found:
    """Pages of the timed process that had to come from disk."""
    faults = repetition.steady.major_faults if repetition.steady else 0
    if faults > limit("E_MAJFAULT", "faults"):
        yield found("E_MAJFAULT", f"{faults} pages had to be read from disk while timing", {"faults": faults}, 0)
