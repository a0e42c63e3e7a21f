"""Does the exported file say what torch says? Compared in the runtime that will run it, at lengths it was not traced at.

``relative`` is max|a - b| / max|b|, ``cosine`` that of the flattened outputs; both in double precision, b is torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgecompress.errors import ParityError
from edgecompress.exporters.tracing import evaluating, noise
from edgecompress.model.forms import form_of
from edgecompress.records import Parity, ParityCase, Tolerance

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.forms import Form

Runner = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]

# fp32: seen are 1e-6 to 8e-6; another order of sums on another CPU stays far inside.
# int8: the cosine decides. Seen are .996 to .999 (HuBERT base, random), .997 (whisper-tiny.en, speech; .988 on two mel
# frames), from .9988 (tiny, random); with one layer left out they are .91 to .93 and .58. The greatest
# difference only catches what explodes: in a trained Whisper one frame of 1,500 may flip between two large values
# (4.5 and -9 in two of six clips, at any int8 setting), 1.1 of the greatest value, cosine still .997.
TOLERANCES = {
    "fp32": Tolerance(relative=1e-3, cosine=0.9999),
    "fp16": Tolerance(relative=2e-2, cosine=0.999),
    "int8": Tolerance(relative=3.0, cosine=0.95),
}
# On the device the integer kernels differ with the instruction set, and rounding at a boundary moves a whole step.
GOLDEN_TOLERANCES = {
    "fp32": Tolerance(relative=1e-3, cosine=0.9999),
    "fp16": Tolerance(relative=2e-2, cosine=0.999),
    "int8": Tolerance(relative=3.0, cosine=0.9),
}
COARSEST = "int8"  # the tolerance of a precision that is not in these tables
SAMPLES = (400, 719, 5000, 16000, 37777)
FRAMES = (1, 2, 15, 49, 117)
MANY = 3
CLIPS = 2
CLIP_SAMPLES = 160_000


def check(
    model: Model,
    run: Runner,
    precision: str,
    runtime: str,
    clips: Sequence[np.ndarray] | None = None,
    form: Form | None = None,
) -> Parity:
    """Compare ``run`` with torch on noise at five lengths, in batches of 1 and 3, and on up to two clips of audio.

    Raises:
        ParityError: some output is further from torch's than its precision allows, or not finite.
    """
    tolerance = tolerance_of(precision)
    form = form or form_of(model)
    with evaluating(model):
        cases = [compare_with_torch(model, run, inputs, tolerance, form) for inputs in probes(model, clips, form)]
    return Parity(runtime=runtime, tolerance=tolerance, cases=cases)


def tolerance_of(precision: str, table: Mapping[str, Tolerance] = TOLERANCES) -> Tolerance:
    """What a precision is allowed; one that is not in the table is allowed what int8 is."""
    return table.get(precision, table[COARSEST])


def compare_with_torch(
    model: Model, run: Runner, inputs: torch.Tensor, tolerance: Tolerance, form: Form | None = None
) -> ParityCase:
    """One comparison.

    Raises:
        ParityError: outside the tolerance; the message names output, length and error.
    """
    form = form or form_of(model)
    name = model.anatomy.output_name(model.architecture)
    try:
        said = run({form.input_name: inputs.cpu().numpy()})[name]
    except Exception as cause:  # a dimension that was baked in makes some runtimes raise instead of answering wrong
        first = (str(cause).strip() or type(cause).__name__).splitlines()[0][:200]
        raise ParityError(
            f"{name}: the runtime fails on an input of {tuple(inputs.shape)}: {first}",
            hint="the export fixed a dimension that should vary",
        ) from cause
    wanted = torch_answer(model, inputs, form)
    if said.shape != wanted.shape:
        raise ParityError(
            f"{name}: shape {said.shape} for an input of {tuple(inputs.shape)}, torch says {wanted.shape}",
            hint="the export fixed a dimension that should vary",
        )
    case = ParityCase(
        batch=inputs.shape[0], length=inputs.shape[form.time_axis], output=name, **distances(said, wanted)
    )
    if not (case.relative <= tolerance.relative and case.cosine >= tolerance.cosine):
        unit = form.unit.replace("_", " ")
        raise ParityError(
            f"{name} differs from torch at {case.length} {unit}, batch {case.batch}: greatest difference "
            f"{case.max_abs:.3g} ({case.relative:.3g} of the greatest value), cosine {case.cosine:.5f}; "
            f"allowed are {tolerance.relative:g} and {tolerance.cosine:g}",
            hint="do not use this file; export at fp32 to see whether the precision or the graph is at fault",
        )
    return case


def distances(said: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """``max_abs``, ``relative`` and ``cosine`` between two arrays of one shape; an answer with NaN is as far as can be."""
    a, b = said.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    if not np.isfinite(a).all():
        return {"max_abs": float(np.finfo(np.float64).max), "relative": float(np.finfo(np.float64).max), "cosine": -1.0}
    max_abs = float(np.abs(a - b).max())
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    greatest = float(np.abs(b).max())
    return {
        "max_abs": max_abs,
        "relative": max_abs / greatest if greatest else max_abs,
        "cosine": float(a @ b) / norms if norms else float(max_abs == 0),
    }


def torch_answer(model: Model, inputs: torch.Tensor, form: Form | None = None) -> np.ndarray:
    """What the torch module, not the wrapper that was exported, says to ``inputs``.

    Where the file makes log-mel frames of samples, here the host's library makes them. Whisper's refuses less than its
    whole context, so a copy whose context is trimmed to the input answers.
    """
    if model.context_positions is not None and inputs.shape[-1] != 2 * model.context_positions:
        model = model.clone()
        model.keep_context(inputs.shape[-1] // 2)
    if form is not None and form.log_mel:
        inputs = torch.cat([model.features(row.numpy()) for row in inputs.cpu()])
    inputs = inputs.to(model.device)
    with evaluating(model):
        logits = model.anatomy.output_name(model.architecture) == "logits"
        answer = model.network(inputs).logits if logits else model.encode(inputs)
    return np.asarray(answer.float().cpu().numpy())


def probes(model: Model, clips: Sequence[np.ndarray] | None = None, form: Form | None = None) -> list[torch.Tensor]:
    """The inputs to compare on: noise at five lengths from the least, batches of 3 at the two least, and clips."""
    form = form or form_of(model)
    lengths = probe_lengths(model, form)
    shapes = [(1, length) for length in lengths] + [(MANY, length) for length in lengths[:2]]
    random = [noise(model, form, batch, length, seed=length) for batch, length in shapes]
    return random + [model.export_input(clip[:CLIP_SAMPLES], form.takes) for clip in list(clips or ())[:CLIPS]]


def probe_lengths(model: Model, form: Form | None = None) -> list[int]:
    """Five lengths, least first: samples (400 make the first frame), or mel frames, up to Whisper's whole context."""
    if (form or form_of(model)).unit == "samples":
        return list(SAMPLES)
    if model.context_positions is None:
        return list(FRAMES)
    whole = model.context_positions
    return [2 * max(1, positions) for positions in (1, whole // 5, whole // 3, whole // 2, whole)]
