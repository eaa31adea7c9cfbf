"""How a port times itself: when a call is done, by which clock, and what a copy takes."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

Step = Callable[[], Any]


class Clock:
    """What a port may override to be timed: how to wait, the clock of its device, and how fast the device copies."""

    def finish(self, made: Any) -> None:
        """Wait until what a call returned is computed; for a framework that returns before it is."""

    def timed(self, step: Step) -> tuple[Any, float, float]:
        """What a step returns, and the seconds and CPU seconds that it took; those of all threads of the process."""
        began, worked = time.perf_counter(), time.process_time()
        made = step()
        self.finish(made)
        return made, time.perf_counter() - began, time.process_time() - worked

    @contextmanager
    def copiers(self, array: np.ndarray) -> Iterator[tuple[Step, ...]]:
        """Steps that each copy so many bytes; the fastest says what the device reaches. Here, on one core and on all."""
        source, target = (each.reshape(-1).view(np.uint8) for each in (array, np.empty_like(array)))
        cores = os.cpu_count() or 1
        pieces = [slice(*ends) for ends in np.linspace(0, source.size, cores + 1).astype(int).repeat(2)[1:-1].reshape(-1, 2)]
        with ThreadPoolExecutor(cores) as pool:

            def copy(piece: slice) -> None:
                target[piece] = source[piece]

            yield partial(np.copyto, target, source), lambda: list(pool.map(copy, pieces))
