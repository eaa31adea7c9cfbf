"""An eps that is not the one asked for is found in a port's numbers, and nothing is found where there is none."""

from collections.abc import Callable, Sequence
from functools import cache
from math import log2

import numpy as np
import pytest

from conformance.judging.compare import Verdict, compare
from conformance.judging.diagnose import diagnose
from conformance.judging.fitting.fitted import fitted
from conformance.judging.simulation import numbers
from conformance.mistakes import MISTAKES
from conformance.mistakes.mistake import Mistake, Of
from conformance.numbers.rounding import store
from conformance.ops.cases import select
from conformance.ops.golden import golden
from conformance.ops.norms.cases import NormCase

Array = np.ndarray
Eps = Callable[[NormCase], float]
"""What a port makes of the eps that a case asks for."""
Port = Callable[[NormCase], dict[str, Array]]

BY_ID = {mistake.id: mistake for mistake in MISTAKES}
NAMES = ("random", "rows_near_eps", "columns_near_eps", "eps_1e-6", "eps_1e-8", "eps_1e-12", "mean_30", "zero_rows", "exact")
DTYPES = ("float32", "bfloat16", "float16")
ROW_NORMS = ("rms_norm", "layer_norm")


@cache
def cases(op: str, dtype: str) -> tuple[NormCase, ...]:
    """Some cases of an op, of every eps that is asked for."""
    found = (case for name in NAMES for case in select(f"{op}/*/{name}", dtype=dtype))
    return tuple(case for case in found if isinstance(case, NormCase))


def altered(eps: Eps) -> Mistake:
    return Mistake("altered", "", {"eps": Of(lambda norm: eps(norm.case))}, "")


@cache
def honest(case: NormCase) -> dict[str, Array]:
    return numbers(altered(lambda case: case.eps), case)


def with_eps(eps: Eps, outputs: Sequence[str] = ()) -> Port:
    """A port with such an eps in everything, or in some outputs alone."""
    mistake = altered(eps)

    def port(case: NormCase) -> dict[str, Array]:
        made = numbers(mistake, case)
        return honest(case) | {name: made[name] for name in outputs} if outputs else made

    return port


def verdicts(port: Port, op: str, dtype: str) -> list[Verdict]:
    return [compare("port", golden(case), port(case), tuple(case.outputs)) for case in cases(op, dtype)]


def of_eps(judged: Sequence[Verdict]) -> list[Mistake]:
    return [mistake for mistake in fitted(judged, 0) if mistake.id.startswith("eps_")]


def found(port: Port, op: str = "rms_norm", dtype: str = "float32") -> list[tuple[str, str]]:
    return [(mistake.id, mistake.sentence) for mistake in of_eps(verdicts(port, op, dtype))]


