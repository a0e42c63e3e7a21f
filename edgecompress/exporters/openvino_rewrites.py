"""What is rewritten in an OpenVINO model so that its CPU plug-in is faster, or right. The answers stay the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgecompress.exporters.openvino import runtime

HEIGHT = 2  # the new axis: (batch, channels, time) -> (batch, channels, 1, time)
MASK = 3  # which input of attention it is
NEXT_TO_NOTHING = 1e-30
EACH_ELEMENT = ("Gelu", "Relu", "Add", "Multiply", "Subtract", "Divide")


def two_dimensional(made: Any) -> int:
    """Convolve over an image of height one, where there is a norm over time between; how many convolutions do, or 0.

    The plug-in keeps what convolutions answer with channels last, and norms it there only if there are two dimensions
    besides: around the group norm of a waveform front end it copies 33 MB to channels first and back for 5 s of audio.
    HuBERT base, 5 s: 538 ms instead of 568 at fp32, 185 instead of 224 at int8-static.

    The chain goes from the first convolution on, over norms, activations and scales that need nothing else, to whatever
    is none of these. ``made`` is changed in place; names of nodes stay.
    """
    chain = _chain(made)
    kinds = [node.get_type_name() for node in chain]
    if "MVN" not in kinds or "Convolution" not in kinds[kinds.index("MVN") :]:
        return 0
    opset = runtime().opset13
    start = chain[0]
    start.set_argument(0, opset.unsqueeze(start.input_value(0), _axes(HEIGHT)).output(0))
    inside = {node.get_friendly_name() for node in chain}
    for node in chain:
        old = node.output(0)
        leaving = [target for target in old.get_target_inputs() if target.get_node().get_friendly_name() not in inside]
        rewritten = _with_height(node)
        new = rewritten.output(0)
        if leaving:
            back = opset.squeeze(new, _axes(HEIGHT)).output(0)
            for target in leaving:
                target.replace_source_output(back)
        if rewritten is not node:
            old.replace(new)
    made.validate_nodes_and_infer_types()
    return sum(node.get_type_name() == "Convolution" for node in chain)


def masked_attention(made: Any) -> int:
    """Give every attention without a mask one that changes nothing; how many there were.

    Without one, the plug-in (2026.4) fuses attention such that after one input of a single frame (400 to 719 samples)
    every later one of 16 frames or more is answered wrong, silently. A sum between scores and softmax prevents that; the
    fused kernel is the same and as fast. A zero would be optimised away, and a number this small leaves scores as they are.
    """
    found = [node for node in made.get_ordered_ops() if node.get_type_name() == "ScaledDotProductAttention"]
    bare = [node for node in found if _constant(node, MASK) and not np.any(_value(node, MASK))]
    for node in bare:
        node.set_argument(MASK, runtime().opset13.constant(np.array(NEXT_TO_NOTHING, dtype=np.float32)).output(0))
    made.validate_nodes_and_infer_types()
    return len(bare)


def _chain(made: Any) -> list[Any]:
    """Nodes in order, each fed by constants and by nodes before it alone; the first is a convolution over time."""
    found: list[Any] = []
    convolved: dict[str, str] = {}  # of each node, the convolution whose shape its answer has
    for node in made.get_ordered_ops():
        name, kind = node.get_friendly_name(), node.get_type_name()
        if not found:
            if kind == "Convolution" and node.get_output_partial_shape(0).rank.get_length() == 3 and _constant(node, 1):
                found.append(node)
                convolved[name] = name
            continue
        first = node.input_value(0).get_node().get_friendly_name() if node.get_input_size() else ""
        if first not in convolved:
            continue
        if kind == "Convolution" and _constant(node, 1):
            convolved[name] = name
        elif _over_time(node) or _scales(node) or _does_nothing(node, convolved):
            convolved[name] = convolved[first]
        else:
            continue
        found.append(node)
    return found


def _over_time(node: Any) -> bool:
    return node.get_type_name() == "MVN" and _constant(node, 1) and _value(node, 1).ravel().tolist() in ([2], [-1])


def _scales(node: Any) -> bool:
    """An activation, or a sum or product with a constant of one number or of one for each channel."""
    if node.get_type_name() not in EACH_ELEMENT:
        return False
    return node.get_input_size() == 1 or (
        _constant(node, 1)
        and (_value(node, 1).size == 1 or (_value(node, 1).ndim > 1 and _value(node, 1).shape[-1] == 1))
    )


def _does_nothing(node: Any, convolved: dict[str, str]) -> bool:
    """A reshape that leaves all sizes as they are, at most one of them to be found, or to the shape of such a node."""
    if node.get_type_name() != "Reshape":
        return False
    if _constant(node, 1):
        given, wanted = node.get_input_partial_shape(0), _value(node, 1).tolist()
        zero_is_same = bool(node.get_attributes()["special_zero"])
        kept = [
            (size == 0 and zero_is_same) or (found.is_static and size == found.get_length())
            for size, found in zip(wanted, given, strict=False)
        ]
        return len(wanted) == len(given) and all(same or size == -1 for same, size in zip(kept, wanted, strict=True))
    source = node.input_value(1).get_node()
    if source.get_type_name() != "ShapeOf":
        return False
    first = node.input_value(0).get_node().get_friendly_name()
    return convolved.get(source.input_value(0).get_node().get_friendly_name()) == convolved[first]


def _with_height(node: Any) -> Any:
    """The same operation on (batch, channels, 1, time): another node for a convolution, else this one, its inputs changed."""
    opset = runtime().opset13
    kind = node.get_type_name()
    if kind == "Convolution":
        asked = node.get_attributes()
        made = opset.convolution(
            node.input_value(0),
            opset.constant(np.expand_dims(_value(node, 1), HEIGHT)),
            strides=[1, *asked["strides"]],
            pads_begin=[0, *asked["pads_begin"]],
            pads_end=[0, *asked["pads_end"]],
            dilations=[1, *asked["dilations"]],
            auto_pad=asked["auto_pad"],
        )
        name = node.get_friendly_name()
        node.set_friendly_name(f"{name}/over_time")
        made.set_friendly_name(name)
        return made
    if kind == "Reshape":
        return node.input_value(0).get_node()
    if kind == "MVN":
        node.set_argument(1, _axes(HEIGHT, HEIGHT + 1).output(0))
    elif node.get_input_size() > 1 and _value(node, 1).ndim > 1:
        node.set_argument(1, opset.constant(np.expand_dims(_value(node, 1), -1)).output(0))
    node.validate_and_infer_types()
    return node


def _axes(*axes: int) -> Any:
    return runtime().opset13.constant(np.array(axes, dtype=np.int64))


def _constant(node: Any, position: int) -> bool:
    return bool(node.input_value(position).get_node().get_type_name() == "Constant")


def _value(node: Any, position: int) -> np.ndarray:
    return np.asarray(node.input_value(position).get_node().get_data())
