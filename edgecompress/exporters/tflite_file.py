"""TFLite files as data: read, described, tidied and written without running them.

The file is a flatbuffer (schema.fbs of LiteRT); ``read`` gives its tables as Python objects whose big arrays are views
of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.errors import ExportError
from edgecompress.exporters.tflite_versions import GREATEST_2_14, LITERT, ROW_SCALES_VERSION, RUNTIME_2_14

SMALL_BYTES = 1024  # what is smaller is not worth sharing
WEIGHT_INPUT = {"FULLY_CONNECTED": 1, "CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "TRANSPOSE_CONV": 1, "BATCH_MATMUL": 1}
SMALL_TYPES = ("INT8", "INT4", "FLOAT16")
SCOPE = re.compile(
    r"(?:\w+\.)+[A-Za-z0-9]+(?:_(\w+))?"
)  # module.Class_attribute, as litert-torch spells a part of a path


@dataclass(frozen=True)
class Weighted:
    """An operator with a constant weight: its name (that of what it puts out), its kind, and the weight's tensor."""

    name: str
    kind: str
    weight: Any
    operator: Any
    subgraph: Any


def read(file: Path) -> Any:
    """The tables of a file, ``schema_py_generated.ModelT``."""
    from ai_edge_litert.tools import flatbuffer_utils

    return flatbuffer_utils.read_model(str(file))


