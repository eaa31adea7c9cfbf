"""The figures of docs/tolerances.md on where the intervals end: long sums, and inputs built against them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from statistics import NormalDist

import numpy as np

from conformance.judging.compare import compare_output
from conformance.numbers.expected import Expected
from conformance.numbers.rounding import DTYPES, FORMATS, round_to, store
from conformance.ops.cases import select
from conformance.ops.draw import Draw
from conformance.ops.golden import golden
from conformance.ops.norms.cases import ROW_NORMS, NormCase
from conformance.ops.norms.expected import expected_outputs
from conformance.ops.norms.golden import exact_inputs, norm_values
from conformance.tools.judges.honest import Arrangement, Honest
from conformance.tools.judges.sums import SUMS

Array = np.ndarray
Row = dict[str, str | float]
Inputs = dict[str, Array]


def tables() -> Iterator[tuple[str, list[Row]]]:
    """Every table by its name."""
    yield "sums", sums()
    yield "rejected", rejected()
    yield "resolution", resolution()
    yield "one-pass", one_pass()


def sums() -> list[Row]:
    """Over 200 draws, or 20 of the longest: squares of normals, normals, and equal numbers."""
    rng = np.random.default_rng(0)
    draws: dict[str, Callable[[int, int], Array]] = {
        "squares": lambda count, k: np.square(rng.normal(size=(count, k))),
        "both signs": lambda count, k: rng.normal(size=(count, k)),
        "equal": lambda count, k: np.repeat(rng.uniform(1, 2, size=(count, 1)), k, axis=1),
    }
    rows: list[Row] = []
    for terms, draw in draws.items():
        for k in (33, 768, 4096, 8192, 65536):
            a = draw(200 if k < 10_000 else 20, k).astype(np.float32)
            exact = a.astype(np.float64)
            unit = gamma(k) * np.sum(np.abs(exact), axis=-1)
            errors = {name: np.abs(add(a)[..., 0] - exact.sum(axis=-1)) / unit for name, add in SUMS.items() if name != "fused"}
            rms = np.sqrt(np.mean(np.square(errors["sequential"]))) * gamma(k) / FORMATS["float32"].unit_roundoff / np.sqrt(k)
            largest = {name: float(np.max(error)) for name, error in errors.items()}
            rows.append({"terms": terms, "k": f"{k}", "rms of sequential / (v·√k)": float(rms)} | largest)
    return rows


def gamma(k: int) -> float:
    """What the budgets allow a float32 sum of k terms."""
    return FORMATS["float32"].unit_roundoff * (8 + np.sqrt(k))


def rejected() -> list[Row]:
    """Inputs built against the intervals, and the error ratio of an honest implementation; above 1 it is rejected."""
    found = {
        "a row of 64 equal numbers, added one by one": (equal_numbers(), Arrangement(), "y", "sequential"),
        "a sorted row of 768, Welford's updates one by one": (sorted_row(), Arrangement("welford"), "dx", "sequential"),
        "a tie in g, rounded through float32": (tie_in_g(), Arrangement(backward="autograd"), "dx", "pairwise"),
        "a path of dx beyond float16": (path_overflows(), Arrangement(), "dx", "pairwise"),
    }
    rows: list[Row] = [
        {"what": what, "output": name, "ratio": ratio(*case, order, arrangement, name)}
        for what, (case, arrangement, name, order) in found.items()
    ]
    return [*rows, {"what": "the golden itself: 8192 equal dy in float64", "output": "dbias", "ratio": golden_sum()}]


def ratio(case: NormCase, given: Inputs, order: str, arrangement: Arrangement, name: str) -> float:
    """One output's error ratio."""
    outputs = Honest(case, given, order, arrangement).outputs()
    return compare_output(name, expect(case, given)[name], outputs[name]).ratio


def equal_numbers(n: int = 64, value: float = 1.9397392) -> tuple[NormCase, Inputs]:
    """A constant row: between two powers of two every partial sum is rounded the same way, so the errors add up."""
    (case,) = select("layer_norm/either_order/float32/constant_rows")
    given = {"x": np.full((1, n), value), "dy": np.ones((1, n)), "weight": np.ones(n), "bias": np.zeros(n)}
    return replace(case, shape=(1, n)), {name: a.astype(np.float32) for name, a in given.items()}


def sorted_row(n: int = 768) -> tuple[NormCase, Inputs]:
    """Quantiles of the normal distribution around 300: a running mean lags behind, always on the same side."""
    (case,) = select("layer_norm/either_order/float32/mean_300")
    deviates = [NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)]
    given = {"x": 300 + np.array([deviates]), "dy": np.cos(np.arange(n))[None], "weight": np.ones(n), "bias": np.zeros(n)}
    return replace(case, shape=(1, n)), {name: a.astype(np.float32) for name, a in given.items()}


