"""A test that is marked `one_in(n)` is asked a share of its parameter sets, always the same, and all if all are wanted."""

from pathlib import Path

import pytest

CONFTEST = (Path(__file__).parents[1] / "conftest.py").read_text(encoding="utf-8")
pytest_plugins = ["pytester"]

TESTS = """
import pytest

@pytest.mark.one_in(4)
@pytest.mark.parametrize("a", range(5))
@pytest.mark.parametrize("b", range(2))
def test_sampled(a, b): ...

@pytest.mark.one_in(4)
def test_alone(): ...

@pytest.mark.parametrize("a", range(3))
def test_whole(a): ...
"""


@pytest.fixture(autouse=True)
def _a_folder_of_tests(pytester):
    pytester.makeconftest(CONFTEST)
    pytester.makeini("[pytest]\nmarkers = one_in(n): a sample")
    pytester.makepyfile(TESTS)


def names(pytester, *arguments: str) -> list[str]:
    """Of the tests that are asked."""
    lines = pytester.runpytest_inprocess("--collect-only", "-q", *arguments).outlines
    return [line.partition("::")[2] for line in lines if "::" in line]


def test_a_share_is_asked_rounded_up_and_what_is_not_marked_is_asked_whole(pytester):
    asked = names(pytester)
    assert sum(name.startswith("test_sampled") for name in asked) == 3
    assert {name for name in asked if not name.startswith("test_sampled")} == {
        "test_alone",
        *(f"test_whole[{a}]" for a in range(3)),
    }
    everything = names(pytester, "--every")
    assert len(everything) == 10 + 1 + 3
    left_out = next(name for name in everything if name not in asked)
    [file] = pytester.path.glob("test_*.py")
    assert names(pytester, f"{file.name}::{left_out}") == [left_out]
