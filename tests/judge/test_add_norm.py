"""The norms that add a residual: the golden is the reference's, one number is right for a sum, and dialects are told apart."""

import re
from pathlib import Path

import numpy as np
import pytest

import reference
from conformance.judging.compare import compare
from conformance.judging.diagnose import diagnose
from conformance.judging.simulation import STYLES, play
from conformance.mistakes.norms import residual
from conformance.numbers.rounding import HALF, round_to
from conformance.ops.golden import golden
from conformance.ops.norms.add_norm import ADD_NORM_CASES
from conformance.port import Port
from conformance.question.dialects import SPOKEN_BY
from conformance.tools.scoreboard.identify import identify

Array = np.ndarray


@pytest.mark.parametrize("case", ADD_NORM_CASES, ids=lambda case: case.id)
def test_its_golden_is_that_of_the_reference(case):
    known = golden(case)
    exact = {name: tensor.astype(np.float64) for name, tensor in known.inputs.items()}
    cotangents = {name: exact.pop(name, None) for name in ("dy", "dresidual_out")}
    how = {"eps": case.eps, "weight_offset": float(case.weight_offset or 0)}
    if case.dialect.sum == "rounded":
        how["round_sum"] = lambda s: round_to(s, case.dtype)
    with np.errstate(all="ignore"):
        outputs = getattr(reference, case.op)(**exact, **how)._asdict()
        outputs |= {f"d{name}": each for name, each in _gradients(case.op, cotangents, exact, how).items()}
    for name, expected in known.outputs.items():
        if name == "residual_out":  # as it was before any rounding; the reference has it as the norm reads it
            np.testing.assert_array_equal(expected.value, exact["x"] + exact["residual"])
        else:
            np.testing.assert_allclose(expected.value, outputs[name], rtol=1e-12, atol=0)


def _gradients(op: str, cotangents: dict, exact: dict, how: dict) -> dict[str, Array]:
    gradients = getattr(reference, f"{op}_vjp")(**cotangents, **exact, **how)._asdict()
    return {name.removeprefix("d"): gradient for name, gradient in gradients.items()}


@pytest.mark.parametrize("style", STYLES)
def test_an_honest_implementation_passes(style):
    for case in ADD_NORM_CASES[STYLES.index(style) :: 3]:
        verdict = compare("honest", golden(case), play(case, 0, style), tuple(case.outputs))
        assert verdict.status == "pass", (case.id, verdict.message, verdict.outputs)


def test_one_number_is_right_for_a_sum():
    """Whether it is rounded at once or to float32 first."""
    for case in ADD_NORM_CASES:
        expected = golden(case).outputs["residual_out"]
        lower, upper = expected.interval()
        by_float32 = round_to(round_to(expected.value, "float32"), expected.dtype) if expected.dtype in HALF else lower
        np.testing.assert_array_equal(lower, upper)
        np.testing.assert_array_equal(lower, by_float32)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("mistake", residual.MISTAKES, ids=lambda mistake: mistake.id)
def test_a_mistake_is_named(mistake):
    verdicts = [
        compare("port", golden(case), play(case, 0, STYLES[1], mistake), tuple(case.outputs))
        for case in ADD_NORM_CASES
        if (case.op, case.dtype) == ("add_rms_norm", "bfloat16")
    ]
    first = diagnose(verdicts, seed=0)[0]
    assert first.mistake.id == mistake.id
    assert first.outputs >= 0.9 * first.failing


class Kernel(Port):
    """vLLM's fused_add_rms_norm: the sum is rounded, and the norm reads what was rounded."""

    dtypes = HALF
    orders = ("cast_then_scale",)
    sums = ("rounded",)
    weight_offsets = (0,)

    def add_rms_norm(self, x, residual, weight, *, eps):
        s = (x.astype(np.float32) + residual.astype(np.float32)).astype(x.dtype)
        return scaled(s.astype(np.float32), x.dtype, weight, eps), s


class Quantised(Kernel):
    """vLLM's layernorm_utils: the norm reads the float32 sum, which is rounded for storage only."""

    def add_rms_norm(self, x, residual, weight, *, eps):
        s = x.astype(np.float32) + residual.astype(np.float32)
        return scaled(s, x.dtype, weight, eps), s.astype(x.dtype)


def scaled(s: Array, dtype: np.dtype, weight: Array, eps: float) -> Array:
    x_hat = s / np.sqrt(np.mean(np.square(s), axis=-1, keepdims=True) + np.float32(eps))
    return (x_hat.astype(dtype).astype(np.float32) * weight.astype(np.float32)).astype(dtype)


@pytest.mark.parametrize(("port", "sum_"), [(Kernel, "rounded"), (Quantised, "unrounded")])
def test_which_of_two_functions_is_told(port, sum_):
    """Both are called fused add + RMSNorm, and both are asked for a rounded sum."""

    def ask(case):
        given = golden(case).inputs
        return port().add_rms_norm(given["x"], given["residual"], given["weight"], eps=case.eps)[0]

    for finding in identify("add_rms_norm", port().hello(), ask, HALF)[::2]:
        assert finding.asked.startswith("rounded sum, cast_then_scale")
        assert finding.found.startswith(f"{sum_} sum, cast_then_scale (as vLLM's")


def test_the_contract_says_who_speaks_which_dialect():
    page = Path(__file__).parents[2] / "docs/spec.md"
    rows = [line for line in page.read_text().splitlines() if line.startswith("|")]
    for (sum_, order), who in SPOKEN_BY.items():
        for name in (word for word in re.findall(r"[\w-]+", who) if word in ("vLLM", "Liger", "FlashInfer", "quack", "Mamba")):
            assert any(name in row and f"`{sum_}`" in row and f"`{order}`" in row for row in rows), (name, sum_, order)
