"""The bytes that an op must move at least, from the tensors that it reads and returns."""

from math import prod

import numpy as np

from conformance.ops.golden import Golden
from conformance.ops.table import OPS
from conformance.port.protocol import Part


def floor(golden: Golden, part: Part) -> int:
    """The bytes that must be read and written for the forward pass, the backward pass, or both in one.

    The forward pass reads every input and writes every output. The backward pass reads the cotangents and the inputs as large
    as x, and writes the gradients; it need not read all parameters, which are small. So a norm moves x and y, 2·R·d numbers,
    then x, dy and dx, 3·R·d. Inputs with the same gradient, such as a residual and what it is added to, enter the op as their
    sum: it is enough to read that, and one tensor can be the gradient of both.
    """
    case, cotangents = golden.case, OPS[golden.case.op].cotangents
    inputs = sum(array.nbytes for name, array in golden.inputs.items() if name not in cotangents)
    forward = inputs + sum(_stored(golden, name) for name in case.made)
    if part == "forward":
        return forward
    groups: dict[bytes, list[str]] = {}
    for name in golden.inputs:
        if f"d{name}" in golden.outputs:
            groups.setdefault(golden.outputs[f"d{name}"].value.tobytes(), []).append(name)
    backward = sum(array.nbytes for name, array in golden.inputs.items() if name in cotangents)
    for names in groups.values():  # where the dtypes of inputs with one gradient differ, it is written in each of them
        backward += sum({_stored(golden, f"d{name}") for name in names})
    if part == "both":
        return forward + backward
    large = [names for names in groups.values() if golden.inputs[names[0]].size == golden.inputs["x"].size]
    return backward + sum(min(golden.inputs[name].nbytes for name in names) for names in large)


def _stored(golden: Golden, output: str) -> int:
    """The bytes of an output."""
    return prod(golden.case.output_shape(output)) * np.dtype(golden.case.outputs[output]).itemsize
