"""How a port is timed: when a call is done, by which clock, and what a copy takes."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

Step = Callable[[], Any]


class Clock:
    """What a port overrides to be timed right: how to wait, the clock of its device, and how the device copies."""

    def finish(self, made: Any) -> None:
        """Wait until what a step returned is computed, tensors in tuples and dictionaries; where calls return before that."""

    def timed(self, step: Step) -> tuple[Any, float, float]:
        """What a step returns, the seconds that it takes, and the CPU seconds of all threads of this process."""
        began, worked = time.perf_counter(), time.process_time()
        made = step()
        self.finish(made)
        return made, time.perf_counter() - began, time.process_time() - worked

    def copies(self, n_bytes: int) -> tuple[Step, ...]:
        """Ways to read half as many bytes and to write them elsewhere; here on one core, and on all."""
        source, target = np.ones(n_bytes // 2, np.uint8), np.ones(n_bytes // 2, np.uint8)
        cores = os.cpu_count() or 1
        pool, parts = ThreadPoolExecutor(cores), (np.array_split(target, cores), np.array_split(source, cores))
        return partial(np.copyto, target, source), lambda: list(pool.map(np.copyto, *parts))