def write(model: Any, file: Path, bytes_expected: int = 0) -> None:
    """Write the tables; ``bytes_expected`` saves the copies of a buffer that grows by doubling.

    Buffers become arrays first: the tables write what is none byte by byte, 94 MB of them in a minute and not in 0.3 s.
    """
    import flatbuffers

    for buffer in model.buffers:
        if buffer.data is not None and not isinstance(buffer.data, np.ndarray):
            buffer.data = np.frombuffer(bytes(buffer.data), np.uint8)
    builder = flatbuffers.Builder(bytes_expected + bytes_expected // 64 + 65536)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    file.write_bytes(memoryview(builder.Bytes)[builder.Head() :])


def finish(file: Path, metadata: Mapping[str, str]) -> Any:
    """Fold what is left to fold, share equal weights, shorten names, say which operator versions are needed, put the metadata in.

    Signatures that were converted together keep a copy each of what the converter folds for them. Answers the tables.
    """
    beside = file.with_suffix(".finished")
    try:
        model = read(file)
        fold_products_of_constants(model)
        share_equal_buffers(model)
        shorten_names(model)
        require_row_scales(model)
        set_metadata(model, metadata)
        write(model, beside, file.stat().st_size)
        del model
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
    return read(file)


def fold_products_of_constants(model: Any) -> None:
    """Multiply once what the file would multiply at every inference, and drop what nothing reads then.

    litert-torch leaves the scale of an attention's queries beside their weights where several signatures share them:
    each inference then scales them anew, and no runtime packs or quantises what is computed.
    """
    for index, subgraph in enumerate(model.subgraphs):
        made = {int(each) for operator in subgraph.operators for each in operator.outputs} | set(subgraph.inputs)
        left = []
        for operator in subgraph.operators:
            found = None if made & set(operator.inputs) else _product(model, subgraph, operator)
            if found is None:
                left.append(operator)
                continue
            number = int(operator.outputs[0])
            subgraph.tensors[number].buffer = _new_buffer(model, found)
            made.discard(number)
        if len(left) < len(subgraph.operators):
            subgraph.operators = left
            _drop_unread(model, index)
    read_still = {int(tensor.buffer) for subgraph in model.subgraphs for tensor in subgraph.tensors}
    read_still |= {int(entry.buffer) for entry in model.metadata or []}
    for number, buffer in enumerate(model.buffers):
        if number not in read_still:
            buffer.data = None


def _product(model: Any, subgraph: Any, operator: Any) -> np.ndarray | None:
    """What a MUL of two float32 constants comes to, in the shape of its output; None for any other operator."""
    if kind_of(model, operator) != "MUL" or operator.builtinOptions.fusedActivationFunction:
        return None
    tensors = [subgraph.tensors[int(each)] for each in operator.inputs]
    stored = [model.buffers[int(each.buffer)].data for each in tensors]
    if any(type_name(each) != "FLOAT32" for each in tensors) or any(each is None or not len(each) for each in stored):
        return None
    left, right = (
        np.frombuffer(np.asarray(data, np.uint8).tobytes(), np.float32).reshape(_shape(tensor))
        for data, tensor in zip(stored, tensors, strict=True)
    )
    return (left * right).reshape(_shape(subgraph.tensors[int(operator.outputs[0])]))


def _shape(tensor: Any) -> tuple[int, ...]:
    return () if tensor.shape is None else tuple(int(size) for size in tensor.shape)


def _new_buffer(model: Any, values: np.ndarray) -> int:
    from ai_edge_litert import schema_py_generated as schema

    buffer = schema.BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _drop_unread(model: Any, number: int) -> None:
    """Take the tensors that nothing reads or writes any more out of a subgraph, and number the others anew."""
    subgraph = model.subgraphs[number]
    read_still = {int(each) for operator in subgraph.operators for each in (*operator.inputs, *operator.outputs)}
    read_still |= {int(each) for each in (*subgraph.inputs, *subgraph.outputs)}
    kept = sorted(read_still - {-1})
    anew = {old: new for new, old in enumerate(kept)} | {-1: -1}
    subgraph.tensors = [subgraph.tensors[old] for old in kept]
    for each in (subgraph, *subgraph.operators):
        each.inputs = np.array([anew[int(old)] for old in each.inputs], np.int32)
        each.outputs = np.array([anew[int(old)] for old in each.outputs], np.int32)
    for signature in model.signatureDefs or []:
        if signature.subgraphIndex == number:
            for port in (*(signature.inputs or []), *(signature.outputs or [])):
                port.tensorIndex = anew[int(port.tensorIndex)]


def share_equal_buffers(model: Any) -> None:
    """Let tensors with the same bytes point to one buffer."""
    first: dict[bytes, int] = {}
    moved: dict[int, int] = {}
    for number, buffer in enumerate(model.buffers):
        if buffer.data is None or len(buffer.data) < SMALL_BYTES:
            continue
        known = first.setdefault(sha256(np.ascontiguousarray(buffer.data).data).digest(), number)
        if known != number:
            moved[number] = known
            buffer.data = None
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            tensor.buffer = moved.get(int(tensor.buffer), int(tensor.buffer))


def shorten_names(model: Any) -> None:
    """``x.HubertEncoderLayer_3/x.Linear_q_proj;1`` -> ``3/q_proj;1``, where names stay unlike: 250 letters are hard to ask for."""
    for subgraph in model.subgraphs:
        short = [_short(tensor.name.decode()) for tensor in subgraph.tensors]
        if len(set(short)) == len({tensor.name for tensor in subgraph.tensors}):
            for tensor, name in zip(subgraph.tensors, short, strict=True):
                tensor.name = name.encode()


def _short(name: str) -> str:
    """A name may be several, of what was fused, with a semicolon between; numbers are between semicolons, too."""
    return ";".join(_short_path(each) for each in name.split(";"))


def _short_path(path: str) -> str:
    if "/" not in path:
        return path
    known = [(part, SCOPE.fullmatch(part)) for part in path.split("/")]
    parts = [part if match is None else match.group(1) for part, match in known]
    return "/".join(part for part in parts if part)


def scope_of(name: str) -> str:
    """The part of the model that an operator belongs to, by its name: the innermost, where several are fused."""
    return max(name.split(";"), key=lambda path: (path.count("/"), len(path)))


def require_row_scales(model: Any) -> None:
    """Raise the version of FULLY_CONNECTED where it reads a scale for each row: the quantiser leaves what it finds."""
    for each in weighted(model):
        direct = each.subgraph.tensors[each.operator.inputs[1]] is each.weight
        given = each.subgraph.tensors[each.operator.inputs[0]]
        rows = direct and type_name(each.weight) in ("INT8", "INT4") and _scales(each.weight) > 1
        if each.kind == "FULLY_CONNECTED" and rows and type_name(given) == "FLOAT32":
            code = model.operatorCodes[each.operator.opcodeIndex]
            code.version = max(code.version, ROW_SCALES_VERSION)


def _scales(tensor: Any) -> int:
    said = tensor.quantization
    return 0 if said is None or said.scale is None else len(said.scale)


def set_metadata(model: Any, values: Mapping[str, str]) -> None:
    """Put text into the file's metadata table, in the place of any of the same names."""
    from ai_edge_litert import schema_py_generated as schema

    names = {name.encode() for name in values}
    model.metadata = [each for each in model.metadata or [] if each.name not in names]
    for name, text in values.items():
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(text.encode(), np.uint8)
        entry.name, entry.buffer = name.encode(), len(model.buffers)
        model.buffers.append(buffer)
        model.metadata.append(entry)


def metadata(model: Any) -> dict[str, str]:
    """The metadata that is text."""
    found = {}
    for entry in model.metadata or []:
        data = model.buffers[entry.buffer].data
        try:
            found[entry.name.decode()] = bytes(b"" if data is None else data).decode()
        except UnicodeDecodeError:
            continue
    return found


def kind_of(model: Any, operator: Any) -> str:
    """``CONV_2D``, ``FULLY_CONNECTED`` ..."""
    code = model.operatorCodes[operator.opcodeIndex]
    return _names("BuiltinOperator")[max(code.builtinCode, code.deprecatedBuiltinCode)]


def type_name(tensor: Any) -> str:
    """``FLOAT32``, ``INT8`` ..."""
    return _names("TensorType")[tensor.type]


def _names(enumeration: str) -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {value: name for name, value in vars(getattr(schema, enumeration)).items() if isinstance(value, int)}


def operators(model: Any) -> dict[str, int]:
    """The version that a file asks for, by operator; the greatest where it has several."""
    found: dict[str, int] = {}
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            kind = kind_of(model, operator)
            found[kind] = max(found.get(kind, 1), int(model.operatorCodes[operator.opcodeIndex].version))
    return dict(sorted(found.items()))


def beyond_2_14(needed: Mapping[str, int]) -> dict[str, int]:
    """The operators, with versions, that tflite-runtime 2.14 does not have."""
    return {kind: version for kind, version in needed.items() if version > GREATEST_2_14.get(kind, 0)}


def refuse_beyond_2_14(needed: Mapping[str, int]) -> None:
    """Raise an ExportError where tflite-runtime 2.14 lacks an operator; all of them are named."""
    missing = beyond_2_14(needed)
    if missing:
        listed = ", ".join(f"{kind} version {version}" for kind, version in missing.items())
        raise ExportError(f"{RUNTIME_2_14} does not have {listed}", hint=f"use {LITERT} there, or another precision")


def runtimes(needed: Mapping[str, int]) -> list[str]:
    """The runtimes that have all operators of a file."""
    return [LITERT] if beyond_2_14(needed) else [LITERT, RUNTIME_2_14]


def weighted(model: Any) -> Iterator[Weighted]:
    """All operators with a constant weight, seen through a DEQUANTIZE where there is one."""
    for subgraph in model.subgraphs:
        made_by = {out: operator for operator in subgraph.operators for out in operator.outputs}
        for operator in subgraph.operators:
            kind = kind_of(model, operator)
            if kind not in WEIGHT_INPUT:
                continue
            place = operator.inputs[WEIGHT_INPUT[kind]]
            maker = made_by.get(place)
            if maker is not None and kind_of(model, maker) == "DEQUANTIZE":
                place = maker.inputs[0]
            weight = subgraph.tensors[place]
            if model.buffers[weight.buffer].data is not None:
                name = subgraph.tensors[operator.outputs[0]].name.decode()
                yield Weighted(name, kind, weight, operator, subgraph)


def small_weights(model: Any) -> int:
    """How many weights of matrix products and convolutions are kept in less than 32 bits; a shared one counts once."""
    return len({each.weight.buffer for each in weighted(model) if type_name(each.weight) in SMALL_TYPES})


def signatures(model: Any) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Input and output tensors by name, for every signature."""
    found = {}
    for each in model.signatureDefs or []:
        tensors = model.subgraphs[each.subgraphIndex].tensors
        inputs = {one.name.decode(): tensors[one.tensorIndex] for one in each.inputs}
        outputs = {one.name.decode(): tensors[one.tensorIndex] for one in each.outputs}
        found[each.signatureKey.decode()] = (inputs, outputs)
    return found
