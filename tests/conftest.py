"""What every test needs: that what a port of JAX sets in its process does not outlive the test, and devices to split over."""

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")  # before JAX is imported, which then has as many

SET_BY_A_PORT = ("jax_enable_x64", "jax_disable_jit")


def set_in_jax() -> dict[str, Any]:
    """The values of what a port sets; JAX's own at first, where it is not imported yet."""
    jax = sys.modules.get("jax")
    return {name: bool(jax and getattr(jax.config, name)) for name in SET_BY_A_PORT}


@pytest.fixture(autouse=True)
def jax_is_left_as_it_was() -> Iterator[None]:
    before = set_in_jax()
    yield
    if set_in_jax() != before:
        for name, value in before.items():
            sys.modules["jax"].config.update(name, value)
