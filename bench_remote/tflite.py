"""TFLite models by ai-edge-litert, or by tflite-runtime where a device has only that. Contract: ``bench_remote.runtimes``.

A file may hold one network at several fixed lengths, its *buckets*: one signature each, which share the weights. The
number at the end of a signature's name is its length (``samples_16000``), and tells which axis is time. Where the
signatures take ``lengths`` (batch,), any length up to the largest will do: the input is padded with zeros to the
smallest bucket that holds it, and outputs of three axes or more are cut along the second to the most that the output
``frames`` (batch,) says. ``lengths`` says how much of each row is audio; all of it, where it is left out. Without such
an input the length must be that of a bucket. Any other file is fed as it is.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from typing import Any, Dict, List

from bench_remote.tensors import BadInput

Feeds = Dict[str, Any]
Described = List[Dict[str, Any]]

LENGTHS, FRAMES = "lengths", "frames"
UNNAMED = "model"  # the one signature of a file that has none


def tflite(path: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """TFLite models on the CPU, by XNNPACK unless the option ``xnnpack`` says otherwise."""
    started = time.perf_counter()
    import numpy

    module, package = _module()
    about: dict[str, Any] = {"version": _version(package), "import_s": time.perf_counter() - started}
    if not path:
        return None, about
    threads, xnnpack = int(options["threads"]), bool(options.get("xnnpack", True))
    more: dict[str, Any] = {}
    if not xnnpack:
        more["experimental_op_resolver_type"] = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = module.Interpreter(model_path=path, num_threads=threads, **more)
    # First of all, also where only signatures will run: tflite-runtime 2.14 gives XNNPACK a file's subgraphs here and
    # nowhere else, and without it a signature takes three times as long.
    interpreter.allocate_tensors()
    signatures = _signatures(interpreter)
    about["options"] = {
        "runtime": package,
        "num_threads": threads,
        "xnnpack": xnnpack,
        "delegates": _delegates(interpreter),
        "buckets": {name: each.length for name, each in signatures.items() if each.length is not None},
    }
    if options.get("profile"):
        about["operators_absent"] = "the Python interpreter of LiteRT has no way to read its profiler"
    buckets = sorted(signatures.values(), key=lambda each: each.length or 0)
    about["inputs"] = _inputs(buckets)
    about["outputs"] = _outputs(buckets)

    def run(feeds: Feeds) -> Feeds:
        arrays = {name: numpy.asarray(array) for name, array in feeds.items()}
        chosen = _choose(buckets, arrays)
        arrays = {name: _narrowed(name, array, chosen.inputs.get(name)) for name, array in arrays.items()}
        padded = {name: _padded(array, chosen.time_axis(name), chosen.length) for name, array in arrays.items()}
        if not chosen.any_length:
            return chosen.run(padded)
        said = chosen.inputs[LENGTHS]
        size = next(array.shape[axis] for array, axis in chosen.along_time(arrays))
        padded[LENGTHS] = arrays.get(LENGTHS, numpy.full(said["shape"], size)).astype(said["dtype"])
        return _cut(chosen.run(padded))

    return run, about


def _narrowed(name: str, array: Any, said: dict[str, Any] | None) -> Any:
    """Whole numbers as the file takes them: 32 bits there, 64 wherever torch or numpy made them."""
    import numpy

    if said is None or array.dtype != numpy.int64 or said["dtype"] != numpy.int32:
        return array
    if array.size and max(abs(int(array.min())), int(array.max())) > numpy.iinfo(numpy.int32).max:
        raise BadInput(f"{name} has numbers that do not fit in the 32 bits that the file takes")
    return array.astype(numpy.int32)


def _module() -> tuple[Any, str]:
    """The interpreter's module, and the package it came in."""
    try:
        from ai_edge_litert import interpreter

        return interpreter, "ai-edge-litert"
    except ImportError as why:
        try:
            from tflite_runtime import interpreter

            return interpreter, "tflite-runtime"
        except ImportError:
            raise why from None


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _delegates(interpreter: Any) -> int | None:
    """How many parts of the first subgraph a delegate runs; none without XNNPACK. None where this cannot be seen."""
    try:
        return sum(each["op_name"] == "DELEGATE" for each in interpreter._get_ops_details())
    except Exception:  # not a public function, and not worth a failed run
        return None


class Signature(ABC):
    """One entry of a file: its tensors by name, as the interpreter tells of them, and its length if it is a bucket."""

    def __init__(self, name: str, inputs: Feeds, outputs: Feeds) -> None:
        self.name, self.inputs, self.outputs = name, inputs, outputs
        number = re.search(r"_(\d+)$", name)
        self.length: int | None = int(number.group(1)) if number else None
        if not any(self.time_axis(each) is not None for each in inputs):
            self.length = None

    @property
    def any_length(self) -> bool:
        """Whether padding is told apart, so that what is shorter than the bucket fits too."""
        return self.length is not None and LENGTHS in self.inputs

    def time_axis(self, name: str) -> int | None:
        """Which axis of an input is time: the one after the batch that is as long as the bucket; None if none is."""
        if self.length is None or name == LENGTHS or name not in self.inputs:
            return None
        shape = [int(size) for size in self.inputs[name]["shape"]]
        return next((axis for axis, size in enumerate(shape) if axis and size == self.length), None)

    def along_time(self, arrays: Feeds) -> list[tuple[Any, int]]:
        """The arrays that have time in them, and on which axis."""
        found = [(array, self.time_axis(name)) for name, array in arrays.items()]
        return [(array, axis) for array, axis in found if axis is not None]

    @abstractmethod
    def run(self, feeds: Feeds) -> Feeds:
        """The outputs by name of inputs that have the entry's own shapes."""