WRONG: dict[str, tuple[Eps, str]] = {
    "eps_of_0.0003": (lambda case: 3e-4, "eps is 3e-4, whatever is asked for"),
    "eps_of_0.00032": (lambda case: 3.2e-4, "eps is 3.2e-4, whatever is asked for"),
    "eps_of_2e-06": (lambda case: 2e-6, "eps is 2e-6, whatever is asked for"),
    "eps_of_3.051758e-05": (lambda case: 2**-15, "eps is 2^-15, whatever is asked for"),
    "eps_at_least_0.0002": (lambda case: max(case.eps, 2e-4), "eps is at least 2e-4"),
    "eps_at_most_3e-07": (lambda case: min(case.eps, 3e-7), "eps is at most 3e-7"),
    "eps_times_3": (lambda case: 3 * case.eps, "eps is 3 times what it should be"),
    "eps_times_n": (lambda case: case.shape[-1] * case.eps, "eps is n times what it should be for n features"),
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("op", ROW_NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("id_", WRONG)
def test_an_eps_is_found(id_, dtype, op):
    eps, sentence = WRONG[id_]
    assert found(with_eps(eps), op, dtype) == [(id_, sentence)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("id_", ["eps_of_0.0003", "eps_of_2e-06", "eps_at_least_0.0002", "eps_times_3"])
def test_an_eps_of_y_alone_is_found(id_, dtype):
    eps, sentence = WRONG[id_]
    assert found(with_eps(eps, ("y",)), "layer_norm", dtype) == [(id_, sentence)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("id_", ["eps_of_0.0003", "eps_of_2e-06", "eps_at_least_0.0002", "eps_times_3"])
def test_an_eps_of_the_backward_pass_alone_is_found_there(id_, dtype):
    eps, sentence = WRONG[id_]
    port = with_eps(eps, ("dx", "dweight"))
    assert found(port, "layer_norm", dtype) == [(f"{id_}_in_backward", f"in the backward pass {sentence}")]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_eps_of_batch_norm_is_found(dtype):
    assert [id_ for id_, _ in found(with_eps(lambda case: 3e-4), "batch_norm", dtype)] == ["eps_of_0.0003"]


def written_by_hand(case: NormCase) -> dict[str, Array]:
    """RMSNorm in float32, as one writes it down, with an eps that it clamps."""
    given = golden(case).inputs
    x, dy, weight = given["x"], given["dy"], given["weight"] + np.float32(case.dialect.weight_offset)
    eps = np.float32(max(case.eps, 5e-4))
    rstd = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    x_hat = x * rstd
    g = dy * weight
    dx = rstd * (g - x_hat * np.mean(g * x_hat, axis=-1, keepdims=True))
    return {"y": x_hat * weight, "dx": dx, "dweight": np.sum(dy * x_hat, axis=tuple(range(x.ndim - 1)))}


def test_an_eps_is_found_in_code_written_by_hand():
    assert found(written_by_hand) == [("eps_at_least_0.0005", "eps is at least 5e-4")]


def test_an_eps_is_found_to_as_many_digits_as_the_numbers_know():
    """In float32 five or so; what is found in bfloat16 is near."""
    port = with_eps(lambda case: 3.2171e-4)
    assert [id_ for id_, _ in found(port)] == ["eps_of_0.00032171"]
    ((id_, _),) = found(port, dtype="bfloat16")
    assert abs(log2(float(id_.removeprefix("eps_of_")) / 3.2171e-4)) < 0.005


def test_an_eps_of_one_dtype_alone_is_found_there():
    port = with_eps(lambda case: 3e-4 if case.dtype == "bfloat16" else case.eps)
    judged = [verdict for dtype in ("float32", "bfloat16") for verdict in verdicts(port, "rms_norm", dtype)]
    assert [mistake.id for mistake in of_eps(judged)] == ["eps_of_0.0003"]


@pytest.mark.parametrize("outputs", [("y",), ("dx", "dweight"), ("y", "dx", "dweight")], ids=",".join)
def test_what_is_found_is_the_diagnosis(outputs):
    """Alone, and of those outputs that have it."""
    (diagnosis,) = diagnose(verdicts(with_eps(lambda case: 3e-4, outputs), "rms_norm", "float32"), 0)
    assert diagnosis.mistake.id == ("eps_of_0.0003" if "y" in outputs else "eps_of_0.0003_in_backward")
    assert diagnosis.where == outputs
    assert diagnosis.outputs == diagnosis.failing


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("id_", ["eps_of_0.00032", "eps_times_3"])
def test_what_is_found_explains_the_port(id_, dtype):
    """The mistake's own intervals hold nearly all that the port returned."""
    judged = verdicts(with_eps(WRONG[id_][0]), "rms_norm", dtype)
    (mistake,) = of_eps(judged)
    for verdict in judged:
        expected = mistake.outputs(verdict.case, 0, "autograd")
        for told in verdict.outputs:
            assert np.mean(expected[told.output].admits(told.actual)) > 0.97


def test_what_is_found_in_the_backward_pass_leaves_y_as_it_is():
    judged = verdicts(with_eps(lambda case: 3e-4, ("dx", "dweight")), "rms_norm", "float32")
    (mistake,) = of_eps(judged)
    for verdict in judged:
        expected = mistake.outputs(verdict.case)
        assert all(np.mean(expected[told.output].admits(told.actual)) > 0.97 for told in verdict.outputs)


CATALOGUED = (
    "eps_1e-05",
    "eps_0.001",
    "eps_missing",
    "eps_twice",
    "eps_squared",
    "eps_in_the_sum",
    "eps_at_least_1e-05",
    "eps_of_storage_dtype",
    "eps_of_float32",
    "eps_missing_in_backward",
    "eps_1e-06_in_backward",
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("id_", CATALOGUED)
def test_what_the_catalogue_names_is_left_to_it(id_, dtype):
    judged = verdicts(lambda case: numbers(BY_ID[id_], case), "rms_norm", dtype)
    assert any(verdict.status == "fail" for verdict in judged)
    assert of_eps(judged) == []


OTHERS = (
    "eps_outside_root",
    "eps_clamps",
    "eps_after_rescale",
    "divides_by_n_minus_1",
    "weight_twice",
    "weight_shifted",
    "multiplies_by_root",
    "projection_missing",
    "statistics_over_rows",
    "padding_of_ones",
)
IN_HALF_PRECISION = (
    "outputs_truncated",
    "squares_truncated",
    "rstd_in_bfloat16",
    "squares_in_storage_dtype",
    "computed_in_storage_dtype",
)


@pytest.mark.parametrize(
    ("id_", "dtype"),
    [(id_, dtype) for id_ in OTHERS for dtype in ("float32", "bfloat16")] + [(id_, "bfloat16") for id_ in IN_HALF_PRECISION],
)
def test_nothing_is_found_in_mistakes_of_another_kind(id_, dtype):
    judged = verdicts(lambda case: numbers(BY_ID[id_], case), "rms_norm", dtype)
    assert any(verdict.status == "fail" for verdict in judged)
    assert of_eps(judged) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ROW_NORMS)
def test_nothing_is_found_where_all_is_right(op, dtype):
    assert found(honest, op, dtype) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_is_found_in_noise(dtype):
    generator = np.random.Generator(np.random.PCG64(1))

    def noisy(case: NormCase) -> dict[str, Array]:
        exact = {name: array.astype(np.float64) for name, array in honest(case).items()}
        noise = {name: 1 + 0.02 * generator.standard_normal(array.shape) for name, array in exact.items()}
        return {name: store(exact[name] * noise[name], case.outputs[name]) for name in exact}

    assert found(noisy, "layer_norm", dtype) == []


def test_nothing_is_found_where_two_cases_of_one_eps_have_different_ones():
    port = with_eps(lambda case: 3e-4 if case.name in ("rows_near_eps", "eps_1e-6") else 5e-4)
    assert found(port) == []
