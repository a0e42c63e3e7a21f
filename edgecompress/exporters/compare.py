"""Do two files say the same? The same inputs into both, each in its own runtime, and their outputs compared.

Inputs are made of the reference's shapes at several sizes, or given, or audio. Outputs are paired by name where the names
are the same, else by their places. A file that takes or gives bytes with a scale is asked and heard in real numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench_remote import tensors
from edgecompress.errors import ExportError, ParityError, RecipeError
from edgecompress.exporters.opened import Opened
from edgecompress.exporters.parity import Signal, apart, distances, outside
from edgecompress.records import ParityCase, Tolerance

Arrays = dict[str, np.ndarray]
Sizes = Mapping[str, Sequence[int]]
OTHER_BATCH = 2


@dataclass(frozen=True)
class Feed:
    """Inputs of the reference by name, what they are, and whether the sizes were asked for."""

    arrays: Arrays
    signal: Signal
    asked: bool = True


@dataclass(frozen=True)
class Pairs:
    """Names of the file's tensors by those of the reference's."""

    inputs: dict[str, str]
    outputs: dict[str, str]


def pairs(file: Opened, reference: Opened) -> Pairs:
    """Which input and output of a file is which of the reference.

    Raises:
        RecipeError: not as many inputs, or shapes that cannot be the same.
    """
    return Pairs(
        _paired(file.inputs, reference.inputs, "inputs", file, reference),
        _paired(file.outputs, reference.outputs, "outputs", file, reference),
    )


def feeds_of(file: Opened, reference: Opened, sizes: Sizes | None = None, clip: np.ndarray | None = None) -> list[Feed]:
    """Inputs to compare on: seeded noise, and the clip where there is one.

    The first has the first of the ``sizes`` of each dimension that may vary; then one after the other is changed: to the
    other sizes that were given, or else to another of ours.

    Raises:
        RecipeError: no dimension has that name, or the clip does not fit.
    """
    described = _both(file, reference)
    given = {name: list(values) for name, values in (sizes or {}).items()}
    try:
        base = {name: values[0] for name, values in given.items()}
        first = _made(reference, described, base)
        found = [Feed(first, "noise")]
        for name in tensors.free(described):
            others = given[name][1:] if name in given else [_another(described, first, name)]
            found += [
                Feed(_made(reference, described, {**base, name: size}), "noise", name in given) for size in others
            ]
        if clip is not None:
            found.insert(0, Feed(tensors.hear(described, base, clip)[0], "speech"))
    except tensors.BadInput as cause:
        raise RecipeError(f"{reference.file.name}: {cause}", hint="sizes are NAME=SIZE, as in --dim batch=1") from cause
    return found


def heard(reference: Opened, sizes: Sizes | None, clip: np.ndarray) -> tuple[Arrays, str]:
    """Inputs with a clip in the one that takes audio, and its name.

    Raises:
        RecipeError: no input, or more than one, takes audio.
    """
    try:
        return tensors.hear(reference.inputs, {name: values[0] for name, values in (sizes or {}).items()}, clip)
    except tensors.BadInput as cause:
        raise RecipeError(f"{reference.file.name}: {cause}", hint="give its inputs as arrays (--inputs)") from cause


def given_feed(reference: Opened, arrays: Mapping[str, np.ndarray]) -> Feed:
    """Arrays that somebody gives, checked against what the reference takes.

    Raises:
        RecipeError: other names or shapes.
    """
    try:
        tensors.check(reference.inputs, dict(arrays))
    except tensors.BadInput as cause:
        raise RecipeError(f"{reference.file.name}: {cause}", hint="name the arrays as the inputs") from cause
    return Feed(dict(arrays), "noise")


def answered(reference: Opened, feeds: Sequence[Feed]) -> list[tuple[Feed, Arrays]]:
    """What the reference says to each; sizes that nobody asked for and that it does not take are left out.

    Raises:
        ExportError: it does not take what was asked for.
        RecipeError: it answers numbers that are not finite: nothing can be compared with them.
    """
    found = []
    for feed in feeds:
        try:
            said = reference.run(feed.arrays)
        except ExportError:
            if feed.asked:
                raise
            continue
        for name, array in said.items():
            if not np.isfinite(np.asarray(array, np.float64)).all():
                raise RecipeError(
                    f"{reference.file.name}: output {name} is not finite on {feed.signal}",
                    hint="give inputs that it is made for (--inputs, --audio)",
                )
        found.append((feed, said))
    return found


def compare(file: Opened, reference: Opened, said: Sequence[tuple[Feed, Arrays]], names: Pairs) -> list[ParityCase]:
    """All outputs of all cases.

    Raises:
        ParityError: the file fails where the reference does not, or answers another shape.
    """
    return [each for feed, wanted in said for each in _one(file, reference, feed, wanted, names)]


def fault(cases: Sequence[ParityCase], tolerance: Tolerance, reference: str) -> ParityError | None:
    """The error that says which case is worst of those outside the tolerance; None where all are inside."""
    beyond = [case for case in cases if outside(case, tolerance)]
    if not beyond:
        return None
    worst = min(beyond, key=lambda case: case.cosine)
    return ParityError(
        f"{worst.output} differs from {reference} at length {worst.length}, batch {worst.batch}: {apart(worst, tolerance)}"
        + (f"; {len(beyond)} of {len(cases)} comparisons are outside" if len(beyond) > 1 else ""),
        hint="do not use this file for the other, or allow more: --precision, --relative, --cosine",
    )


def fed(file: Opened, reference: Opened, arrays: Arrays, names: Pairs) -> Arrays:
    """The reference's inputs as the file takes them: its names, its types, quantised where it takes bytes."""
    kinds = {each["name"]: each["dtype"] for each in file.inputs}
    found = {}
    for name, array in arrays.items():
        ours = names.inputs[name]
        dtype = np.dtype(kinds[ours])
        if name in reference.scales:
            array = real(reference, name, array)
        if array.dtype.kind == "f" and ours in file.scales:
            array = _in_bytes(array, file.scales[ours], dtype)
        found[ours] = np.ascontiguousarray(array.astype(dtype))
    return found


