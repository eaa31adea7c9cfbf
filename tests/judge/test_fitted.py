"""Mistakes with a number of their own are found in a port's numbers, and nothing is found where there is none."""

from collections.abc import Callable
from functools import cache
from math import prod

import numpy as np
import pytest

from conformance.judging.compare import Verdict, compare
from conformance.judging.fitting.fitted import fitted
from conformance.judging.fitting.found_rows import Sums, Times
from conformance.judging.simulation import numbers
from conformance.mistakes import MISTAKES
from conformance.numbers.rounding import store
from conformance.ops.cases import select
from conformance.ops.golden import golden
from conformance.ops.norms.anatomy import true_norm
from conformance.ops.norms.cases import NormCase

Array = np.ndarray
Numbers = dict[str, Array]
Port = Callable[[NormCase, Numbers], Numbers]
"""What becomes of an honest implementation's outputs, in float64."""

BY_ID = {mistake.id: mistake for mistake in MISTAKES}
NAMES = (
    "random",
    "rows_near_eps",
    "mean_30",
    "aligned_dy",
    "zero_rows",
    "nan_row",
    "width_2",
    "width_129",
    "rows_257",
    "rank_4",
)
DTYPES = ("float32", "bfloat16")


@cache
def cases(op: str) -> tuple[NormCase, ...]:
    """Some cases of an op, of several shapes."""
    found = (case for name in NAMES for dtype in DTYPES for case in select(f"{op}/*/{name}", dtype=dtype))
    return tuple(case for case in found if isinstance(case, NormCase) and case.dialect.is_plain)


@cache
def honest(case: NormCase) -> Numbers:
    """An honest implementation's outputs in float32, before they are rounded to the dtype that is asked for."""
    with np.errstate(all="ignore"):
        outputs = true_norm(case, 0).in_compute_dtype().intervals("autograd")
        ends = {name: expected.placements[0](0.0)[0] for name, expected in outputs.items()}
        return {name: np.broadcast_to(end, case.output_shape(name)).astype(np.float64) for name, end in ends.items()}


def rounded(case: NormCase, made: Numbers) -> Numbers:
    return {name: store(array, case.outputs[name]).astype(np.float64) for name, array in made.items()}


def verdicts(op: str, port: Port) -> tuple[Verdict, ...]:
    judged: list[Verdict] = []
    for case in cases(op):
        with np.errstate(all="ignore"):
            made = {name: store(array, case.outputs[name]) for name, array in port(case, honest(case)).items()}
        judged.append(compare("port", golden(case), made, tuple(case.outputs)))
    return tuple(judged)


def said(op: str, port: Port) -> list[str]:
    return [mistake.sentence for mistake in fitted(verdicts(op, port), 0)]


def rows_of(case: NormCase) -> int:
    return prod(case.shape[:-1])


def times(output: str, factor: Callable[[NormCase], float]) -> Port:
    return lambda case, made: made | ({output: factor(case) * made[output]} if output in made else {})


def recounted(outputs: tuple[str, ...], some: Callable[[int], slice], more: int) -> Port:
    """Some rows are counted once more, or once less, in sums over the rows."""

    def port(case: NormCase, made: Numbers) -> Numbers:
        known = golden(case)
        dy = known.inputs["dy"].astype(np.float64)
        terms = {"dweight": dy * known.intermediates["x_hat"], "dbias": dy}
        changes = {name: more * terms[name].reshape(-1, case.shape[-1])[some(rows_of(case))].sum(0) for name in outputs}
        return made | {name: made[name] + change for name, change in changes.items()}

    return port


FACTORS: list[tuple[str, Callable[[NormCase], float], str]] = [
    ("dweight", lambda case: 0.25, "dweight is 1/4 of what it should be"),
    ("dbias", lambda case: -1.0, "dbias is -1 times what it should be"),
    ("dx", lambda case: 3.0, "dx is 3 times what it should be"),
    ("y", lambda case: 0.7071067811865476, "y is 0.7071 times what it should be"),
    ("dweight", rows_of, "dweight is R times what it should be for R rows"),
    ("dbias", lambda case: 1 / rows_of(case), "dbias is 1/R of what it should be for R rows"),
    ("dx", lambda case: case.shape[-1] / (case.shape[-1] - 1), "dx is n/(n - 1) times what it should be for n features"),
    ("dx", lambda case: 1 / case.shape[-1], "dx is 1/n of what it should be for n features"),
    ("y", lambda case: case.shape[-1] ** 0.5, "y is sqrt(n) times what it should be for n features"),
]


@pytest.mark.parametrize(("output", "factor", "sentence"), FACTORS, ids=[sentence for *_, sentence in FACTORS])
def test_a_factor_is_found(output, factor, sentence):
    assert said("layer_norm", times(output, factor)) == [sentence]


@pytest.mark.parametrize("k", [3.0, -5.0, 7.0])
def test_a_factor_of_what_is_rounded_already_is_found(k):
    """Rounded to bfloat16, multiplied, and rounded again."""

    def port(case: NormCase, made: Numbers) -> Numbers:
        return rounded(case, made) | ({"dx": k * rounded(case, made)["dx"]} if case.dtype == "bfloat16" else {})

    assert said("layer_norm", port) == [f"dx is {k:g} times what it should be"]


def test_a_factor_of_one_dtype_alone_is_found_there():
    port = times("dx", lambda case: 5.0 if case.dtype == "bfloat16" else 1.0)
    assert said("rms_norm", port) == ["dx is 5 times what it should be"]


