"""A case that is asked many times, on inputs that differ from call to call: what every call took, and one of the answers.

What a kernel could win by without computing is taken away. Each call finds other numbers in the memory where the last one
found its own. An answer is read as soon as the call returns; then all that was read and written is overwritten. Nothing
tells a call that its answer is judged.
"""

import time
from math import prod
from typing import Any

import numpy as np

from conformance.port.base import Port, bits
from conformance.port.calling import named
from conformance.port.clock import Step
from conformance.port.protocol import Call, Part, Repeat, Repeated

Array = np.ndarray


def repeated(port: Port, repeat: Repeat, tensors: dict[str, Array]) -> Repeated:
    """Time every call. The tensors of each set of inputs are named by its number, `0.x`. Raises what the port raises."""
    call = repeat.call
    sets = [{name.partition(".")[2]: tensors[name] for name in tensors if name.startswith(f"{n}.")} for n in range(repeat.sets)]
    memory = {name: np.empty_like(array) for name, array in sets[0].items()}
    copies = port.copies(repeat.n_bytes)
    result = Repeated()
    shape = memory["x"].shape
    for number, seed in enumerate(repeat.seeds):
        values = {name: shuffled(array, order_of(seed, shape), shape) for name, array in sets[number % len(sets)].items()}
        for name, array in values.items():
            np.copyto(memory[name], array)
        given = {name: port.to_tensor(array) for name, array in memory.items()}
        step = _step(port, call, given, repeat.part)
        result.copy_seconds.append(min(port.timed(copy)[1] for copy in copies))
        (y, gradients), seconds, cpu_seconds = port.timed(step)
        began = time.perf_counter()
        outputs = {name: port.to_numpy(tensor) for name, tensor in named(call, given, y, gradients).items()}
        read = time.perf_counter()
        held = {name: port.held(tensor) for name, tensor in given.items()}
        result.read_seconds.append(read - began)
        result.plain_read_seconds.append(time.perf_counter() - read)
        result.seconds.append(seconds)
        result.cpu_seconds.append(cpu_seconds)
        result.overwrote += [name for name, array in values.items() if bits(held[name]) != bits(array)]
        if number == repeat.kept:
            result.outputs = {name: output.copy() for name, output in outputs.items()}
        for array in (*outputs.values(), *memory.values()):
            _poison(array)
    return result


def order_of(seed: int, shape: tuple[int, ...]) -> Array:
    """An order of the rows of a tensor of this shape."""
    return np.random.default_rng(seed).permutation(prod(shape[:-1]))


def shuffled(array: Array, order: Array, shape: tuple[int, ...]) -> Array:
    """A tensor with its rows in this order, if it has those of x, which has this shape; a parameter as it is."""
    if array.shape[:-1] != shape[:-1] or array.ndim < 2:
        return array
    return array.reshape(-1, array.shape[-1])[order].reshape(array.shape)


def _step(port: Port, call: Call, given: dict[str, Any], part: Part) -> Step:
    """What is timed, which returns y and the gradients: one of them, or both."""
    function, inputs, dy, constants = port.arguments(call, given)
    if part == "forward":
        return lambda: (port.evaluate(function, inputs, constants), ())
    if part == "both":
        return lambda: port.vjp(function, inputs, dy, constants)
    _, gradients = port.pullback(function, inputs, dy, constants)
    return lambda: (None, gradients())


def _poison(array: Array) -> None:
    """Fill a memory with NaN, where it can be written to: what an earlier call left there is no answer to the next."""
    if array.flags.writeable and array.flags.c_contiguous:
        array.reshape(-1).view(np.uint8)[...] = 0xFF
