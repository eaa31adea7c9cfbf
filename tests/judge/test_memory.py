"""What is kept in memory is what was computed, the latest results, and never more bytes than said."""

import numpy as np

from conformance.numbers.memory import OBJECT, Memory, bytes_of

SIZE = 10_000


def asked_of(memory: Memory):
    """A function that returns an array of SIZE bytes, in a closure as a golden's are, and what it was asked, in order."""
    asked = []

    @memory.keeps
    def compute(number: int, scale: float = 1.0):
        asked.append((number, scale))
        array = np.full(SIZE // 8, number * scale)
        return {"made": lambda: array}

    return compute, asked


def test_what_is_kept_is_computed_once():
    compute, asked = asked_of(Memory(4 * SIZE))
    assert compute(1) is compute(1)
    assert compute(1, scale=2.0)["made"]()[0] == 2.0
    assert compute(1, scale=3.0)["made"]()[0] == 3.0
    assert asked == [(1, 1.0), (1, 2.0), (1, 3.0)]


def test_the_one_that_was_asked_for_longest_ago_goes():
    compute, asked = asked_of(Memory(3 * SIZE))
    for number in (1, 2, 1, 3, 1, 2):
        compute(number)
    assert [number for number, _ in asked] == [1, 2, 3, 2]


def test_what_is_larger_than_all_that_may_be_kept_is_not_kept():
    compute, asked = asked_of(Memory(SIZE))
    compute(1)
    compute(1)
    assert len(asked) == 2


def test_functions_share_one_limit():
    memory = Memory(3 * SIZE)
    (one, asked), (other, _) = asked_of(memory), asked_of(memory)
    one(1)
    other(1)
    other(2)
    one(1)
    assert [number for number, _ in asked] == [1, 1]


def test_an_array_is_counted_once_and_whole():
    array = np.zeros(SIZE // 8)
    assert SIZE <= bytes_of([array, array[:1], {"again": array}]) <= SIZE + 10 * OBJECT
