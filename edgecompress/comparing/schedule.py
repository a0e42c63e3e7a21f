"""In which order variants run, and when the interval is looked at: fixed by the seed before anything is measured."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

LOOKS = (8, 12, 16, 24)  # then half as many again, in whole pairs


def order(seed: int, position: int, variants: int) -> tuple[int, ...]:
    """The order of the variants (by index) in block number ``position``.

    Blocks come in pairs: a random order, then the same backwards (with two variants ABBA or BAAB). What a device gains
    or loses evenly over time then falls on every variant alike.
    """
    pair, backwards = divmod(position, 2)
    drawn = tuple(int(index) for index in np.random.default_rng([seed, pair]).permutation(variants))
    return drawn[::-1] if backwards else drawn


def looks() -> Iterator[int]:
    """After how many blocks the interval is looked at: 8, 12, 16, 24, 36, 54, 80 ... without end."""
    yield from LOOKS
    after = LOOKS[-1]
    while True:
        after += after // 4 * 2
        yield after


def is_look(blocks: int) -> bool:
    """Whether the interval is looked at after so many blocks."""
    return next(look for look in looks() if look >= blocks) == blocks
