"""What the nodes that hold weights are called: the module's path in the network, as a person would write it."""

from __future__ import annotations

from onnx import NodeProto

WITH_WEIGHTS = ("MatMul", "Gemm", "Conv")
WRAPPERS = ("encoder/network/", "network/")  # our own modules around the network; not part of anybody's name


def readable(name: str) -> str:
    """``/network/encoder/layers.3/feed_forward/output_dense/MatMul`` -> ``encoder.layers.3.feed_forward.output_dense``.

    A second product in one module keeps its number. A name that is readable already stays as it is.
    """
    if not name.startswith("/"):
        return name
    path = name[1:]
    for wrapper in WRAPPERS:
        path = path.removeprefix(wrapper)
    *modules, last = path.split("/")
    kind, _, number = last.partition("_")
    words = modules if kind in WITH_WEIGHTS and modules else [*modules, kind]
    return ".".join([*words, *([number] if number else [])])


def rename(nodes: list[NodeProto]) -> None:
    """Give nodes their readable names, in place; where two would share one, the later keeps its own."""
    taken: set[str] = set()
    for node in nodes:
        name = readable(node.name)
        if name not in taken:
            node.name = name
        taken.add(node.name)
