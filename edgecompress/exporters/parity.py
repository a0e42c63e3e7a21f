"""Does the exported file say what torch says? Compared in the runtime that will run it, at lengths it was not traced at.

``relative`` is max|a - b| / max|b|, ``cosine`` that of the flattened outputs; both in double precision, b is torch's.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgecompress.errors import ParityError
from edgecompress.exporters.converting import first_line
from edgecompress.exporters.order import Written
from edgecompress.exporters.tracing import evaluating
from edgecompress.model.forms import form_of
from edgecompress.records import Parity, ParityCase, Tolerance

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.forms import Form

Runner = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
Signal = Literal["noise", "speech", "synthetic", "tiled"]

COARSEST = "int8"  # the tolerance of a precision that has none of its own
MANY = 3
CLIPS = 2
CLIP_SAMPLES = 160_000
SCRAP_S = 0.25


@dataclass(frozen=True)
class Case:
    """An input to compare on, and what it is."""

    feeds: dict[str, np.ndarray]
    signal: Signal
    padded: bool = False


@cache
def tolerances() -> dict[str, dict[str, Tolerance]]:
    """Tolerances by precision and by place (``parity`` here, ``golden`` on the device); ``tolerances.toml``."""
    text = files("edgecompress.exporters").joinpath("tolerances.toml").read_text(encoding="utf-8")
    return {
        precision: {place: Tolerance(**values) for place, values in places.items()}
        for precision, places in tomllib.loads(text).items()
    }


def tolerance_of(precision: str, place: Literal["parity", "golden", "noise"] = "parity") -> Tolerance:
    """What a precision is allowed; one that is not in the table is allowed what int8 is.

    ``noise``: on noise, where that is not what parity allows.
    """
    known = tolerances()
    places = known.get(precision, known[COARSEST])
    return places.get(place, places["parity"])


def check(
    model: Model,
    run: Runner,
    precision: str,
    runtime: str,
    clips: Sequence[np.ndarray] | None = None,
    form: Form | None = None,
    written: Written | None = None,
    conditions: Mapping[str, object] | None = None,
) -> Parity:
    """Compare ``run`` with torch: noise at six lengths or more, in batches of 1 and 3, and up to two clips of audio.

    A precision that is calibrated by audio is compared on audio of all these lengths too; on noise, on a clip that had to
    be tiled, and on what is shorter than a quarter of a second, it is allowed more.
    ``written`` tells what the file's dimensions are, where they are not free. ``conditions`` go into the record.

    Raises:
        ParityError: some output is further from torch's than its precision allows, or not finite.
    """
    tolerance, on_noise = tolerance_of(precision), tolerance_of(precision, "noise")
    form = form or form_of(model)
    looser = on_noise != tolerance
    with evaluating(model):
        cases = cases_of(model, form, clips, written)
        if looser and form.per_second is not None:
            cases += _audio_at_lengths(model, form, clips, written)
        compared = [
            one
            for case in cases
            for one in compare_with_torch(model, run, case, on_noise if _unheard(form, case) else tolerance, form)
        ]
    return Parity(
        runtime=runtime,
        tolerance=tolerance,
        cases=compared,
        conditions={
            **(conditions or {}),
            **({"tolerance_on_noise_and_scraps": on_noise.model_dump()} if looser else {}),
        },
    )


def compare_with_torch(
    model: Model, run: Runner, case: Case, tolerance: Tolerance, form: Form | None = None
) -> list[ParityCase]:
    """One input, all outputs.

    Raises:
        ParityError: outside the tolerance; the message names output, length and error.
    """
    form = form or form_of(model)
    first = case.feeds[form.input_name]
    shapes = ", ".join(str(array.shape) for array in case.feeds.values())
    baked = "the export fixed a dimension that should vary"
    try:
        said = form.cut(run(case.feeds), case.feeds)
    except Exception as cause:  # a dimension that was baked in makes some runtimes raise instead of answering wrong
        raise ParityError(
            f"{form.outputs[0].name}: the runtime fails on an input of {shapes}: {first_line(cause, 200)}", hint=baked
        ) from cause
    found = []
    for name, wanted in form.answer(model, case.feeds).items():
        if said[name].shape != wanted.shape:
            raise ParityError(
                f"{name}: shape {said[name].shape} for an input of {shapes}, torch says {wanted.shape}", hint=baked
            )
        length = first.shape[form.time_axis]
        compared = ParityCase(
            batch=first.shape[0], length=length, output=name, signal=case.signal, padded=case.padded,
            **distances(said[name], wanted),
        )  # fmt: skip
        refuse_outside(compared, tolerance, form.unit)
        found.append(compared)
    return found


def refuse_outside(case: ParityCase, tolerance: Tolerance, unit: str) -> None:
    """Raise a ParityError where a comparison is outside the tolerance."""
    if not outside(case, tolerance):
        return
    raise ParityError(
        f"{case.output} differs from torch at {case.length} {unit.replace('_', ' ')}, batch {case.batch}: "
        f"{apart(case, tolerance)}",
        hint="export at fp32 to see whether the precision or the graph is at fault; --task fidelity --tolerated-drop 0.02 "
        "--calibration DIR leaves in fp32 what costs too much",
    )


def outside(case: ParityCase, tolerance: Tolerance) -> bool:
    """Whether a comparison is further from the reference than is allowed."""
    return not (case.relative <= tolerance.relative and case.cosine >= tolerance.cosine)


def apart(case: ParityCase, tolerance: Tolerance) -> str:
    """How far a comparison is from the reference, and what is allowed, in words."""
    return (
        f"greatest difference {case.max_abs:.3g} ({case.relative:.3g} of the greatest value), cosine {case.cosine:.5f}; "
        f"allowed are {tolerance.relative:g} and {tolerance.cosine:g}"
    )


def distances(said: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """``max_abs``, ``relative`` and ``cosine`` between two arrays of one shape; an answer with NaN is as far as can be."""
    a, b = said.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    if not np.isfinite(a).all():
        return {"max_abs": float(np.finfo(np.float64).max), "relative": float(np.finfo(np.float64).max), "cosine": -1.0}
    max_abs = float(np.abs(a - b).max(initial=0.0))
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    greatest = float(np.abs(b).max(initial=0.0))
    return {
        "max_abs": max_abs,
        "relative": max_abs / greatest if greatest else max_abs,
        "cosine": float(a @ b) / norms if norms else float(max_abs == 0),
    }


def cases_of(
    model: Model, form: Form, clips: Sequence[np.ndarray] | None = None, written: Written | None = None
) -> list[Case]:
    """The inputs to compare on: noise at all lengths, batches of 3 at the two least, and clips where audio goes in."""
    lengths: list[int] = lengths_of(model, form, written)
    batches: tuple[int, ...] = (1, MANY)
    if written is not None and isinstance(written.inputs[0].shape[0], int):
        batches = (written.inputs[0].shape[0],)
    shapes = [(batches[0], length) for length in lengths] + [
        (many, length) for many in batches[1:] for length in lengths[:2]
    ]
    padded = len(form.inputs) > 1
    if padded and len(batches) > 1:
        shapes.append((MANY, lengths[-1]))
    found = [
        Case(form.noise(model, batch, length, seed=length), "noise", padded and batch > 1) for batch, length in shapes
    ]
    return found + _audio(model, form, clips, written)


def lengths_of(model: Model, form: Form, written: Written | None = None) -> list[int]:
    """The lengths to compare at: those of the form; of a file of fixed lengths these, of one that pads their edges."""
    usual = form.lengths(model)
    if written is None:
        return usual
    if exact := _exact(form, written):
        return exact
    if not written.lengths:
        return usual
    edges = {near for edge in written.lengths for near in (edge - 1, edge, edge + 1)}
    wanted = {*usual, *edges}
    return sorted(length for length in wanted if usual[0] <= length <= written.lengths[-1])


def _exact(form: Form, written: Written) -> list[int]:
    """The lengths of a file that takes these and no others; empty where time is free, or the runner pads."""
    size = written.inputs[0].shape[form.time_axis]
    return (list(written.lengths) or [size]) if isinstance(size, int) else []


def _audio(model: Model, form: Form, clips: Sequence[np.ndarray] | None, written: Written | None) -> list[Case]:
    """Up to two clips, or a synthetic one where there are none."""
    from edgecompress.exporters.golden import synthetic_clip

    if form.per_second is None:
        return []
    given: list[tuple[np.ndarray, Signal]] = [(clip[:CLIP_SAMPLES], "speech") for clip in list(clips or ())[:CLIPS]]
    return [
        Case(fitted(model, form, clip, written), signal) for clip, signal in given or [(synthetic_clip(), "synthetic")]
    ]


def _unheard(form: Form, case: Case) -> bool:
    """Whether calibration audio has nothing like it: noise, tiled clips, and scraps of sound."""
    length = case.feeds[form.input_name].shape[form.time_axis]
    return case.signal in ("noise", "tiled") or (form.per_second is not None and length < SCRAP_S * form.per_second)


def _audio_at_lengths(
    model: Model, form: Form, clips: Sequence[np.ndarray] | None, written: Written | None
) -> list[Case]:
    """The longest clip cut to every length, or tiled, which is no sound that anybody makes; batch 1."""
    axis = form.time_axis
    longest = max(_audio(model, form, clips, None), key=lambda case: case.feeds[form.input_name].shape[axis])
    given = longest.feeds[form.input_name].shape[axis]
    return [
        Case(form.resized(longest.feeds, length), longest.signal if length <= given else "tiled")
        for length in lengths_of(model, form, written)
    ]


def fitted(model: Model, form: Form, clip: np.ndarray, written: Written | None = None) -> dict[str, np.ndarray]:
    """A clip as a file takes it that takes only so much: tiled or cut to its one length, or cut to its greatest."""
    feeds = form.feeds(model, clip)
    return feeds if written is None else within(form, feeds, written)


def within(form: Form, feeds: dict[str, np.ndarray], written: Written) -> dict[str, np.ndarray]:
    """Inputs of any length as a file takes them: tiled or cut to the next of its lengths, or cut to its greatest."""
    given, known = feeds[form.input_name].shape[form.time_axis], _exact(form, written)
    if known:
        length = next((each for each in known if each >= given), known[-1])
    else:
        length = min([given, *written.lengths[-1:]])
    return feeds if length == given else form.resized(feeds, length)