def real(opened: Opened, name: str, array: np.ndarray) -> np.ndarray:
    """An output in real numbers."""
    scale, zero = opened.scales.get(name, (1.0, 0))
    return (np.asarray(array, np.float64) - zero) * scale


def size_of(described: Sequence[Mapping[str, Any]], arrays: Arrays) -> tuple[int, int]:
    """Batch and length of inputs: the first size, and the greatest of the others of a dimension that may vary.

    Where none may vary, the greatest of the others at all.
    """
    first = arrays[described[0]["name"]]
    shape = described[0]["shape"]
    varying = [
        size for size, dim in zip(first.shape[1:], shape[1:], strict=True) if not isinstance(dim, int) or dim < 1
    ]
    return (int(first.shape[0]) if first.ndim else 1), int(max(varying or first.shape[1:] or (1,)))


def _one(file: Opened, reference: Opened, feed: Feed, wanted: Arrays, names: Pairs) -> list[ParityCase]:
    batch, length = size_of(reference.inputs, feed.arrays)
    try:
        said = file.run(fed(file, reference, feed.arrays, names))
    except ExportError as cause:
        raise ParityError(f"{cause.message} ({reference.file.name} takes it)", hint=cause.hint) from cause
    found = []
    for name, theirs in wanted.items():
        ours = names.outputs[name]
        a, b = real(file, ours, said[ours]), real(reference, name, theirs)
        if a.shape != b.shape:
            raise ParityError(
                f"{ours}: shape {list(a.shape)} at length {length}, batch {batch}; {reference.file.name} answers {list(b.shape)}",
                hint="the files are not of one model, or a dimension is fixed in one of them",
            )
        found.append(ParityCase(batch=batch, length=length, output=ours, signal=feed.signal, **distances(a, b)))
    return found


def _in_bytes(array: np.ndarray, scale: tuple[float, int], dtype: np.dtype[Any]) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.clip(np.round(array / scale[0]) + scale[1], limits.min, limits.max).astype(dtype)


def _made(reference: Opened, described: list[dict[str, Any]], sizes: Mapping[str, int]) -> Arrays:
    """Seeded inputs; bytes with a scale are noise of the strength that floats have, as all bytes would saturate a net."""
    arrays = tensors.make(described, dict(sizes))
    random = np.random.default_rng(0)
    for name in arrays.keys() & reference.scales.keys():
        noise = random.standard_normal(arrays[name].shape)
        arrays[name] = _in_bytes(noise, reference.scales[name], arrays[name].dtype)
    return arrays


def _paired(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], what: str, file: Opened, reference: Opened
) -> dict[str, str]:
    mine, others = [each["name"] for each in ours], [each["name"] for each in theirs]
    if set(mine) == set(others):
        return {name: name for name in others}
    fits = len(ours) == len(theirs) and all(
        _may_be_one(a["shape"], b["shape"]) for a, b in zip(ours, theirs, strict=True)
    )
    if not fits:
        raise RecipeError(
            f"{what} differ: {file.file.name} has {_listed(ours)}; {reference.file.name} has {_listed(theirs)}",
            hint="only files with the same inputs and outputs can be compared",
        )
    return dict(zip(others, mine, strict=True))


def _may_be_one(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(
        x == y for x, y in zip(a, b, strict=True) if isinstance(x, int) and isinstance(y, int) and x > 0 and y > 0
    )


def _listed(described: list[dict[str, Any]]) -> str:
    return ", ".join(f"{each['name']} {each['dtype']} {each['shape']}" for each in described)


def _both(file: Opened, reference: Opened) -> list[dict[str, Any]]:
    """The reference's inputs, with the sizes that the file has fixed."""
    names = pairs(file, reference).inputs
    mine = {each["name"]: each["shape"] for each in file.inputs}
    found = []
    for each in reference.inputs:
        shape = [
            ours if isinstance(ours, int) and ours > 0 and not (isinstance(theirs, int) and theirs > 0) else theirs
            for ours, theirs in zip(mine[names[each["name"]]], each["shape"], strict=True)
        ]
        found.append({**each, "shape": shape})
    return found


def _another(described: list[dict[str, Any]], first: Arrays, name: str) -> int:
    """Another size of a dimension: a batch of two, or a length of three fifths."""
    for each in described:
        for axis, dim in enumerate(each["shape"]):
            if name in (dim, f"{each['name']}.{axis}"):
                size = first[each["name"]].shape[axis]
                return OTHER_BATCH if axis == 0 else max(1, size * 3 // 5 + 1)
    return 1
