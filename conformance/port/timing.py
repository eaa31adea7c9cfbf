"""A case that is asked many times, on inputs that differ from call to call: what every call took, and some of the answers.

What a port could win by is taken away. Each call finds new numbers in the memory where it found others before. Its answer is
read as soon as it returns, and what it read and wrote is then overwritten. No op is told which answers are judged.
"""

import time
from typing import Any

import numpy as np

from conformance.port.base import Port
from conformance.port.clock import Step
from conformance.port.protocol import Call, Repeat, Repeated

Array = np.ndarray


def repeated(port: Port, repeat: Repeat, tensors: dict[str, Array]) -> Repeated:
    """Time every call; the tensors of each set of inputs are named by its number, `0.x`. Raises what the port raises."""
    call = repeat.call
    sets = [_of(tensors, number) for number in range(repeat.sets)]
    memory = {name: np.empty_like(array) for name, array in sets[0].items()}
    timed = Repeated()
    with port.copiers(memory["x"]) as copiers:
        for number, shift in enumerate(repeat.shifts):
            values = {n: rolled(array, shift, memory["x"].shape) for n, array in sets[number % len(sets)].items()}
            for name, array in values.items():
                np.copyto(memory[name], array)
            timed.copy_seconds.append(min(port.timed(copy)[1] for copy in copiers))
            given = {name: port.to_tensor(array) for name, array in memory.items()}
            step = _step(port, call, given, repeat.part)
            made, seconds, cpu_seconds = port.timed(step)
            outputs, first, again = _read(port, port.named(call, given, *_split(made, repeat.part)))
            timed.seconds.append(seconds)
            timed.cpu_seconds.append(cpu_seconds)
            timed.first_read_seconds.append(first)
            timed.next_read_seconds.append(again)
            if number in repeat.kept:
                timed.outputs |= {f"{number}.{name}": output.copy() for name, output in outputs.items()}
                timed.overwrote |= {n for n, array in values.items() if port.to_numpy(given[n]).tobytes() != array.tobytes()}
            for array in (*outputs.values(), *memory.values()):
                _poison(array)
    return timed


def rolled(array: Array, shift: int, shape: tuple[int, ...]) -> Array:
    """The rows of a tensor that has those of x, of the shape given, moved on by so many; a parameter as it is."""
    if array.shape[:-1] != shape[:-1] or array.ndim < 2:
        return array
    return np.roll(array.reshape(-1, array.shape[-1]), shift, axis=0).reshape(array.shape)


def _of(tensors: dict[str, Array], number: int) -> dict[str, Array]:
    """One set of inputs."""
    return {name.partition(".")[2]: array for name, array in tensors.items() if name.partition(".")[0] == str(number)}


def _step(port: Port, call: Call, given: dict[str, Any], part: str) -> Step:
    """What is timed: y alone, the gradients alone, or both."""
    function, inputs, dy, constants = port.arguments(call, given)
    if part == "forward":
        return lambda: port.evaluate(function, inputs, constants)
    if part == "both":
        return lambda: port.vjp(function, inputs, dy, constants)
    return port.pullback(function, inputs, dy, constants)[1]


def _split(made: Any, part: str) -> tuple[Any, tuple]:
    """What a step returned, as the op's outputs and the gradients."""
    return {"forward": lambda: (made, ()), "both": lambda: made, "backward": lambda: (None, made)}[part]()


def _read(port: Port, made: dict[str, Any]) -> tuple[dict[str, Array], float, float]:
    """The outputs, and the seconds to read them for the first time, when a lazy one is computed, and once more."""
    began = time.perf_counter()
    outputs = {name: port.to_numpy(tensor) for name, tensor in made.items()}
    first = time.perf_counter()
    for tensor in made.values():
        port.to_numpy(tensor)
    return outputs, first - began, time.perf_counter() - first


def _poison(array: Array) -> None:
    """Fill a memory with NaN, where it may be written to: what an earlier call left there is no answer to the next."""
    if array.flags.writeable and array.flags.c_contiguous:
        array.reshape(-1).view(np.uint8)[...] = 0xFF
