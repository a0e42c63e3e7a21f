"""An adviser: whether a lower precision will be faster on a core, from its instruction set and, better, from a probe.

Rules (``rules.toml``) are expectations with sources. A probe (``probing``) times the matrix products of a Transformer layer
on the device itself; what it measured beats what a rule expects, and where the two disagree the advice says so. A flag that
nobody has told is not guessed: the rules that hang on it leave a precision undecided.

A precision pays when it makes these products 10 % faster at least. A whole model gains less: what stays in fp32
(convolutions, softmax, normalisation) takes as long as before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgecompress.advice.rules import Rule, Word, precisions, rules
from edgecompress.devices import Profile
from edgecompress.stats import Estimate

__all__ = ["Advice", "Core", "Measured", "Opinion", "advise", "core_of"]

WORTH = 1.1  # times as fast: below, a lower precision costs more accuracy than it buys time
PRODUCTS = "matrix products"
# Flags that later ones imply and that profiles therefore do not repeat: without AVX-512 there is no AVX-512 VNNI.
IMPLIED = {
    "avx512f": ("avx512bw", "avx512_vnni", "avx512_fp16", "avx512_bf16", "amx_int8"),
    "avx2": ("avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_fp16", "avx512_bf16", "amx_int8"),
    "asimd": ("asimddp", "asimdhp", "i8mm"),
    "asimddp": ("i8mm",),
}
MACHINES = {"arm64": "aarch64", "amd64": "x86_64"}


@dataclass(frozen=True)
class Core:
    """What is known of a core: its architecture, instruction-set flags that it has, and flags that it is known to lack.

    ``whole`` says that ``present`` is all it has, as the device itself told: then every other flag is missing. ``notes``
    tell where the device and its profile differ.
    """

    arch: str
    present: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    whole: bool = False
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """One part of the probe in one precision: times as fast as fp32, and the medians in milliseconds."""

    precision: str
    part: str
    speedup: Estimate
    fp32_ms: float
    ms: float
    processes: int
    runtime: str


@dataclass(frozen=True)
class Opinion:
    """What is advised on a precision. ``agrees`` is None where nothing was measured or one side is undecided."""

    precision: str
    verdict: Word
    by: str  # "measured", "rule" or "nothing"
    reason: str
    rule: Rule | None = None
    measured: Measured | None = None
    agrees: bool | None = None


@dataclass(frozen=True)
class Advice:
    """Opinions by precision, other measured parts, and why nothing was measured where that is so."""

    core: Core
    opinions: tuple[Opinion, ...]
    others: tuple[Measured, ...] = ()
    unmeasured: str = ""
    notes: tuple[str, ...] = ()


def core_of(identity: Mapping[str, Any] | None = None, profile: Profile | None = None) -> Core:
    """What is known of a core from what a device told (``session.Probe.identity``) and from its board's profile.

    The device's own flags are all there are. Without them the profile's ``isa`` are there, its ``forbidden_isa`` are not,
    and of the rest nothing is known.
    """
    told = identity or {}
    flags, machine = told.get("isa"), told.get("machine")
    arch = machine if isinstance(machine, str) else profile.cpu.arch if profile else ""
    arch = MACHINES.get(arch.lower(), arch)
    wanted = frozenset(profile.cpu.isa) if profile else frozenset()
    unwanted = _with_implied(frozenset(profile.cpu.forbidden_isa)) if profile else frozenset()
    names = tuple(dict.fromkeys(cluster.core for cluster in profile.cpu.cluster)) if profile else ()
    if not isinstance(flags, str) or not flags.split():
        return Core(arch, wanted, unwanted, False, names)
    present = frozenset(flags.split())
    odd = [("lacks", one) for one in sorted(wanted - present)]
    odd += [("has", one) for one in sorted(present & unwanted)]
    notes = tuple(f"the device {verb} {flag}, its profile says otherwise: the device is believed" for verb, flag in odd)
    return Core(arch, present, frozenset(), True, names, notes)


def _with_implied(flags: frozenset[str]) -> frozenset[str]:
    return flags.union(*(IMPLIED.get(flag, ()) for flag in flags))


def advise(core: Core, measured: Sequence[Measured] = (), unmeasured: str = "", notes: Sequence[str] = ()) -> Advice:
    """Advice on every precision that there are rules for.

    Args:
        core: what is known of the core.
        measured: what a probe found; only its matrix products decide.
        unmeasured: why there is no probe.
        notes: what else a reader must know, of a file that could not be measured, say.
    """
    products = {one.precision: one for one in measured if one.part == PRODUCTS}
    opinions = tuple(_opinion(name, core, products.get(name)) for name in precisions())
    others = tuple(one for one in measured if one.part != PRODUCTS)
    return Advice(core, opinions, others, unmeasured, (*core.notes, *notes))


def _opinion(precision: str, core: Core, measured: Measured | None) -> Opinion:
    rule, why = _rule(precision, core)
    expected: Word = rule.verdict if rule else "undecided"
    expectation = f"{rule.name}: {rule.reason}" if rule else why
    if measured is None:
        return Opinion(precision, expected, "rule" if rule else "nothing", expectation, rule)
    found = word(measured.speedup)
    seen = f"measured {spelt(measured.speedup)} times as fast as fp32"
    if found == "undecided":
        if rule and expected != "undecided" and _overlaps(measured.speedup, rule):
            text = f"{seen}, too uncertain to say more than the rule: {expectation}"
            return Opinion(precision, expected, "rule", text, rule, measured)
        return Opinion(precision, "undecided", "measured", f"{seen}, too uncertain; {expectation}", rule, measured)
    if expected == "undecided":
        return Opinion(precision, found, "measured", f"{seen}; {expectation}", rule, measured)
    agrees = found == expected
    text = f"{seen}; {expectation}"
    if not agrees:
        text = f"{seen}, against the rule ({expected}): {expectation}"
    elif rule and not _overlaps(measured.speedup, rule):
        text = f"{seen}, outside of what was expected ({spelt_range(rule)}); {expectation}"
    return Opinion(precision, found, "measured", text, rule, measured, agrees)


def _rule(precision: str, core: Core) -> tuple[Rule | None, str]:
    """The rule that speaks for a core, or None and why there is none."""
    doubtful: list[tuple[Rule, list[str]]] = []
    for rule in (one for one in rules() if one.precision == precision):
        present = core.present
        asked = set(rule.needs) | set(rule.lacks)
        absent = (asked - present) if core.whole else core.absent
        fits = rule.fits(core.arch, present, absent)
        if fits and all(one.verdict == rule.verdict for one, _ in doubtful):
            return rule, ""
        if fits is not False:
            doubtful.append((rule, sorted(asked - present - absent)))
    unknown = sorted({flag for _, flags in doubtful for flag in flags})
    if unknown:
        return None, f"it hangs on {', '.join(unknown)}, and nobody has told whether this core has it: measure it"
    return None, f"no rule is for a core of this kind ({core.arch or 'architecture not known'}): measure it"


def word(speedup: Estimate) -> Word:
    """What a measured speed-up says: an interval on one side of ``WORTH``, or undecided."""
    if speedup.low is not None and speedup.low >= WORTH:
        return "pays"
    if speedup.high is not None and speedup.high < WORTH:
        return "does not pay"
    return "undecided"


def _overlaps(speedup: Estimate, rule: Rule) -> bool:
    """Whether a measured interval meets what a rule expects; an end that is not known excludes nothing."""
    low = speedup.low if speedup.low is not None else speedup.value
    high = speedup.high if speedup.high is not None else speedup.value
    return (rule.high is None or low <= rule.high) and (rule.low is None or rule.low <= high)


def spelt(speedup: Estimate) -> str:
    """``1.52 [1.48, 1.57]``, or what is missing of it."""
    if speedup.low is None or speedup.high is None:
        return f"{speedup.value:.2f} (no interval)"
    return f"{speedup.value:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]"


def spelt_range(rule: Rule) -> str:
    """``1.5 to 4``, ``up to 4``, ``1.5 and more``, or nothing."""
    if rule.low is not None and rule.high is not None:
        return f"{rule.low:g} to {rule.high:g}"
    if rule.high is not None:
        return f"up to {rule.high:g}"
    return f"{rule.low:g} and more" if rule.low is not None else ""
