"""The configs that autotuned Triton kernels choose from, and one of them for good."""

import gc
from itertools import zip_longest

from triton.runtime.autotuner import Autotuner

from impl_torch.kernels import interpreter


def described() -> tuple[str, ...]:
    """The configs, each in words: the first of every autotuned kernel that has been imported, then the second, and so on."""
    kernels = _autotuned()
    rows = zip_longest(*(kernel.configs for kernel in kernels))
    return tuple("; ".join(f"{_name(k)}: {config}" for k, config in zip(kernels, row, strict=True) if config) for row in rows)


def pin(number: int) -> None:
    """Leave every autotuned kernel that config alone, or its last, where it has fewer.

    Raises `IndexError` where no kernel has so many.
    """
    kernels = _autotuned()
    most = max((len(kernel.configs) for kernel in kernels), default=0)
    if number >= most:
        raise IndexError(f"there is no config {number}: of autotuned kernels the largest choice is of {most}")
    for kernel in kernels:
        kernel.configs = [kernel.configs[min(number, len(kernel.configs) - 1)]]


def _autotuned() -> list[Autotuner]:
    """The autotuned kernels, by name, but the interpreter's own."""
    found = [each for each in gc.get_objects() if issubclass(type(each), Autotuner)]  # `isinstance` asks the object
    return sorted((each for each in found if each.base_fn.__module__ != interpreter.__name__), key=_name)


def _name(kernel: Autotuner) -> str:
    return kernel.base_fn.__name__
