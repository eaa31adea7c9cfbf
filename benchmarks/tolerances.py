"""The figures of docs/tolerances.md on the kit's own cases: honest noise, half precision, the golden, scalar tolerances."""

from collections import defaultdict
from collections.abc import Iterator

import mpmath
import numpy as np

from benchmarks.honest import Honest, implementations
from conformance.cases import CASES, Case, select
from conformance.compare import compare_output
from conformance.golden import Expected, exact_inputs, golden
from conformance.mistakes import MISTAKES
from conformance.rounding import DTYPES, HALF

Array = np.ndarray
Row = dict[str, str | float]

# torch.testing.assert_close's own, by dtype: rtol, atol.
SCALAR_DEFAULTS = {"float64": (1e-7, 1e-7), "float32": (1.3e-6, 1e-5), "bfloat16": (1.6e-2, 1e-5), "float16": (1e-3, 1e-5)}


def tables() -> Iterator[tuple[str, list[Row]]]:
    """Every table by its name."""
    yield "honest", honest_ratios()
    yield "single-values", single_values()
    yield "golden", golden_errors()
    yield "scalar", scalar_tolerances()


def honest(case: Case) -> list[Honest]:
    """All honest implementations of a case with rows; compensated sums make a NaN of an infinity and are left out there."""
    if 0 in case.shape:
        return []
    given = golden(case).inputs
    return [norm for norm in implementations(case, given) if norm.order != "Kahan" or case.x.rows != "inf_row"]


def honest_ratios(cases: tuple[Case, ...] = CASES) -> list[Row]:
    """The largest ratios over the cases, Welford's apart, and how often noise decides a rounding to half precision."""
    largest: dict[tuple[str, ...], float] = defaultdict(float)
    moved: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for case in cases:
        for norm in honest(case):
            with np.errstate(all="ignore"):
                outputs = norm.outputs()
            for name, expected in golden(case).outputs.items():
                key = case.op, case.dtype, name
                which = "welford" if case.op == "layer_norm" and norm.arrangement.variance == "welford" else "others"
                largest[*key, which] = max(largest[*key, which], compare_output(name, expected, outputs[name]).ratio)
                if len(expected.placements) == 1:
                    moved[key].append(_share(outputs[name].astype(np.float64) != expected.nearest.astype(np.float64)))
    keys = list(dict.fromkeys(key[:3] for key in largest))
    return [
        {
            **dict(zip(("op", "dtype", "output"), key, strict=True)),
            "ratio": largest[*key, "others"],
            "with Welford": largest.get((*key, "welford"), float("nan")),
            "not the nearest, %": 100 * float(np.mean(moved[key])) if key in moved and key[1] in HALF else float("nan"),
        }
        for key in keys
    ]


def _share(a: Array) -> float:
    return float(np.mean(a)) if a.size else 0.0


def single_values() -> list[Row]:
    """How many elements of half-precision outputs admit one value only."""
    rows: list[Row] = []
    for dtype in HALF:
        for order in ("scale_then_cast", "cast_then_scale"):
            for op in ("rms_norm", "layer_norm"):
                single: dict[str, list[Array]] = defaultdict(list)
                for case in select(f"{op}/{order}/*", dtype=dtype):
                    for name, expected in golden(case).outputs.items():
                        lower, upper = expected.interval()
                        single[name].append((lower == upper)[~np.isnan(expected.value)])
                shares = {name: 100 * _share(np.concatenate(parts)) for name, parts in single.items()}
                rows.append({"dtype": dtype, "dialect": order, "op": op} | {"dbias": float("nan")} | shares)
    return rows


def golden_errors() -> list[Row]:
    """The golden against fifty digits, on every float64 case of finite numbers."""
    largest: dict[tuple[str, str], float] = defaultdict(float)
    for case in select(dtype="float64"):
        if case.x.rows in ("nan_row", "inf_row"):
            continue
        exact = fifty_digits(case)
        for name, expected in golden(case).outputs.items():
            lower, upper = expected.interval()
            error = np.abs(expected.value - exact[name]).astype(np.float64)
            share = error / np.where(upper > lower, (upper - lower) / 4, 1)  # doubled: a quarter of the whole
            largest[case.op, name] = max(largest[case.op, name], float(np.max(share)))
    return [{"op": op, "output": name, "share": share} for (op, name), share in largest.items()]


