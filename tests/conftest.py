"""What every test needs: that what a port of JAX sets in its process does not outlive the test, and devices to split over.

And what makes a run short: of a test that is marked `one_in(n)`, one parameter set in n is asked, unless all are wanted.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from zlib import crc32

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every", action="store_true", help="ask every parameter set of the tests that are marked one_in(n)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not in the sample, which a hash of the names chooses: no dtype or op is favoured by its place."""
    sets: dict[tuple[str, int], list[pytest.Item]] = defaultdict(list)
    for item in items:
        if mark := item.get_closest_marker("one_in"):
            sets[item.nodeid.partition("[")[0], mark.args[0]].append(item)
    left_out = set[pytest.Item]()
    for (_, share), alike in sets.items():
        alike.sort(key=lambda item: crc32(item.name.encode()))
        left_out |= set(alike[-(-len(alike) // share) :])
    if left_out and not config.getoption("--every"):
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
