"""What ranks do wrong among themselves: made where an axis is split, seen there, and nowhere else."""

import numpy as np
import pytest

from conformance.mistakes.ranks import mistakes_among
from conformance.ops.cases import CASES
from conformance.ops.golden import golden
from conformance.ops.norms.anatomy import true_norm
from conformance.ops.norms.cases import NormCase
from conformance.ops.ranks import on_ranks
from conformance.ops.table import OPS

RANKS = 2  # with parts of 17 and 16 features, and of 3 and 2 rows
MISTAKES = mistakes_among(RANKS)
NORM_CASES = tuple(case for case in CASES if isinstance(case, NormCase))
WHOLE = tuple(case for case in NORM_CASES if case.name == "random")
ASKED = ("random", "rows_0", "sharded_features")  # of which the last has even parts
PLAIN = (case for case in NORM_CASES if case.name in ASKED and (case.dialect.is_plain or case.op == "batch_norm"))
SPLIT = on_ranks(PLAIN, RANKS)


def seen_in(mistake, case):
    """Whether an output of a case is another by either way through the backward pass."""
    expected = golden(case, 0).outputs
    return any(
        not np.array_equal(made.value, expected[name].value, equal_nan=True) and not expected[name].admits(made.nearest).all()
        for backward in mistake.backwards(case, 0)
        for name, made in mistake.outputs(case, 0, backward).items()
    )


def test_each_has_an_id_and_a_sentence_of_its_own_that_says_who():
    for who in ("rank", "device"):
        among = mistakes_among(4, who)
        assert len({mistake.id for mistake in among}) == len(among)
        assert all(mistake.effect.endswith(".") and not mistake.sentence.endswith(".") for mistake in among)
    assert not any("rank" in mistake.sentence for mistake in mistakes_among(4, "device"))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.id)
def test_it_is_seen_where_its_axis_is_split_and_made_nowhere_else(mistake):
    assert all(mistake.alter(true := true_norm(case, 0)) is true for case in WHOLE[::8] if case.op in mistake.ops)
    asked = [case for case in SPLIT if case.op in mistake.ops and not case.name.startswith("rows_0")]
    assert len({case.layout for case in asked if seen_in(mistake, case)}) == 1


@pytest.mark.parametrize("case", [case for case in SPLIT if case.name == "rows_0.rows"], ids=lambda case: case.id)
def test_ranks_without_rows_are_no_trouble(case):
    """Warnings are errors here."""
    for mistake in MISTAKES:
        if mistake.can_be_made_in(case.op):
            assert mistake.outputs(case, 0)["y"].value.shape == case.shape


def test_they_are_of_the_ops_that_there_are():
    assert {op for mistake in MISTAKES for op in mistake.ops} <= set(OPS)
