"""Inputs and the golden check: arrays read, made, fitted to a length, and compared."""

from __future__ import annotations

import math
import os
from typing import Any, Dict

Arrays = Dict[str, Any]


class BadInput(Exception):
    """An input that this model cannot be given."""


def read(folder: str, files: dict[str, str]) -> Arrays:
    """``{tensor: .npy file in folder}`` -> arrays. Pickled arrays are refused by numpy itself."""
    import numpy

    return {name: numpy.load(os.path.join(folder, file), allow_pickle=False) for name, file in files.items()}


def make(inputs: list[dict[str, Any]], dims: dict[str, int]) -> Arrays:
    """Inputs from a model's own shapes: floats from a seeded normal distribution, everything else zeros.

    A dimension that may vary takes its size from ``dims`` by name; else it is 1 where it comes first (the batch), and
    one second of 16 kHz audio (two dimensions) or 100 frames elsewhere.
    """
    import numpy

    names = sorted({dim for tensor in inputs for dim in tensor["shape"] if isinstance(dim, str)})
    unknown = sorted(set(dims) - set(names))
    if unknown:
        raise BadInput(
            "no dimension is called {}; there are: {}".format(", ".join(unknown), ", ".join(names) or "none")
        )
    random = numpy.random.RandomState(0)
    made = {}
    for tensor in inputs:
        shape = [_size(dim, axis, len(tensor["shape"]), dims) for axis, dim in enumerate(tensor["shape"])]
        try:
            dtype = numpy.dtype(tensor["dtype"])
        except TypeError:
            raise BadInput(
                "input {!r} has type {}, which numpy does not know".format(tensor["name"], tensor["dtype"])
            ) from None
        if dtype.kind == "f":
            made[tensor["name"]] = random.standard_normal(shape).astype(dtype)
        else:
            made[tensor["name"]] = numpy.zeros(shape, dtype)
    return made


def _size(dim: Any, axis: int, rank: int, dims: dict[str, int]) -> int:
    if isinstance(dim, int) and dim > 0:
        return dim
    if dim in dims:
        return int(dims[dim])
    if axis == 0:
        return 1
    return 16000 if rank == 2 else 100


def fit(arrays: Arrays, lengths: dict[str, list[list[int]]]) -> Arrays:
    """Tile or crop the named tensors along the given axes to the given lengths."""
    import numpy

    fitted = dict(arrays)
    for name, axes in lengths.items():
        for axis, length in axes:
            array = fitted[name]
            copies = [1] * array.ndim
            copies[axis] = -(-length // array.shape[axis])
            fitted[name] = numpy.ascontiguousarray(numpy.tile(array, copies).take(range(length), axis=axis))
    return fitted


def check(inputs: list[dict[str, Any]], feeds: Arrays) -> None:
    """Refuse missing, unknown and misshapen inputs by name, before the runtime says so in its own words."""
    wanted = {tensor["name"]: tensor for tensor in inputs}
    if set(wanted) != set(feeds):
        raise BadInput(f"the model takes {sorted(wanted)}, given are {sorted(feeds)}")
    for name, array in feeds.items():
        shape = wanted[name]["shape"]
        fits = len(shape) == array.ndim and all(
            not isinstance(dim, int) or dim < 1 or dim == size for dim, size in zip(shape, array.shape)
        )
        if not fits:
            raise BadInput(f"input {name!r} has shape {list(array.shape)}, the model takes {shape}")


def compare(answer: Any, reference: Any, relative_limit: float, cosine_limit: float) -> dict[str, Any]:
    """One output against its reference: max|a-b|, the same over max|reference|, cosine, and whether both limits hold.

    Another shape or a number that is not finite fails; its differences are reported as 1e30 and cosine 0, since JSON
    has no infinity.
    """
    import numpy

    answer, reference = numpy.asarray(answer), numpy.asarray(reference)
    a, b = answer.astype(numpy.float64).ravel(), reference.astype(numpy.float64).ravel()
    if answer.shape != reference.shape or not (numpy.isfinite(a).all() and numpy.isfinite(b).all()):
        return {"max_abs": 1e30, "relative": 1e30, "cosine": 0.0, "passed": False}
    max_abs = float(numpy.abs(a - b).max()) if a.size else 0.0
    scale = float(numpy.abs(b).max()) if b.size else 0.0
    relative = max_abs / scale if scale else (0.0 if max_abs == 0 else 1e30)
    norms = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    cosine = float(a @ b) / norms if norms else (1.0 if max_abs == 0 else 0.0)
    passed = relative <= relative_limit and cosine >= cosine_limit
    return {"max_abs": max_abs, "relative": relative, "cosine": cosine, "passed": passed}
