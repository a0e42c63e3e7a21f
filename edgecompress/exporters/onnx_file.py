"""ONNX files: metadata in, weights beside the graph where one file cannot hold them, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

LARGEST_BYTES = 2**31 - 1  # protobuf's limit for one file
BESIDE = ".data"  # model.onnx.data


def finish(
    model: onnx.ModelProto, file: Path, metadata: Mapping[str, str], largest: int | None = None, check: bool = True
) -> onnx.ModelProto:
    """Put the metadata in, in the place of any that is there, write, check, and return the model, its weights inside.

    A model of more than ``largest`` bytes (2 GB, the format's limit, unless told) is written as two files: the graph,
    and its weights in ``<file>.data`` beside it, which belongs to it: every reader finds it by that name. ``check`` is for
    files that stay: what is converted at once is checked by its reader.
    """
    model.producer_name = "edgecompress"
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))
    beside = file.with_name(file.name + BESIDE)
    beside.unlink(missing_ok=True)  # onnx appends to what is there
    if size_of(model) > (LARGEST_BYTES if largest is None else largest):
        onnx.save(
            model,
            str(file),
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location=beside.name,
            size_threshold=1024,
        )
        onnx.load_external_data_for_model(model, str(file.parent))
    else:
        onnx.save(model, str(file))
    if check:
        onnx.checker.check_model(str(file), full_check=True)
    return model


def size_of(model: onnx.ModelProto) -> int:
    """Bytes that a model takes as one file, about: its weights, and what little the rest takes."""
    graph = model.graph
    return sum(len(tensor.raw_data) or tensor.ByteSize() for tensor in graph.initializer) + sum(
        node.ByteSize() for node in graph.node
    )
