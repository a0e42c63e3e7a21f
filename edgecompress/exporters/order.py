"""What an exporter is asked to write, and what it says it wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompress.errors import EdgeCompressError, ExportError
from edgecompress.records import Tensor

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.forms import Form

CALIBRATION_CLIPS = 64  # more do not move the ranges of activations
CALIBRATION_SECONDS = 10.0


@dataclass(frozen=True)
class Options:
    """What may be asked of an export besides format and precision.

    ``seconds`` fixes the lengths that the file can take (none: free, or what the format takes for usual). ``padded``
    adds a lengths input, so that padding does not change the answer. ``float_nodes`` are left in fp32 by quantisation;
    their names are those of ``Exporter.quantizable``. ``for_runtime`` keeps the file to what an older runtime can read.
    """

    seconds: tuple[float, ...] = ()
    padded: bool = False
    float_nodes: tuple[str, ...] = ()
    for_runtime: str | None = None


@dataclass(frozen=True)
class Order:
    """One file to write: the model (in eval mode, without gradients), how it is fed, at which precision, where.

    ``metadata`` goes into the file where the format can hold it. ``full`` is the fp32 file of the same weights, form and
    options in this format, where one has been made already; its metadata is of another artifact.
    """

    model: Model
    form: Form
    precision: str
    folder: Path
    metadata: Mapping[str, str] = field(default_factory=dict)
    full: Path | None = None
    options: Options = Options()
    clips: Sequence[np.ndarray] = ()
    feeds: Sequence[Mapping[str, np.ndarray]] = ()

    def lengths(self) -> list[int]:
        """The fixed lengths asked for, in units of the form's time axis, the least first; empty where they stay free.

        Raises:
            ExportError: a length below the least that the model can take, above its context, or of no audio.
        """
        return fixed_lengths(self.model, self.form, self.options.seconds)

    def calibration(self) -> list[dict[str, np.ndarray]]:
        """Inputs of batch 1 that show what activations are like.

        Raises:
            ExportError: there are none, or they are silent, too short or not finite.
        """
        given = [dict(feeds) for feeds in self.feeds]
        wanted = {port.name for port in self.form.inputs}
        for feeds in given:
            if set(feeds) != wanted:
                raise ExportError(
                    f"{self.precision}: calibration has {sorted(feeds)}, the model takes {sorted(wanted)}",
                    hint="name the arrays as the inputs",
                )
        for number, clip in enumerate(self.clips[:CALIBRATION_CLIPS], 1):
            if not np.isfinite(clip).all() or not np.any(clip):
                what = "is silent" if np.isfinite(clip).all() else "has numbers that are not finite"
                raise ExportError(
                    f"{self.precision}: calibration clip {number} {what}", hint="calibrate with recordings of speech"
                )
            try:
                given.append(self.form.feeds(self.model, clip[: round(CALIBRATION_SECONDS * 16000)]))
            except EdgeCompressError as cause:
                raise ExportError(f"{self.precision}: calibration clip {number}: {cause}", hint=cause.hint) from cause
        if not given:
            raise ExportError(
                f"{self.precision} needs calibration audio, and there is none",
                hint="give recordings: --calibration DIR, or calibration = 20 under [audio]",
            )
        return given


@dataclass(frozen=True)
class Written:
    """What an exporter wrote into the folder it was given; names are relative to it.

    ``lengths`` are the fixed lengths of the first input where the file has some. Its runner pads to them where the input's
    time has a name in ``inputs``; else they are taken exactly.
    ``lineage`` is whatever the format adds to the record: the operator set, versions of the tools.
    """

    model_file: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    quantized_nodes: int | None = None
    lengths: tuple[int, ...] = ()
    lineage: dict[str, Any] = field(default_factory=dict)


def fixed_lengths(model: Model, form: Form, seconds: Sequence[float]) -> list[int]:
    """Seconds as lengths of the form's time axis; see :meth:`Order.lengths`."""
    if not seconds:
        return []
    if form.per_second is None:
        raise ExportError(f"{model.family} takes {form.unit}: it has no length in seconds", hint="leave seconds out")
    lengths = sorted({round(each * form.per_second) for each in seconds})
    least = form.lengths(model)[0]
    if lengths[0] < least:
        raise ExportError(
            f"{min(seconds):g} s are {lengths[0]} {form.unit.replace('_', ' ')}; the model takes {least} at least",
            hint=f"the least is {least / form.per_second:g} s",
        )
    whole = model.max_seconds
    if whole is not None and max(seconds) > whole:
        raise ExportError(
            f"the model sees {whole:g} s at most, asked are {max(seconds):g} s", hint="choose shorter lengths"
        )
    return lengths