def fifty_digits(case: Case) -> dict[str, Array]:
    """A case's outputs as arrays of mpmath numbers."""
    with mpmath.workdps(50):
        to_mp = np.vectorize(mpmath.mpf, otypes=[object])
        x, dy, weight, bias = (to_mp(a) for a in exact_inputs(golden(case).inputs))
        root = np.vectorize(mpmath.sqrt, otypes=[object])

        def mean(a: Array) -> Array:
            return a.sum(axis=-1, keepdims=True) / case.shape[-1]

        w = weight + case.dialect.weight_offset
        centred = x - mean(x) if case.op == "layer_norm" else x
        rstd = 1 / root(mean(centred * centred) + mpmath.mpf(case.eps))
        x_hat, g = centred * rstd, dy * w
        shift = mean(g) if case.op == "layer_norm" else 0
        products, terms = ((dy * factor).reshape(-1, case.shape[-1]) for factor in (x_hat, np.ones_like(x_hat)))
        return {
            "y": x_hat * w + bias,
            "dx": rstd * (g - shift - x_hat * mean(g * x_hat)),
            "dweight": products.sum(axis=0),
            "dbias": terms.sum(axis=0),
        }


def scalar_tolerances() -> list[Row]:
    """What `|out - golden| <= atol + rtol·|golden|` makes of honest outputs and of the catalogue, rows_8192 left out."""
    rows: list[Row] = []
    for dtype in DTYPES:
        cases = [case for case in select(dtype=dtype) if case.name not in ("rows_8192", "rows_0")]
        needed, rejected, judged = _needed(cases, *SCALAR_DEFAULTS[dtype])
        widest = max(needed.values())
        kit, one, hindsight = (_Missed() for _ in range(3))
        for case in cases:
            for mistake in MISTAKES:
                if case.op not in mistake.ops:
                    continue
                altered = mistake.outputs(case, 0)
                wrong = {name: expected.nearest for name, expected in altered.items()}
                expected = golden(case).outputs
                kit.note(mistake.id, any(not _admitted(expected[name], out) for name, out in wrong.items()))
                off = {name: _equal_tolerance(expected[name], out) for name, out in wrong.items()}
                one.note(mistake.id, any(t > widest for t in off.values()))
                hindsight.note(mistake.id, any(t > needed[case.id, name] for name, t in off.items()))
        rows.append(
            {
                "dtype": dtype,
                "honest outputs": f"{judged}",
                "rejected by default": f"{rejected}",
                "rtol = atol to reject none": widest,
                "mistakes": f"{len(kit.everywhere)}",
                "missed by intervals": kit.summary(),
                "missed by one rtol = atol": one.summary(),
                "by one per case and output": hindsight.summary(),
            }
        )
    return rows


class _Missed:
    """Which mistakes no case shows, and how many pairs of a case and a mistake show nothing."""

    def __init__(self) -> None:
        self.everywhere: dict[str, bool] = {}
        self.pairs, self.unseen = 0, 0

    def note(self, mistake: str, seen: bool) -> None:
        self.everywhere[mistake] = self.everywhere.get(mistake, True) and not seen
        self.pairs, self.unseen = self.pairs + 1, self.unseen + (not seen)

    def summary(self) -> str:
        return f"{sum(self.everywhere.values())} ({100 * self.unseen / self.pairs:.0f} % of pairs)"


def _needed(cases: list[Case], rtol: float, atol: float) -> tuple[dict[tuple[str, str], float], int, int]:
    """The rtol = atol that every honest output of a case needs; how many of them rtol and atol reject, and of how many."""
    needed: dict[tuple[str, str], float] = defaultdict(float)
    rejected = judged = 0
    for case in cases:
        for norm in honest(case):
            with np.errstate(all="ignore"):
                outputs = norm.outputs()
            for name, expected in golden(case).outputs.items():
                needed[case.id, name] = max(needed[case.id, name], _equal_tolerance(expected, outputs[name]))
                rejected += not _close(expected, outputs[name], rtol, atol)
                judged += 1
    return needed, rejected, judged


def _admitted(expected: Expected, out: Array) -> bool:
    return compare_output("", expected, out).outside == 0


def _close(expected: Expected, out: Array, rtol: float, atol: float) -> bool:
    """What `np.allclose` says with equal_nan."""
    nearest = expected.nearest.astype(np.float64)
    return bool(np.allclose(out.astype(np.float64), nearest, rtol=rtol, atol=atol, equal_nan=True))


def _equal_tolerance(expected: Expected, out: Array) -> float:
    """The smallest rtol = atol that admits an output; infinite where a NaN or an infinity is not the golden's."""
    nearest, out = expected.nearest.astype(np.float64), out.astype(np.float64)
    same = (nearest == out) | (np.isnan(nearest) & np.isnan(out))
    with np.errstate(all="ignore"):
        tolerance = np.abs(out - nearest) / (1 + np.abs(nearest))
    return float(np.max(np.where(same, 0.0, np.nan_to_num(tolerance, nan=np.inf, posinf=np.inf)), initial=0.0))
