"""The golden against fifty digits: how many float64 ulps every quantity is off.

`PYTHONPATH=. python tests/reference/test_mpmath.py` prints the largest error of each.

The unit is an ulp of the quantity's *size*, its formula with every sum taken over absolute values. Where nothing
cancels (rstd, RMSNorm's x_hat and y) that is an ulp of the value. Where terms cancel (mean, LayerNorm's x_hat and y,
dx, dweight, dbias) the value may be as small as it likes while its terms, each rounded once, are not: counted in its
own ulps the error would tell about the inputs, not about the golden. No size knows |mean| / sigma, for centring twice
removes the rounding of the mean; a golden that centres once, or subtracts E[x]² from E[x²], is off by thousands.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import pytest
from mp_norms import evaluate, gradient, mpf, normalise

import reference

# The largest error of 200 random draws of the rows below, rounded up and one more. A proof allows several times that,
# for a mean of 129 is up to 13 roundings deep, but they take both signs. RMSNorm's dx has the rounding of rstd in it
# three times. dbias adds two rows: one correct rounding.
BOUNDS = {"y": 5, "x_hat": 5, "rstd": 4, "mean": 2, "dx": 8, "dweight": 4, "dbias": 0.5}

PARAMETERS = {
    "rms_norm": ["", "weight", "1+weight"],
    "layer_norm": ["", "weight", "bias", "weight,bias", "1+weight,bias"],
}
ROWS = {
    "benign": lambda normal: normal,
    "mean_10_sigma": lambda normal: normal + 10,
    "mean_10000_sigma": lambda normal: normal - 10_000,
    "near_eps": lambda normal: 0.003 * normal,
    "zero": lambda normal: 0 * normal,
    "constant": lambda normal: 0 * normal - 987.654,
    "spike": lambda normal: np.where(np.arange(normal.shape[-1]) == normal.shape[-1] // 2, 1e6, normal),
    "huge": lambda normal: 1e80 * normal,
    "tiny": lambda normal: 1e-160 * normal,
}


class Case(NamedTuple):
    """One call of a norm and of its vjp, by name."""

    op: str
    rows: str
    d: int
    parameters: str


CASES = [
    Case(op, rows, d, parameters)
    for op, choices in PARAMETERS.items()
    for rows in ROWS
    for d in (1, 2, 3, 33, 129)
    for parameters in (choices if d <= 3 else choices[-1:])
]


def measure(case: Case) -> dict[str, float]:
    """Measure the error of everything that a norm and its vjp return, in ulps of its size."""
    rng = np.random.default_rng(case.d)
    x, dy = ROWS[case.rows](rng.normal(size=(2, case.d))), rng.normal(size=(2, case.d))
    arguments = {name: rng.normal(size=case.d) for name in ("weight", "bias") if name in case.parameters}
    arguments |= {"eps": 1e-5, "weight_offset": float("1+" in case.parameters)}

    forward = getattr(reference, case.op)(x, **arguments)
    gradients = getattr(reference, f"{case.op}_vjp")(dy, x, **arguments)
    golden = {name: value for name, value in (forward._asdict() | gradients._asdict()).items() if value is not None}
    exact = evaluate(x, dy, **arguments, centre=case.op == "layer_norm")

    assert golden.keys() == exact.keys()
    return {name: exact[name].ulps_off(value) for name, value in golden.items()}


@pytest.mark.parametrize("case", CASES, ids="-".join(["{0.op}", "{0.rows}", "{0.d}", "{0.parameters}"]).format)
def test_every_quantity_is_within_a_few_ulps(case):
    assert {name: error for name, error in measure(case).items() if not error <= BOUNDS[name]} == {}


def test_a_constant_row_is_centred_to_exact_zeros():
    """The mean of equal numbers may well be rounded; what it leaves of them is equal again, and now centres exactly."""
    x = np.full((1, 7), -987.654)
    golden = reference.layer_norm(x, eps=1e-5)
    assert np.mean(x) != x[0, 0]
    assert golden.mean == x[0, 0]
    assert not golden.x_hat.any()


def test_differences_keep_fifty_digits():
    """Judge the judge: of a single x, the derivative of x · rstd is eps · rstd³."""
    x, eps = mpf("0.003"), mpf("1e-5")
    [dx] = gradient([mpf(1)], [x], eps, centre=False)
    assert abs(dx / (eps * normalise([x], eps, centre=False).rstd ** 3) - 1) < mpf("1e-50")


def print_table() -> None:
    """Print the largest error of every quantity and where it is."""
    largest = defaultdict(lambda: (-1.0, None))
    for case in CASES:
        for name, error in measure(case).items():
            largest[case.op, name] = max(largest[case.op, name], (error, case))
    for (op, name), (error, case) in largest.items():
        print(f"{op:10}  {name:7}  {error:.2f} ulps of at most {BOUNDS[name]}  {case.rows}, d = {case.d}")


if __name__ == "__main__":
    print_table()
