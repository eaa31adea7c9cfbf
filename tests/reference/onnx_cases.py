"""The cases that ONNX gives its own backends: importing its case modules builds them in memory.

That holds in onnx 1.22 (whose files are written from them) as in 1.23. Many cases also come `_expanded` into primitive
operators with the same numbers; those graphs have many nodes and are left.
"""

from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx.backend.test.case.node import _NodeTestCases

Array = np.ndarray


class Case(NamedTuple):
    """One node: its attributes, inputs and outputs by name."""

    name: str
    attributes: dict[str, Any]
    inputs: dict[str, Array]
    outputs: dict[str, Array]


def cases_of(op_type: str) -> list[Case]:
    """Find the cases whose graph is one node of this type; the module that makes them must have been imported."""
    cases = [case for case in _NodeTestCases if [node.op_type for node in case.model.graph.node] == [op_type]]
    return [_read(case.name, case.model.graph.node[0], *case.data_sets[0]) for case in cases]


def _read(name: str, node: onnx.NodeProto, inputs: list[Array], outputs: list[Array]) -> Case:
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    named = zip(filter(None, node.input), inputs, strict=True), zip(filter(None, node.output), outputs, strict=True)
    return Case(name, attributes, *map(dict, named))
