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
from edgecompress.records import Parity, ParityCase, Tolerance

if TYPE_CHECKING:
    from edgecompress.model import Model

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
MANY = 3
CLIPS = 2
CLIP_SAMPLES = 160_000


def check(model: Model, run: Runner, precision: str, runtime: str, clips: Sequence[np.ndarray] | None = None) -> Parity:
    """Compare ``run`` with torch on noise at five lengths, in batches of 1 and 3, and on up to two clips of audio.

    Raises:
        ParityError: some output is further from torch's than its precision allows, or not finite.
    """
    tolerance = tolerance_of(precision)
    with evaluating(model):
        cases = [compare_with_torch(model, run, inputs, tolerance) for inputs in probes(model, clips)]
    return Parity(runtime=runtime, tolerance=tolerance, cases=cases)


def tolerance_of(precision: str, table: Mapping[str, Tolerance] = TOLERANCES) -> Tolerance:
    """What a precision is allowed; one that is not in the table is allowed what int8 is."""
    return table.get(precision, table[COARSEST])


def compare_with_torch(model: Model, run: Runner, inputs: torch.Tensor, tolerance: Tolerance) -> ParityCase:
    """One comparison.

    Raises:
        ParityError: outside the tolerance; the message names output, length and error.
    """
    name = model.anatomy.output_name(model.architecture)
    try:
        said = run({model.anatomy.input_name: inputs.cpu().numpy()})[name]
    except Exception as cause:  # a dimension that was baked in makes some runtimes raise instead of answering wrong
        first = (str(cause).strip() or type(cause).__name__).splitlines()[0][:200]
        raise ParityError(
            f"{name}: the runtime fails on an input of {tuple(inputs.shape)}: {first}",
            hint="the export fixed a dimension that should vary",
        ) from cause
    wanted = torch_answer(model, inputs)
    if said.shape != wanted.shape:
        raise ParityError(
            f"{name}: shape {said.shape} for an input of {tuple(inputs.shape)}, torch says {wanted.shape}",
            hint="the export fixed a dimension that should vary",
        )
    case = ParityCase(batch=inputs.shape[0], length=inputs.shape[-1], output=name, **distances(said, wanted))
    if not (case.relative <= tolerance.relative and case.cosine >= tolerance.cosine):
        unit = "samples" if model.context_positions is None else "mel frames"
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


def torch_answer(model: Model, inputs: torch.Tensor) -> np.ndarray:
    """What the torch module, not the wrapper that was exported, says to ``inputs``.

    Whisper's refuses less than its whole context, so a copy whose context is trimmed to the input answers.
    """
    if model.context_positions is not None and inputs.shape[-1] != 2 * model.context_positions:
        model = model.clone()
        model.keep_context(inputs.shape[-1] // 2)
    inputs = inputs.to(next(model.network.parameters()).device)
    with evaluating(model):
        logits = model.anatomy.output_name(model.architecture) == "logits"
        answer = model.network(inputs).logits if logits else model.encode(inputs)
    return np.asarray(answer.float().cpu().numpy())


def probes(model: Model, clips: Sequence[np.ndarray] | None = None) -> list[torch.Tensor]:
    """The inputs to compare on: noise at five lengths from the least, batches of 3 at the two least, and clips."""
    lengths = probe_lengths(model)
    shapes = [(1, length) for length in lengths] + [(MANY, length) for length in lengths[:2]]
    random = [noise(model, batch, length, seed=length) for batch, length in shapes]
    return random + [model.features(clip[:CLIP_SAMPLES]) for clip in list(clips or ())[:CLIPS]]


def probe_lengths(model: Model) -> list[int]:
    """Five lengths, least first: samples (400 make the first frame), or mel frames up to Whisper's whole context."""
    if model.context_positions is None:
        return list(SAMPLES)
    whole = model.context_positions
    return [2 * max(1, positions) for positions in (1, whole // 5, whole // 3, whole // 2, whole)]