class Named(Signature):
    """A signature that the file names."""

    def __init__(self, name: str, runner: Any) -> None:
        super().__init__(name, runner.get_input_details(), runner.get_output_details())
        self.runner = runner

    def run(self, feeds: Feeds) -> Feeds:
        said: Feeds = self.runner(**feeds)
        return said


class Whole(Signature):
    """A file without signatures: its tensors go by their own names, or by their places where they have none."""

    def __init__(self, interpreter: Any) -> None:
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        super().__init__(UNNAMED, _by_name(inputs, "input"), _by_name(outputs, "output"))
        self.interpreter = interpreter

    def run(self, feeds: Feeds) -> Feeds:
        shapes = {each["index"]: list(each["shape"]) for each in self.interpreter.get_input_details()}
        for name, array in feeds.items():
            if shapes[self.inputs[name]["index"]] != list(array.shape):
                self.interpreter.resize_tensor_input(self.inputs[name]["index"], array.shape)
        self.interpreter.allocate_tensors()
        for name, array in feeds.items():
            self.interpreter.set_tensor(self.inputs[name]["index"], array)
        self.interpreter.invoke()
        return {name: self.interpreter.get_tensor(each["index"]) for name, each in self.outputs.items()}


def _by_name(tensors: Described, word: str) -> Feeds:
    names = [each["name"] for each in tensors]
    known = all(names) and len(set(names)) == len(names)
    return {each["name"] if known else f"{word}_{place}": each for place, each in enumerate(tensors)}


def _signatures(interpreter: Any) -> dict[str, Signature]:
    names = list(interpreter.get_signature_list())
    if not names:
        return {UNNAMED: Whole(interpreter)}
    found = {name: Named(name, interpreter.get_signature_runner(name)) for name in names}
    first = found[names[0]]
    if all(each.length is not None and set(each.inputs) == set(first.inputs) for each in found.values()):
        return dict(found)
    return {names[0]: first}  # not buckets of one network: the first one is what a file is for


def _choose(buckets: list[Signature], arrays: Feeds) -> Signature:
    """The smallest bucket that holds the arrays; exactly, where the file takes no ``lengths``."""
    if buckets[0].length is None:
        return buckets[0]
    largest = buckets[-1]
    array, axis = largest.along_time(arrays)[0]
    size = int(array.shape[axis])
    for each in buckets:
        if size == each.length or (largest.any_length and 0 < size < (each.length or 0)):
            return each
    listed = ", ".join(str(each.length) for each in buckets)
    if largest.any_length:
        raise BadInput(f"the input is {size} long, the model takes 1 to {largest.length} (buckets: {listed})")
    raise BadInput(f"the input is {size} long, the model takes only these lengths: {listed}")


def _padded(array: Any, axis: int | None, length: int | None) -> Any:
    import numpy

    if axis is None or length is None or array.shape[axis] == length:
        return array
    missing = [(0, 0)] * array.ndim
    missing[axis] = (0, length - array.shape[axis])
    return numpy.pad(array, missing)


def _cut(answers: Feeds) -> Feeds:
    """Without the frames that are padding in every row."""
    if FRAMES not in answers:
        return answers
    longest = int(answers[FRAMES].max())
    return {name: array[:, :longest] if array.ndim > 2 else array for name, array in answers.items()}


def _inputs(buckets: list[Signature]) -> Described:
    """Time is null where the length may vary."""
    free = buckets[-1].any_length or len(buckets) > 1
    described = []
    for name, each in buckets[-1].inputs.items():
        shape = _shape(each)
        axis = buckets[-1].time_axis(name)
        if free and axis is not None:
            shape[axis] = None
        described.append({"name": name, "dtype": _dtype(each), "shape": shape})
    return described


def _outputs(buckets: list[Signature]) -> Described:
    """A dimension that is not the same in all buckets, or is cut to what is true, is null."""
    described = []
    cut = buckets[-1].any_length and FRAMES in buckets[-1].outputs
    for name, each in buckets[-1].outputs.items():
        shapes = [_shape(bucket.outputs[name]) for bucket in buckets]
        shape = [size if all(other[axis] == size for other in shapes) else None for axis, size in enumerate(shapes[-1])]
        if cut and len(shape) > 2:
            shape[1] = None
        described.append({"name": name, "dtype": _dtype(each), "shape": shape})
    return described


def _shape(tensor: Feeds) -> list[int | None]:
    sizes = tensor.get("shape_signature")
    sizes = tensor["shape"] if sizes is None or len(sizes) != len(tensor["shape"]) else sizes
    return [int(size) if size >= 0 else None for size in sizes]


def _dtype(tensor: Feeds) -> str:
    import numpy

    return str(numpy.dtype(tensor["dtype"]))