def tie_in_g() -> tuple[NormCase, Inputs]:
    """The product dy·w lies just below a tie between two bfloat16 and is rounded up to it in float32, where |x_hat| is 2.8."""
    (case,) = select("rms_norm/cast_then_scale_float32_weight/bfloat16/random")
    x, dy, weight = np.zeros((1, 16)), np.zeros((1, 16)), np.ones(16)
    x[0, :2], dy[0, :2], weight[1] = 1, (0.25, 1.9127556), 0.5289326
    given = {"x": store(x, "bfloat16"), "dy": dy.astype(np.float32), "weight": weight.astype(np.float32)}
    return replace(case, shape=(1, 16)), given


def path_overflows() -> tuple[NormCase, Inputs]:
    """g is nearly constant: rstd·g and rstd·mean g lie beyond float16, their difference does not."""
    (case,) = select("layer_norm/scale_then_cast/float16/random")
    given = {"x": [[-0.25, 0.0, 0.25]], "dy": [[4e4, 4e4, 4.05e4]], "weight": [1.0] * 3, "bias": [0.0] * 3}
    return replace(case, shape=(1, 3)), {name: store(np.array(a), "float16") for name, a in given.items()}


def golden_sum() -> float:
    """The exact sum of 8192 equal numbers, rounded once, as the golden judges it."""
    (case,) = select("layer_norm/either_order/float64/random")
    rows = 8192
    given = {"x": np.ones((rows, 2)), "dy": np.full((rows, 2), 0.1), "weight": np.ones(2), "bias": np.ones(2)}
    expected = expect(replace(case, shape=(rows, 2)), given)["dbias"]
    return compare_output("dbias", expected, np.full(2, rows * 0.1)).ratio  # times a power of two: exact


def resolution() -> list[Row]:
    """The smallest relative error of rstd, 2^-k, that y shows: to some case, and to half of them."""
    rows: list[Row] = []
    for op in ROW_NORMS:
        for dtype in DTYPES:
            cases = [
                case
                for case in select(f"{op}/*", dtype=dtype)
                if 0 not in case.shape and case.x.rows not in ("nan_row", "inf_row")
            ]
            limit = [max((k for k in range(1, 60) if shows(case, 2.0**-k)), default=0) for case in cases]
            rows.append({"op": op, "dtype": dtype, "some case, k": f"{max(limit)}", "half, k": f"{int(np.median(limit))}"})
    return rows


def shows(case: NormCase, error: float) -> bool:
    """Whether a y whose rstd is off by a relative error, and nothing else, is rejected."""
    _, _, weight, bias = exact_inputs(golden(case).inputs)
    x_hat = golden(case).intermediates["x_hat"] * (1 + error)
    if case.dialect.order == "cast_then_scale":
        x_hat = round_to(x_hat, case.dtype)
    expected = golden(case).outputs["y"]
    y = store(x_hat * (weight + case.dialect.weight_offset) + bias, expected.dtype)
    lower, upper = expected.interval()
    return not bool(np.all((lower <= y) & (y <= upper)))


class OnePass(Honest):
    """The variance as E[x²] − E[x]², which the contract excludes."""

    @cached_property
    def rstd(self) -> Array:
        """Cancels where the mean is large."""
        return 1 / np.sqrt(self.average(self.x * self.x) - self.mean * self.mean + self.compute.type(self.case.eps))


def one_pass() -> list[Row]:
    """In how many of 40 draws each output of a one-pass LayerNorm is rejected, by mean over deviation."""
    (case,) = select("layer_norm/either_order/float32/random")
    rows: list[Row] = []
    for offset in (1, 3, 5, 10, 30, 100):
        far = replace(case, x=Draw(offset=float(offset)))
        counts = dict.fromkeys(("y", "dx", "dweight"), 0)
        for seed in range(40):
            expected = golden(far, seed)
            outputs = OnePass(far, expected.inputs, "pairwise", Arrangement()).outputs()
            for name in counts:
                counts[name] += compare_output(name, expected.outputs[name], outputs[name]).outside > 0
        rows.append({"mean / sigma": f"{offset}"} | {name: f"{count}" for name, count in counts.items()})
    return rows


def expect(case: NormCase, given: Inputs) -> dict[str, Expected]:
    """What a case expects on inputs that are not its own."""
    norm, _ = norm_values(case, given)
    return expected_outputs(case.dtype, norm, case.dialect, case.outputs)
