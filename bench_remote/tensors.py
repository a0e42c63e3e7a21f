"""Inputs and the golden check: arrays read, made, fitted to a length, and compared."""

from __future__ import annotations

import math
import os
from typing import Any, Dict

Arrays = Dict[str, Any]

LEAST_SAMPLES = 160


class BadInput(Exception):
    """An input that this model cannot be given."""


def read(folder: str, files: dict[str, str]) -> Arrays:
    """``{tensor: .npy file in folder}`` -> arrays. Pickled arrays are refused by numpy itself."""
    import numpy

    return {name: numpy.load(os.path.join(folder, file), allow_pickle=False) for name, file in files.items()}


def make(inputs: list[dict[str, Any]], dims: dict[str, int]) -> Arrays:
    """Inputs from a model's own shapes: floats from a seeded normal distribution, bytes even, everything else zeros.

    Bytes are quantised values and may be anything; wider integers are numbers of words, of which 0 is there always.
    A dimension that may vary takes its size from ``dims`` by name (``input.axis`` where it has none); else it is 1 where
    it comes first (the batch), and one second of 16 kHz audio (two dimensions) or 100 frames elsewhere.
    """
    import numpy

    names = free(inputs)
    unknown = sorted(set(dims) - set(names))
    if unknown:
        raise BadInput(
            "no dimension is called {}; there are: {}".format(", ".join(unknown), ", ".join(names) or "none")
        )
    random = numpy.random.RandomState(0)
    made = {}
    for tensor in inputs:
        shape = [_size(tensor, axis, dims) for axis in range(len(tensor["shape"]))]
        try:
            dtype = numpy.dtype(tensor["dtype"])
        except TypeError:
            raise BadInput(
                "input {!r} has type {}, which numpy does not know".format(tensor["name"], tensor["dtype"])
            ) from None
        if dtype.kind == "f":
            made[tensor["name"]] = random.standard_normal(shape).astype(dtype)
        elif dtype.kind in "iu" and dtype.itemsize == 1:
            limits = numpy.iinfo(dtype)
            made[tensor["name"]] = random.randint(limits.min, limits.max + 1, shape).astype(dtype)
        else:
            made[tensor["name"]] = numpy.zeros(shape, dtype)
    return made


def free(inputs: list[dict[str, Any]]) -> list[str]:
    """Names of the dimensions that may vary, sorted."""
    return sorted({name for tensor in inputs for axis in range(len(tensor["shape"])) for name in _free(tensor, axis)})


def _free(tensor: dict[str, Any], axis: int) -> list[str]:
    dim = tensor["shape"][axis]
    if isinstance(dim, int) and dim > 0:
        return []
    return [dim if isinstance(dim, str) and dim else "{}.{}".format(tensor["name"], axis)]


def _size(tensor: dict[str, Any], axis: int, dims: dict[str, int]) -> int:
    named = _free(tensor, axis)
    if not named:
        return int(tensor["shape"][axis])
    if named[0] in dims:
        return int(dims[named[0]])
    if axis == 0:
        return 1
    return 16000 if len(tensor["shape"]) == 2 else 100


def hear(inputs: list[dict[str, Any]], dims: dict[str, int], samples: Any) -> tuple[Arrays, str]:
    """Inputs with mono audio (n,) in the one that takes it, tiled or cut where its length is fixed; and that one's name.

    It takes float32 of shape (n,), (1, n) or (1, 1, n). Where several do, it is the one of free length, else the longest.
    Other floats are zeros: a net's memory of what it heard before.
    """
    import numpy

    made = make(inputs, dims)
    takers = [tensor for tensor in inputs if _takes_audio(tensor, made[tensor["name"]])]
    open_ended = [tensor for tensor in takers if _free(tensor, len(tensor["shape"]) - 1)]
    lengths = [made[tensor["name"]].shape[-1] for tensor in takers]
    if not open_ended and len(takers) > 1 and lengths.count(max(lengths)) == 1:
        open_ended = [takers[lengths.index(max(lengths))]]
    chosen = open_ended or takers
    if len(chosen) != 1:
        listed = ", ".join("{} {} {}".format(tensor["name"], tensor["dtype"], tensor["shape"]) for tensor in inputs)
        word = "several inputs take" if chosen else "no input takes"
        raise BadInput(f"{word} audio, which is float32 of (n,), (1, n) or (1, 1, n): {listed}")
    name, axis = chosen[0]["name"], len(chosen[0]["shape"]) - 1
    named = _free(chosen[0], axis)
    length = len(samples) if named and named[0] not in dims else made[name].shape[-1]
    audio = numpy.asarray(samples, numpy.float32)[numpy.arange(length) % len(samples)]
    for other, array in made.items():
        if array.dtype.kind == "f":
            made[other] = numpy.zeros_like(array)
    made[name] = audio.reshape([1] * axis + [length])
    return made, name


def _takes_audio(tensor: dict[str, Any], made: Any) -> bool:
    """A last dimension that is fixed below 10 ms is no audio: a row of features, or a net's memory."""
    if str(tensor["dtype"]) != "float32" or not 1 <= made.ndim <= 3 or any(size != 1 for size in made.shape[:-1]):
        return False
    return bool(_free(tensor, made.ndim - 1)) or made.shape[-1] >= LEAST_SAMPLES


def fit(arrays: Arrays, lengths: dict[str, list[list[int]]], filled: dict[str, int]) -> Arrays:
    """Tile or crop the named tensors along the given axes to the given lengths; those in ``filled`` say one number."""
    import numpy

    fitted = dict(arrays)
    for name, axes in lengths.items():
        for axis, length in axes:
            array = fitted[name]
            copies = [1] * array.ndim
            copies[axis] = -(-length // array.shape[axis])
            fitted[name] = numpy.ascontiguousarray(numpy.tile(array, copies).take(range(length), axis=axis))
    for name, number in filled.items():
        fitted[name] = numpy.full_like(fitted[name], number)
    return fitted


def batched(inputs: list[dict[str, Any]], feeds: Arrays, batch: int) -> Arrays:
    """The arrays repeated along their first axis until there are ``batch`` of them, where the file leaves that free."""
    import numpy

    wanted = {tensor["name"]: tensor for tensor in inputs}
    made = {}
    for name, array in feeds.items():
        size = array.shape[0] if array.ndim else 0
        if size != batch:
            if not size or name not in wanted or not _free(wanted[name], 0):
                raise BadInput(f"input {name!r} takes a batch of {size or 'no size'} only, asked are {batch}")
            array = numpy.ascontiguousarray(numpy.resize(array, (batch, *array.shape[1:])))
        made[name] = array
    return made


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
