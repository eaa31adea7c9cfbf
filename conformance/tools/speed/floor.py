"""The bytes that an op must move at least, from the tensors that it reads and returns."""

from collections.abc import Iterable
from math import prod

import numpy as np

from conformance.ops.golden import Golden
from conformance.ops.table import OPS
from conformance.port.protocol import Part

Array = np.ndarray


def floor(golden: Golden, part: Part) -> int:
    """The bytes that must be read and written for the forward pass, the backward pass, or both in one.

    The forward pass reads every input and writes every output. The backward pass reads the cotangents and what it needs of the
    inputs, and writes the gradients. Inputs with the same gradient enter the op as their sum: it is enough to read that sum,
    and one tensor can be both gradients. So a norm moves x and y, then x, dy and dx: 2·R·d and 3·R·d numbers, and its weight.
    """
    case, cotangents = golden.case, OPS[golden.case.op].cotangents
    made = [_stored(golden, name) for name in case.made]
    given = [array.nbytes for name, array in golden.inputs.items() if name not in cotangents]
    passed_back = [array.nbytes for name, array in golden.inputs.items() if name in cotangents]
    alike = list(_with_the_same_gradient(golden))
    gradients = [_stored(golden, f"d{name}") for group in alike for name in _of_each_dtype(golden, group)]
    if part == "forward":
        return sum(made) + sum(given)
    if part == "both":
        return sum(made) + sum(given) + sum(passed_back) + sum(gradients)
    read = [min(golden.inputs[name].nbytes for name in group) for group in alike]
    return sum(read) + sum(passed_back) + sum(gradients)


def _stored(golden: Golden, output: str) -> int:
    """The bytes of an output."""
    return prod(golden.case.output_shape(output)) * np.dtype(golden.case.outputs[output]).itemsize


def _with_the_same_gradient(golden: Golden) -> Iterable[list[str]]:
    """The inputs that have a gradient, in groups whose gradients are the same numbers."""
    groups: list[list[str]] = []
    for name in golden.inputs:
        if f"d{name}" not in golden.outputs:
            continue
        of = golden.outputs[f"d{name}"].value
        group = next((group for group in groups if np.array_equal(golden.outputs[f"d{group[0]}"].value, of)), None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    return groups


def _of_each_dtype(golden: Golden, group: list[str]) -> Iterable[str]:
    """Of inputs with the same gradient, one for every dtype in which it is returned."""
    return {golden.case.outputs[f"d{name}"]: name for name in group}.values()