def test_one_factor_of_two_outputs_is_one_finding():
    def port(case: NormCase, made: Numbers) -> Numbers:
        return made | {name: made[name] / 8 for name in ("dweight", "dbias")}

    assert said("layer_norm", port) == ["dweight and dbias are 1/8 of what they should be"]


def test_two_factors_of_two_outputs_are_two_findings():
    both = lambda case, made: times("dx", lambda case: 3.0)(case, times("dweight", lambda case: 0.25)(case, made))  # noqa: E731
    assert sorted(said("rms_norm", both)) == ["dweight is 1/4 of what it should be", "dx is 3 times what it should be"]


ROWS: list[tuple[Callable[[int], slice], int, str]] = [
    (lambda rows: slice(128, 256), -1, "lack rows 128 to 255"),
    (lambda rows: slice(2, None), -1, "lack the rows from 2 on"),
    (lambda rows: slice(rows // 4 * 4, None), -1, "lack the rows past the last multiple of 4"),
    (lambda rows: slice(-2, None), -1, "lack the last 2 rows"),
    (lambda rows: slice(0, -1), -1, "lack all rows but the last"),
    (lambda rows: slice(0, 2), 1, "have rows 0 to 1 twice"),
    (lambda rows: slice(128, 129), 1, "have row 128 twice"),
]


@pytest.mark.parametrize(("some", "more", "words"), ROWS, ids=[words for *_, words in ROWS])
def test_rows_are_found(some, more, words):
    assert said("layer_norm", recounted(("dweight", "dbias"), some, more)) == [
        f"dweight and dbias {words} (rows are counted from 0)"
    ]


def test_rows_of_one_output_are_found_alone():
    port = recounted(("dbias",), lambda rows: slice(1, 3), -1)
    assert said("layer_norm", port) == ["dbias lacks rows 1 to 2 (rows are counted from 0)"]


@pytest.mark.parametrize("output", ["y", "dx", "dweight"])
def test_what_is_found_explains_the_port(output):
    """The mistake's own intervals hold nearly all that the port returned, also where it multiplied what was rounded."""
    judged = verdicts("rms_norm", times(output, lambda case: 0.3))
    (found,) = fitted(judged, 0)
    for verdict in judged:
        for told in (told for told in verdict.outputs if told.output == output and isinstance(verdict.case, NormCase)):
            admitted = found.outputs(verdict.case, 0, "formula")[output].admits(told.actual)
            assert np.mean(admitted) > 0.97


def test_what_is_found_of_rows_explains_the_port():
    judged = verdicts("rms_norm", recounted(("dweight",), lambda rows: slice(2, None), -1))
    (found,) = fitted(judged, 0)
    for verdict in judged:
        (told,) = (told for told in verdict.outputs if told.output == "dweight")
        assert found.outputs(verdict.case)["dweight"].admits(told.actual).all()


def test_nothing_is_found_where_all_is_right():
    assert said("layer_norm", lambda case, made: made) == []


def test_nothing_is_found_in_noise():
    generator = np.random.Generator(np.random.PCG64(1))

    def noisy(case: NormCase, made: Numbers) -> Numbers:
        return {name: array * (1 + 0.02 * generator.standard_normal(array.shape)) for name, array in made.items()}

    assert said("layer_norm", noisy) == []


def test_nothing_is_found_where_one_case_is_off_by_another_factor():
    port = times("dx", lambda case: 3.0 if case.name == "random" else 2.5)
    assert said("rms_norm", port) == []


def test_nothing_is_found_where_rows_are_left_out_of_some_cases_only():
    port = recounted(("dbias",), lambda rows: slice(0, 2), -1)
    some = lambda case, made: port(case, made) if case.name in ("random", "mean_30") else made  # noqa: E731
    assert said("layer_norm", some) == []


INNOCENT = (
    "eps_outside_root",
    "projection_missing",
    "dx_without_rstd",
    "squares_in_storage_dtype",
    "rstd_in_bfloat16",
    "outputs_truncated",
    "weight_shifted",
    "tail_not_masked",
    "row_cut_at_32",
    "statistics_over_rows",
    "computed_in_storage_dtype",
    "dweight_of_x",
    "parameter_gradients_accumulated_in_storage_dtype",
    "other_order",
)


@pytest.mark.parametrize("id_", INNOCENT)
def test_nothing_is_found_in_mistakes_of_another_kind(id_):
    judged = [compare("port", golden(case), numbers(BY_ID[id_], case), tuple(case.outputs)) for case in cases("rms_norm")]
    assert any(verdict.status == "fail" for verdict in judged)
    assert fitted(judged, 0) == ()


def test_ranges_are_all_that_fit_and_no_other():
    """By trying every range."""
    generator = np.random.Generator(np.random.PCG64(2))
    terms = generator.integers(-2, 3, (12, 3)).astype(np.float64)  # small whole numbers: some ranges agree by chance
    partial = np.concatenate([np.zeros((1, 3)), np.cumsum(terms, axis=0)])
    counts: tuple[tuple[Times, int], ...] = ((0, -1), (2, 1))
    for counted, sign in counts:
        actual = terms.sum(0) + sign * terms[4:7].sum(0)
        every = [(a, b) for a in range(12) for b in range(a + 1, 13) if b - a < 12]
        fitting = [(a, b) for a, b in every if np.all(np.abs(terms.sum(0) + sign * terms[a:b].sum(0) - actual) <= 0.25)]
        assert (4, 7) in fitting
        assert sorted(Sums(actual, np.full(3, 0.25), partial).ranges(counted)) == fitting
