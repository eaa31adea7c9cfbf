"""Two steps timed in turns, phase by phase, so that what slows the machine for a while slows both."""

import gc
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import numpy as np
import torch

from studies.figures import Array
from studies.norms.step import Step

PHASES = ("forward", "backward", "step")


def take_turns(one: Step, other: Step, rounds: int, clock: Callable[[], float]) -> tuple[Array, Array]:
    """Milliseconds [rounds, phases] of either, neighbours in time; the first of every other round is the other's."""
    for step in (one, other):
        step()  # compiled, caches filled, AdamW's moments there
    times: tuple[list[list[float]], list[list[float]]] = ([], [])
    with _undisturbed():
        for number in range(rounds):
            turns = list(zip((one, other), times, strict=True))
            for step, its in turns if number % 2 == 0 else reversed(turns):
                its.append(_phases(step, clock))
    return np.array(times[0]), np.array(times[1])


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds: on a CPU those in which this thread computed, which others do not lengthen by taking the core from it."""
    if device.type == "cpu":
        return time.thread_time

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised


@contextmanager
def _undisturbed() -> Generator[None]:
    """As timeit does it: what is left over is collected before or after."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _phases(step: Step, clock: Callable[[], float]) -> list[float]:
    """Of forward, backward, and all of a step."""
    began = clock()
    y = step.forward()
    forwarded = clock()
    step.backward(y)
    del y
    backwarded = clock()
    step.update()
    ended = clock()
    return [1e3 * (forwarded - began), 1e3 * (backwarded - forwarded), 1e3 * (ended - began)]
