"""An ONNX graph while it is rewritten: who makes a tensor, who reads it, what is constant; and whole again at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"


class Edit:
    """A graph without control flow, as lists and look-ups that stay right while nodes come and go.

    Constant nodes are initializers here, and Identity nodes gone. Nodes may be added in any order: ``finish`` sorts
    them and drops what no output needs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self.outputs = {value.name for value in self.graph.output}
        self.inputs = {value.name for value in self.graph.input}
        self.initializers: dict[str, TensorProto] = {each.name: each for each in self.graph.initializer}
        self.nodes: dict[int, NodeProto] = {id(node): node for node in self.graph.node}
        self.maker: dict[str, NodeProto] = {}
        self._readers: dict[str, dict[int, NodeProto]] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._values: set[str] = set()  # constants that are no weights: Constant nodes in the end, as they came
        self._made = 0
        for node in self.nodes.values():
            self._register(node)
        self._simplify()

    def _register(self, node: NodeProto) -> None:
        for name in node.output:
            self.maker[name] = node
        for name in node.input:
            self._readers.setdefault(name, {})[id(node)] = node

    def _simplify(self) -> None:
        for node in self.of_type("Constant"):
            array = constant_of(node)
            if array is not None and node.output[0] not in self.outputs:
                self.remove(node)
                self.initializers[node.output[0]] = numpy_helper.from_array(array, node.output[0])
                self._values.add(node.output[0])
        for node in self.of_type("Identity"):
            if node.output[0] not in self.outputs:
                self.replace(node.output[0], node.input[0])
                self.remove(node)

    def of_type(self, *types: str) -> list[NodeProto]:
        """The nodes of these types, as they are now: safe to change the graph while going through them."""
        return [node for node in self.nodes.values() if node.op_type in types]

    def readers(self, name: str) -> list[NodeProto]:
        """The nodes that read a tensor."""
        return list(self._readers.get(name, {}).values())

    def only_reader(self, name: str) -> NodeProto | None:
        """The one node that reads a tensor, and nobody else does, not even the caller of the graph."""
        readers = self.readers(name)
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def made_by(self, name: str, *types: str) -> NodeProto | None:
        """The node that makes a tensor, if it is of one of these types."""
        node = self.maker.get(name)
        return node if node is not None and node.op_type in types else None

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a tensor that is constant, else None."""
        if name not in self._arrays:
            if name not in self.initializers or name in self.inputs:
                return None
            self._arrays[name] = numpy_helper.to_array(self.initializers[name])
        return self._arrays[name]

    def scalar(self, name: str) -> float | None:
        """The value of a constant of one element, else None."""
        array = self.constant(name)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None

    def split_constant(self, node: NodeProto) -> tuple[str, np.ndarray] | None:
        """Of a node with two inputs, one of them constant: the other one's name, and the constant."""
        if len(node.input) == 2:
            for given, fixed in ((0, 1), (1, 0)):
                array = self.constant(node.input[fixed])
                if array is not None and self.constant(node.input[given]) is None:
                    return node.input[given], array
        return None

    def fresh(self, hint: str) -> str:
        """A name that nothing has."""
        self._made += 1
        name = f"{hint}~{self._made}"
        return self.fresh(hint) if name in self.maker or name in self.initializers else name

    def add_constant(self, array: np.ndarray | np.generic, hint: str = "constant") -> str:
        """A new constant; its name. With a hint, it is a weight; without, equal ones are one."""
        array = np.asarray(array)
        name = self.fresh(hint)
        if hint == "constant":
            same = f"constant:{array.dtype}:{array.shape}:{array.tobytes().hex()}"
            name = same if len(same) < 120 else name
            self._values.add(name)
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        return name

    def add(
        self, kind: str, inputs: Sequence[str], name: str = "", outputs: int | Sequence[str] = 1, **attributes: Any
    ) -> str:
        """A new node; the name of its first output. ``outputs``: how many, or what they are called."""
        name = name or self.fresh(kind)
        if isinstance(outputs, int):
            outputs = [self.fresh(f"{name}/out") for _ in range(outputs)]
        node = helper.make_node(kind, list(inputs), list(outputs), name=name, **attributes)
        self.nodes[id(node)] = node
        self._register(node)
        return str(outputs[0])

    def remove(self, node: NodeProto) -> None:
        """Take a node out; who reads its outputs must have been given something else, or get it later."""
        del self.nodes[id(node)]
        for name in node.output:
            if self.maker.get(name) is node:
                del self.maker[name]
        for name in node.input:
            self._readers.get(name, {}).pop(id(node), None)

    def set_input(self, node: NodeProto, place: int, name: str) -> None:
        """Let a node read another tensor."""
        old = node.input[place]
        node.input[place] = name
        if old not in node.input:
            self._readers.get(old, {}).pop(id(node), None)
        self._readers.setdefault(name, {})[id(node)] = node

    def replace(self, old: str, new: str) -> None:
        """Let everybody who reads ``old`` read ``new``. An output of the graph keeps its name: its maker is renamed."""
        for node in self.readers(old):
            for place, name in enumerate(node.input):
                if name == old:
                    self.set_input(node, place, new)
        if old in self.outputs and old != new:
            self._rename(new, old)

    def _rename(self, name: str, wanted: str) -> None:
        maker = self.maker.pop(name, None)
        if maker is None or name in self.outputs or name in self.inputs:
            if maker is not None:
                self.maker[name] = maker
            self.maker.pop(wanted, None)
            self.add("Identity", [name], outputs=[wanted])
            return
        maker.output[list(maker.output).index(name)] = wanted
        self.maker[wanted] = maker
        for node in self.readers(name):
            for place, given in enumerate(node.input):
                if given == name:
                    self.set_input(node, place, wanted)

    def rename_output(self, node: NodeProto, name: str) -> None:
        """Let a node's first output be called otherwise; who reads the old name will be given another maker of it."""
        self.maker.pop(node.output[0], None)
        node.output[0] = name
        self.maker[name] = node

    def finish(self) -> onnx.ModelProto:
        """The model, its nodes in an order in which they can run, without what no output needs."""
        order: list[NodeProto] = []
        done: set[int] = set()
        for value in self.graph.output:
            self._visit(value.name, order, done)
        used = {name for node in order for name in node.input} | self.outputs
        values = [name for name in self._values if name in used and name in self.initializers]
        fixed = [helper.make_node("Constant", [], [name], name=name, value=self.initializers[name]) for name in values]
        used -= set(values)
        order = [*fixed, *(_copy(node) for node in order)]
        del self.graph.node[:]
        self.graph.node.extend(order)
        kept = set()
        for place in reversed(range(len(self.graph.initializer))):  # the large ones stay where they are: no second copy
            name = self.graph.initializer[place].name
            if name in used and self.initializers.get(name) is self.graph.initializer[place]:
                kept.add(name)
            else:
                del self.graph.initializer[place]
        self.graph.initializer.extend(
            tensor for name, tensor in self.initializers.items() if name in used and name not in kept
        )
        del self.graph.value_info[:]
        domains = {node.domain for node in order} - {"", "ai.onnx"}
        known = {each.domain for each in self.model.opset_import}
        self.model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in sorted(domains - known))
        return self.model

    def _visit(self, wanted: str, order: list[NodeProto], done: set[int]) -> None:
        stack: list[tuple[NodeProto, Iterator[str]]] = []

        def enter(name: str) -> None:
            node = self.maker.get(name)
            if node is not None and id(node) not in done:
                done.add(id(node))
                stack.append((node, iter(list(node.input))))

        enter(wanted)
        while stack:
            node, waiting = stack[-1]
            for name in waiting:
                before = len(stack)
                enter(name)
                if len(stack) > before:
                    break
            else:
                order.append(node)
                stack.pop()


def _copy(node: NodeProto) -> NodeProto:
    new = NodeProto()
    new.CopyFrom(node)
    return new


def constant_of(node: NodeProto) -> np.ndarray | None:
    """What a Constant node holds, if it is a tensor."""
    for attribute in node.attribute:
        if attribute.name == "value":
            return numpy_helper.to_array(attribute.t)
    return None


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node as Python values."""
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}
