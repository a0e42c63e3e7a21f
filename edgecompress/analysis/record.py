"""``analysis.json``: what was seen of heads and layers, as numbers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgecompress.records import Part, Record, Source


class Head(Part):
    """A head by its original numbers, and what it does, averaged over clips (each weighs the same).

    ``entropy`` is the mean row entropy over log T, ``globalness`` the same in nats; ``verticality``, ``diagonality``,
    ``cumulative_diagonality`` see :func:`attention.measures`. ``padding`` is the share of attention that goes to frames
    without audio (Whisper's context); the others are of the rest. ``survival`` is by order (``l1_layer`` ...) the round
    (1, 2, ...) in which the head goes; one more than the last round for a head that outlives all.
    """

    layer: int
    head: int
    entropy: float
    globalness: float
    verticality: float
    diagonality: float
    cumulative_diagonality: float
    padding: float
    survival: dict[str, int]


class Analysis(Record):
    """Heads in the order of their layers. ``similarity[i][j]`` is the linear CKA of hidden states i and j.

    State 0 is what goes into the first layer, then comes the output of each of ``layers`` (original numbers).
    ``frames`` is how many frames of audio were looked at, ``compared_frames`` how many of them the similarity is over, at
    ``width`` numbers each. ``rounds`` is by order how many rounds it has.
    """

    schema_: Literal["edgecompress.analysis/1"] = Field("edgecompress.analysis/1", alias="schema")
    source: Source
    family: str
    clips: int
    seconds: float
    frames: int
    width: int
    compared_frames: int
    layers: list[int]
    heads: list[Head]
    rounds: dict[str, int]
    similarity: list[list[float]]
    tool: str
