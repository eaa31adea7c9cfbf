"""What fails without a name is told by its shape: which cases, and where in them."""

from collections.abc import Callable

import numpy as np
import pytest

from conformance.judging.compare import Verdict, compare
from conformance.numbers.rounding import HALF, store
from conformance.ops.cases import select
from conformance.ops.golden import golden
from conformance.ops.norms.cases import NormCase
from conformance.question.case import is_split
from conformance.report.report import Report
from tests.runner.test_report import report

Array = np.ndarray
Spoil = Callable[[NormCase, dict[str, Array]], None]


def reported(pattern: str, spoil: Spoil) -> Report:
    """The report on a port whose numbers are spoilt in place."""
    return report(*(verdict(case, spoil) for case in select(pattern)))


def verdict(case: NormCase, spoil: Spoil) -> Verdict:
    expected = golden(case)
    outputs = {
        name: store(np.broadcast_to(output.value, case.output_shape(name)).copy(), output.dtype)
        for name, output in expected.outputs.items()
    }
    spoil(case, outputs)
    return compare("port", expected, outputs, tuple(case.outputs))


def spoilt(shape: Callable[[tuple[int, ...]], bool], place: tuple[slice | int, ...], by: float) -> Spoil:
    def spoil(case: NormCase, outputs: dict[str, Array]) -> None:
        if shape(case.shape):
            outputs["y"][place] += by

    return spoil


def not_contiguous(case: NormCase, outputs: dict[str, Array]) -> None:
    if case.layout in ("permuted", "sliced", "strided"):
        outputs["dx"][...] += np.where(np.arange(case.shape[-1]) % 3, 0.7, -0.3)


def any_(shape: tuple[int, ...]) -> bool:
    return True


SAID = [
    (spoilt(any_, (..., 0), 7.25), "it fails only in feature 0"),
    (spoilt(any_, (..., -1), -7.25), "it fails only in the last feature"),
    (spoilt(lambda shape: shape[-1] % 4 != 0, np.s_[...], 7.25), "it fails only where the width is no multiple of 4"),
    (spoilt(lambda shape: shape[-1] > 64, np.s_[...], 7.25), "it fails only where the width is more than 33"),
    (
        spoilt(lambda shape: shape[-1] > 64, np.s_[..., 64:], 7.25),
        "only where the width is more than 33, only in features from 64 on",
    ),
    (not_contiguous, "it fails only where x is not contiguous"),
]


@pytest.mark.parametrize(("spoil", "said"), SAID, ids=[said for _, said in SAID])
def test_failures_without_a_name_are_told_by_their_shape(spoil, said):
    cases = "rms_norm/either_order/float32/[!nirzce]*"
    (cause,) = [cause for cause in reported(cases, spoil).causes if cause.evidence is None]
    assert said in cause.what


def test_split_arrays_are_told_apart():
    def spoil(case: NormCase, outputs: dict[str, Array]) -> None:
        if is_split(case.layout):
            outputs["dx"][...] += np.where(np.arange(case.shape[-1]) % 3, 0.7, -0.3)

    (cause,) = reported("rms_norm/either_order/float32/[rsw][ohi]*", spoil).causes
    assert "it fails only where arrays are split over devices" in cause.what


def test_the_order_of_casts_is_not_blamed_where_no_other_order_was_asked():
    def spoil(case: NormCase, outputs: dict[str, Array]) -> None:
        for output in outputs.values() if case.dtype in HALF else ():
            output[...] += (0.5 * (np.arange(case.shape[-1]) % 3)).astype(output.dtype)

    (cause,) = reported("rms_norm/[ec]*/[bf]*[62]/ran*", spoil).causes
    assert "it fails only where x is of half precision" in cause.what


def test_nothing_is_said_that_a_passing_case_shares():
    """Half of the contiguous cases fail, and all in places of their own."""

    def spoil(case: NormCase, outputs: dict[str, Array]) -> None:
        if case.name in ("random", "std_0.05", "mean_30"):
            outputs["y"].reshape(-1)[len(case.name) :: 5] += 7.25

    (cause,) = reported("rms_norm/either_order/float32/[!nirzce]*", spoil).causes
    assert "it fails" not in cause.what


def test_a_place_is_not_said_where_everything_is_wrong():
    (cause,) = reported("rms_norm/either_order/float32/[sr]*", spoilt(any_, np.s_[...], 7.25)).causes
    assert " in " not in cause.what.partition("no known mistake explains it")[2]
