"""What is dear to compute, kept in memory while the program runs: the latest results, up to so many bytes."""

import gc
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import wraps
from threading import Lock
from types import FunctionType, ModuleType
from typing import Any, ParamSpec, TypeVar

import numpy as np

OBJECT = 128  # bytes that an object takes beside its array, more or less
ALONE = str, int, float, type, ModuleType  # what leads to nothing, or to what is there anyway

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Memory:
    """Results of functions, by their arguments; where all would take more than `limit` bytes, the oldest ones go."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._results: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = Lock()

    def keeps(self, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """The function, which computes nothing anew whose result is kept. Its arguments are hashable."""

        @wraps(function)
        def kept(*args: Arguments.args, **named: Arguments.kwargs) -> Result:
            key = (function, args, tuple(named.items()))
            with self._lock:
                if key in self._results:
                    self._results.move_to_end(key)
                    return self._results[key][0]
            result = function(*args, **named)
            self._keep(key, result)
            return result

        return kept

    def _keep(self, key: Hashable, result: Any) -> None:
        size = bytes_of(result)
        with self._lock:
            if size > self._limit or key in self._results:
                return
            self._results[key] = result, size
            self._held += size
            while self._held > self._limit:
                _, (_, freed) = self._results.popitem(last=False)
                self._held -= freed


def bytes_of(result: Any) -> int:
    """What all that a result leads to takes, each object once: arrays, and the functions that hold some."""
    arrays, seen, left = 0, set[int](), [result]
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, np.ndarray):
            arrays += each.nbytes if each.base is None else 0
            left.append(each.base)
        elif isinstance(each, FunctionType):  # not its globals, which are there anyway
            left += (cell.cell_contents for cell in each.__closure__ or ())
        elif not isinstance(each, ALONE):
            left += gc.get_referents(each)
    return arrays + OBJECT * len(seen)
