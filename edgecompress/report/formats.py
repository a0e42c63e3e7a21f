"""Numbers as people read them, and text from disk made harmless for Markdown and CSV."""

from __future__ import annotations

import math
import re

from edgecompress.stats import Estimate

NOTHING = "–"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


def significant(value: float | None, digits: int = 3) -> str:
    """A number at so many significant digits, never in exponents between 0.001 and a million."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def fixed(value: float | None, digits: int) -> str:
    """A number with so many digits behind the point; ``−0.000`` is ``0.000``; minus is a minus."""
    if value is None:
        return NOTHING
    text = f"{value:.{digits}f}"
    return (text.lstrip("-") if float(text) == 0 else text).replace("-", "−")


def milliseconds(value: float, like: float | None = None) -> str:
    """Seconds as milliseconds, with the decimals that ``like`` (else the value itself) asks for."""
    size = abs(like if like is not None else value) * 1e3
    return f"{value * 1e3:.{2 if size < 10 else 1 if size < 1000 else 0}f}"


def score_digits(value: float) -> int:
    """Decimals of a score: 3, more for what lies close to 0 or 1."""
    from_edge = min(abs(value), abs(1 - value))
    return 3 if from_edge >= 0.005 or from_edge == 0 else 5


def score(value: float, like: float | None = None) -> str:
    """A score; ``like`` sets the decimals."""
    return fixed(value, score_digits(value if like is None else like))


def bracket(low: str, high: str) -> str:
    """An interval."""
    return f"[{low}, {high}]"


def latency_interval(estimate: Estimate) -> str:
    """``[40.8, 41.9]`` in milliseconds, or nothing."""
    if estimate.low is None or estimate.high is None:
        return ""
    return bracket(milliseconds(estimate.low, estimate.value), milliseconds(estimate.high, estimate.value))


def interval(estimate: Estimate, digits: int) -> str:
    """``[0.70, 0.85]``, or nothing."""
    if estimate.low is None or estimate.high is None:
        return ""
    return bracket(fixed(estimate.low, digits), fixed(estimate.high, digits))


def with_interval(estimate: Estimate, digits: int, unit: str = "") -> str:
    """``1.43× [1.40, 1.46]``."""
    return f"{fixed(estimate.value, digits)}{unit} {interval(estimate, digits)}".strip()


def clean(text: str) -> str:
    """Text without control characters, line breaks and direction overrides."""
    return _CONTROL.sub(" ", text).strip()


def markdown(text: str) -> str:
    """Text that Markdown shows as it is: no cell ends, links, emphasis, code or HTML."""
    harmless = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~!])", r"\\\1", harmless)


def csv_text(text: str) -> str:
    """Text that no spreadsheet takes for a formula (=, +, -, @ at its start get an apostrophe)."""
    cleaned = clean(text)
    return f"'{cleaned}" if cleaned.startswith(("=", "+", "-", "@")) else cleaned
