"""Comparing variants on one device so that the machine's own restlessness is not taken for a difference.

A *block* runs every variant once, one session each, between canaries (``blocks``); blocks come in mirrored pairs
(``schedule``); a block in which the machine moved is void: kept, shown, run again. Blocks are added until the interval
is narrow enough or the budget ends (``loop``), never until a difference is significant. What the samples support is
``estimate``. ``campaign`` does it on a device and keeps every session; ``history`` looks at measurements of many days,
and ``conditions`` says what may be held against what.
"""

from __future__ import annotations
