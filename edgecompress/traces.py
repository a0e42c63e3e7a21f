"""Raw rows over time that a record keeps: what the device did meanwhile, and what a meter of energy told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edgecompress.schema import Part

MeterClass = Literal["cpu_counter", "board_rail", "pmic_sum"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


class Telemetry(Part):
    """Rows that a process beside the timed one took, ``hz`` a second: a value for each of ``columns``, None where it
    could not be read. Ticks go by ``tick_hz`` a second.
    """

    hz: Finite
    tick_hz: Finite
    columns: list[str] = Field(max_length=300)
    rows: list[list[Finite | None]] = Field(max_length=10_000)


class Trace(Part):
    """What a meter told: ``values[i][j]`` is rail ``rails[j]`` at ``ns[i]``, in joules since some start or in watts.

    ``total`` are the rails that add up to what the meter measures; ``wraps`` the joules at which a counter starts again.
    """

    meter: str
    meter_class: MeterClass
    unit: Literal["J", "W"]
    total: list[str] = Field(max_length=64)
    wraps: dict[str, Amount] = Field(default_factory=dict)
    rails: list[str] = Field(max_length=64)
    ns: list[int] = Field(max_length=100_000)
    values: list[list[Amount]] = Field(max_length=100_000)
