"""Level 0: what a profile alone lets expect, as a range.

Time is at least that of the arithmetic at the rate that matrix products reach, and at least that of the bytes that must
be read: t = sum of max(MAC / (e P), bytes / BW) over matrix products (with the weights), convolutions, and attention
(with the activations), plus something for every operator (Williams, Waterman and Patterson, 2009). Both ends of the
range are computed from named assumptions, which are told with their sources; a number that the profile lacks is told
as lacking, and then there is no range.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgecompress.devices.profile import Cluster, Number, Profile
from edgecompress.predicting import Assumption
from edgecompress.predicting.features import Features

# A profile's efficiency is that of one large product of doubles over all cores (HPL). Small products reach less, a
# runtime's own kernels in single precision more: measured rooflines are expected within 30 to 50 % of a prediction.
EFFICIENCY_SPREAD = 1.5
MOST_EFFICIENT = 0.95
# An ONNX Runtime call of one 64x64 product takes 5 us on a 2020s x86 core, all included; a small in-order core is some
# ten times slower at such work. Nothing is counted at the fast end: what is fused costs nothing.
OPERATOR_S = (0.0, 50e-6)
OPERATOR_SOURCE = "assumed: fused operators cost nothing; 5 us seen on x86 (onnxruntime 1.31, 1x64x64 product), ten times that on a small core"
# Precisions whose products are computed in integers; of the others a profile's fp32 peak is used, which fp16 may exceed.
INTEGER = ("int8", "int8-static", "int8-naive", "int8-static-naive")


@dataclass(frozen=True)
class Roofline:
    """Seconds at both ends, or None where ``missing`` names what the profile does not have."""

    low: float | None
    high: float | None
    assumptions: tuple[Assumption, ...]
    missing: tuple[str, ...] = ()


def roofline(profile: Profile, features: Features, precision: str, threads: int) -> Roofline:
    """The range of one inference on a board by ``threads`` of its fastest cores."""
    peak, name = (
        (profile.peak.int8_gmacs_per_s, "peak.int8_gmacs_per_s")
        if precision in INTEGER
        else (profile.peak.fp32_gmacs_per_s, "peak.fp32_gmacs_per_s")
    )
    widths = [one for one in _bandwidths(profile) if one is not None]
    efficiency, cores = profile.peak.gemm_efficiency, _fastest(profile)
    needed = {name: peak, "peak.gemm_efficiency": efficiency, "memory (any bandwidth)": widths, "cpu.cluster": cores}
    missing = tuple(key for key, value in needed.items() if not value)
    if peak is None or efficiency is None or cores is None or not widths:
        return Roofline(None, None, (), missing)
    used = min(threads, len(cores.ids))
    share = used / len(cores.ids)
    efficient = Assumption(
        name="share of the peak that products reach",
        low=efficiency.value / EFFICIENCY_SPREAD,
        high=min(MOST_EFFICIENT, efficiency.value * EFFICIENCY_SPREAD),
        unit="",
        source=f"{efficiency.value:g} ({efficiency.source}), divided and multiplied by {EFFICIENCY_SPREAD:g}",
    )
    narrow, wide = min(widths, key=_value), max(widths, key=_value)
    assumptions = (
        Assumption(
            name=f"peak of {used} of {len(cores.ids)} {cores.core} cores, {'int8' if precision in INTEGER else 'fp32'}",
            low=peak.value * share, high=peak.value * share, unit="GMAC/s", source=peak.source,
        ),
        efficient,
        Assumption(
            name="memory bandwidth", low=narrow.value, high=wide.value, unit="GB/s",
            source="; ".join(dict.fromkeys((narrow.source, wide.source))),
        ),
        Assumption(
            name="for each operator", low=OPERATOR_S[0] * 1e6, high=OPERATOR_S[1] * 1e6, unit="us",
            source=OPERATOR_SOURCE,
        ),
    )  # fmt: skip
    rate = peak.value * share * 1e9
    low = seconds(features, rate * efficient.high, wide.value * 1e9, OPERATOR_S[0])
    high = seconds(features, rate * efficient.low, narrow.value * 1e9, OPERATOR_S[1])
    return Roofline(low, high, assumptions)


def seconds(features: Features, macs_per_s: float, bytes_per_s: float, operator_s: float) -> float:
    """The roofline's sum at given rates."""
    products = max(features.macs_gemm / macs_per_s, features.bytes_weights / bytes_per_s)
    attention = max(features.macs_attention / macs_per_s, features.bytes_activations / bytes_per_s)
    return products + features.macs_conv / macs_per_s + attention + features.operators * operator_s


def _value(number: Number) -> float:
    return number.value


def _bandwidths(profile: Profile) -> tuple[Number | None, ...]:
    """What was measured; what the board is specified for only where nothing was."""
    measured = (profile.memory.memcpy_gb_per_s, profile.memory.read_gb_per_s)
    return measured if any(measured) else (profile.memory.specified_gb_per_s,)


def _fastest(profile: Profile) -> Cluster | None:
    """The cores that a profile's peak speaks of."""
    return max((one for one in profile.cpu.cluster if one.ids), key=lambda one: one.mhz_max.value, default=None)
