"""The bytes that an op must move at least, from the tensors that it reads and returns."""

from math import prod

import numpy as np

from conformance.ops.golden import Golden
from conformance.ops.table import OPS
from conformance.port.protocol import Part


def floor(golden: Golden, part: Part) -> int:
    """The bytes that must be read and written for the forward pass, the backward pass, or both in one.

    The forward pass reads every input and writes every output. The backward pass reads the cotangents and the inputs that have
    a gradient, and writes the gradients. So a norm moves x and y, 2·R·d numbers, then x, dy and dx, 3·R·d, and its weight.
    Inputs with the same gradient, such as a residual and what it is added to, enter the op as their sum: it is enough to read
    that, and one tensor can be the gradient of both.
    """
    case, cotangents = golden.case, OPS[golden.case.op].cotangents
    inputs = sum(array.nbytes for name, array in golden.inputs.items() if name not in cotangents)
    forward = inputs + sum(_stored(golden, name) for name in case.made)
    if part == "forward":
        return forward
    by_gradient: dict[bytes, list[str]] = {}
    for name in golden.inputs:
        if f"d{name}" in golden.outputs:
            by_gradient.setdefault(golden.outputs[f"d{name}"].value.tobytes(), []).append(name)
    groups = by_gradient.values()
    passed_back = sum(array.nbytes for name, array in golden.inputs.items() if name in cotangents)
    # Where the dtypes of inputs with one gradient differ, it is written in each of them.
    written = sum(sum({_stored(golden, f"d{name}") for name in group}) for group in groups)
    if part == "both":
        return forward + passed_back + written
    return sum(min(golden.inputs[name].nbytes for name in group) for group in groups) + passed_back + written


def _stored(golden: Golden, output: str) -> int:
    """The bytes of an output."""
    return prod(golden.case.output_shape(output)) * np.dtype(golden.case.outputs[output]).itemsize
