"""What is fed: another length than the golden input's, arrays that a person gives, and a model's external data."""

from __future__ import annotations

import io
from pathlib import Path

from edgecompress.devices import Blob
from edgecompress.errors import RecipeError
from edgecompress.plain import arrays, weights_of
from edgecompress.records import Artifact

TRUE_LENGTHS = "lengths"


def lengths(artifact: Artifact, seconds: float | None) -> tuple[dict[str, list[list[int]]], float | None]:
    """How to fit the golden input to ``seconds`` of audio: ``{tensor: [[axis, length], ...]}``, and the seconds (None without audio).

    Every axis after the batch that may vary is time.

    Raises:
        RecipeError: the artifact's input has a fixed length, or cannot be that long.
    """
    audio = artifact.audio
    if audio is None:
        if seconds is not None:
            raise RecipeError(f"{artifact.name} takes no audio: it has no seconds", hint="leave `seconds` out")
        return {}, None
    if seconds is None:
        return {}, audio.golden_seconds
    if audio.max_seconds is not None and seconds > audio.max_seconds:
        text = f"{artifact.name} can see {audio.max_seconds:g} s of audio at most, asked are {seconds:g} s"
        raise RecipeError(text, hint="choose a shorter length")
    length = max(1, round(seconds * audio.per_second))
    found = {}
    for tensor in artifact.inputs:
        axes = [axis for axis, size in enumerate(tensor.shape) if axis > 0 and isinstance(size, str)]
        if axes:
            found[tensor.name] = [[axis, length] for axis in axes]
    known = [held / audio.per_second for held in audio.lengths]
    if found and known and seconds > known[-1]:
        text = f"{artifact.name} takes {known[-1]:g} s of audio at most, asked are {seconds:g} s"
        raise RecipeError(text, hint="choose a shorter length, or export it with a longer one")
    if not found and length in audio.lengths:
        axis = next(axis for axis, name in enumerate(audio.layout) if axis > 0 and not name.isdigit())
        found[audio.input] = [[axis, length]]
    if not found:
        held = ", ".join(f"{each:g}" for each in known) or f"{audio.golden_seconds:g}"
        text = f"{artifact.name} takes audio of {held} s only, asked are {seconds:g} s"
        raise RecipeError(text, hint="leave `seconds` out, or choose one of these")
    return found, length / audio.per_second


def filled(artifact: Artifact, fitted: dict[str, list[list[int]]]) -> dict[str, int]:
    """What an input of true lengths must say once the audio beside it is fitted to another length."""
    if artifact.audio is None or artifact.audio.input not in fitted:
        return {}
    ((_, length),) = fitted[artifact.audio.input]
    return {tensor.name: length for tensor in artifact.inputs if tensor.name == TRUE_LENGTHS}


def given(path: Path) -> dict[str, Blob]:
    """Inputs by tensor name from a folder of ``.npy`` files or an ``.npz``; see :func:`edgecompress.plain.arrays`."""
    return {name: blob(array) for name, array in arrays(path).items()}


def blob(array: object) -> Blob:
    """An array as a ``.npy`` file."""
    import numpy

    stream = io.BytesIO()
    numpy.save(stream, numpy.asarray(array), allow_pickle=False)
    return Blob.of(stream.getvalue())


def beside(path: Path) -> dict[str, Blob]:
    """What belongs to a model file and lies beside it: the weights of an ``.xml``, else files that it names.

    Raises:
        RecipeError: an ``.xml`` without its ``.bin``.
    """
    weights = weights_of(path)
    if weights is not None:
        return {weights.name: Blob.of(weights)}
    return external_data(path)


def external_data(path: Path) -> dict[str, Blob]:
    """Files beside a model whose names the model contains (ONNX keeps large weights so)."""
    beside = [file for file in path.parent.iterdir() if file != path and file.is_file() and not file.is_symlink()]
    if not beside:
        return {}
    content = path.read_bytes()
    # a name is a length-prefixed string in the file; short ones would be found by chance
    return {file.name: Blob.of(file) for file in sorted(beside) if len(file.name) > 3 and file.name.encode() in content}
