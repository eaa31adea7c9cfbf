"""BatchNorm under the judge: what is asked, what honest arithmetic of either kind gives, and what is told of a mistake."""

import numpy as np
import pytest

from conformance.judging.compare import compare
from conformance.judging.diagnose import diagnose
from conformance.judging.simulation import numbers
from conformance.mistakes import MISTAKES
from conformance.numbers.rounding import FORMATS, HALF, store
from conformance.ops.cases import select
from conformance.ops.golden import golden
from conformance.ops.norms.batch_norm import BATCH_NORM_CASES, RUNNING

Array = np.ndarray
SEEDS = (0, 1, 2)
of_every_case = pytest.mark.parametrize("case", BATCH_NORM_CASES, ids=lambda case: case.id)


def widened(case, given: dict[str, Array]) -> dict[str, Array]:
    """The inputs in the dtype that is computed in; a parameter that is absent is one that does nothing."""
    dtype, d = FORMATS[case.dtype].compute_dtype, case.shape[-1]
    none = {"weight": np.ones(d, dtype), "bias": np.zeros(d, dtype)}
    return none | {name: array.astype(dtype) for name, array in given.items()}


def folded(case, given: dict[str, Array]) -> Array:
    """Evaluation as runtimes have it, where the norm disappears in what is before it: x·α + β."""
    g = widened(case, given)
    alpha = g["weight"] / np.sqrt(g["running_var"] + g["running_var"].dtype.type(case.eps))
    return g["x"] * alpha + (g["bias"] - g["running_mean"] * alpha)


def moved(case, given: dict[str, Array]) -> tuple[Array, Array]:
    """The running statistics as (1 − m)·old + m·new, from sums over the rows, one after the other."""
    g = widened(case, given)
    share, rows = g["x"].dtype.type(case.momentum), g["x"].reshape(-1, case.shape[-1])
    count = g["x"].dtype.type(len(rows))
    mean = np.add.accumulate(rows)[-1] / count
    var = np.add.accumulate(np.square(rows - mean))[-1] / count * g["x"].dtype.type(case.correction(len(rows)))
    return (1 - share) * g["running_mean"] + share * mean, (1 - share) * g["running_var"] + share * var


@of_every_case
def test_what_is_asked(case):
    """The parameters' dtype is that of the statistics; the running ones are asked for in training alone."""
    parameters, running = FORMATS[case.dtype].compute_dtype, RUNNING if case.training else ()
    expected = {"y": case.dtype} | dict.fromkeys(running, parameters) | {"dx": case.dtype}
    if case.weight != "absent":
        expected |= {"dweight": parameters, "dbias": parameters}
    assert case.outputs == expected
    assert case.made == ("y", *running)
    assert {"x", "dy", *RUNNING} <= golden(case).inputs.keys()
    assert all(golden(case).inputs[name].dtype.name == parameters for name in RUNNING)
    assert case.id == f"batch_norm/{case.variant}/{case.dtype}/{case.name}"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_folded_evaluation_conforms(seed):
    """In float32 it is not the golden's: x·α and β cancel at a mean of 300, and the tolerance knows."""
    for case in select("batch_norm/evaluation/*"):
        expected = golden(case, seed)
        made = {"y": store(folded(case, expected.inputs).astype(np.float64), case.dtype)}
        verdict = compare("folded", expected, made, ("y",))
        assert verdict.status == "pass", case.id


@pytest.mark.parametrize("seed", SEEDS)
def test_running_statistics_moved_by_hand_conform(seed):
    for case in select("batch_norm/training*"):
        if case.dtype in HALF or case.name == "nan_row":
            continue
        expected = golden(case, seed)
        verdict = compare("by hand", expected, dict(zip(RUNNING, moved(case, expected.inputs), strict=True)), RUNNING)
        assert verdict.status == "pass", case.id


def test_nan_stays_with_its_feature():
    for case in select("batch_norm/*/nan_row"):
        for name, output in golden(case).outputs.items():
            of_features = np.isnan(output.value).reshape(-1, 33).any(axis=0)
            assert np.flatnonzero(of_features).tolist() in ([1], []), (case.id, name)
        assert np.isnan(golden(case).outputs["y"].value).sum() == (6 if case.training else 1)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("mistake", [m for m in MISTAKES if m.ops == ("batch_norm",)], ids=lambda mistake: mistake.id)
def test_its_own_mistakes_are_named(mistake):
    """From the numbers of all small cases of a dtype that can show it."""
    dtype = next(dtype for dtype in ("float32", "bfloat16") if not mistake.hidden_in("batch_norm", dtype))
    cases = [case for case in select(f"batch_norm/*/{dtype}/*") if case.has_fixture]
    verdicts = [compare("port", golden(case), numbers(mistake, case), tuple(case.outputs)) for case in cases]
    [diagnosis] = diagnose(tuple(verdicts), seed=0)
    assert diagnosis.mistake is mistake
    assert diagnosis.agreeing == diagnosis.judged
