"""The figures of docs/tolerances.md on the kit's own cases: honest noise, half precision, the golden, scalar tolerances."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import nan

import mpmath
import numpy as np

from conformance.judging.compare import compare_output
from conformance.judging.simulation import numbers
from conformance.mistakes import MISTAKES
from conformance.numbers.expected import Expected
from conformance.numbers.rounding import DTYPES, HALF
from conformance.ops.cases import select
from conformance.ops.golden import golden
from conformance.ops.norms.cases import ROW_NORM_CASES, NormCase
from conformance.ops.norms.golden import exact_inputs
from conformance.tools.judges.honest import Honest, implementations

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


@dataclass(frozen=True)
class Finding:
    """One output of one honest implementation.

    `moved`: the share of elements that are not the correctly rounded ones. `needed`: the smallest rtol = atol that admits it.
    """

    case: NormCase
    output: str
    welford: bool
    ratio: float
    moved: float
    needed: float
    close: bool


@cache
def survey() -> tuple[Finding, ...]:
    """Judge every honest implementation on every case with rows."""
    return tuple(
        finding for case in ROW_NORM_CASES if 0 not in case.shape for norm in honest(case) for finding in findings(norm)
    )


def honest(case: NormCase) -> list[Honest]:
    """All honest implementations; compensated sums make a NaN of an infinity and are left out there."""
    norms = implementations(case, golden(case).inputs)
    return [norm for norm in norms if norm.order != "Kahan" or case.x.rows != "inf_row"]


def findings(norm: Honest) -> Iterator[Finding]:
    """What is found about each output."""
    case = norm.case
    welford = case.op == "layer_norm" and norm.arrangement.variance == "welford"
    with np.errstate(all="ignore"):
        outputs = norm.outputs()
    for name, expected in golden(case).outputs.items():
        out, nearest = (a.astype(np.float64) for a in (outputs[name], expected.nearest))
        moved = float(np.mean((out != nearest) & ~np.isnan(nearest)))
        rtol, atol = SCALAR_DEFAULTS[case.outputs[name]]
        close = bool(np.allclose(out, nearest, rtol=rtol, atol=atol, equal_nan=True))
        ratio = compare_output(name, expected, outputs[name]).ratio
        yield Finding(case, name, welford, ratio, moved, needed_tolerance(expected, outputs[name]), close)


def honest_ratios() -> list[Row]:
    """The largest ratios over the cases, Welford's apart, and how often noise decides a rounding to half precision."""
    groups: dict[tuple[str, str, str], list[Finding]] = defaultdict(list)
    for finding in survey():
        groups[finding.case.op, finding.case.dtype, finding.output].append(finding)
    rows: list[Row] = []
    for (op, dtype, output), found in groups.items():
        welford, others = ([f.ratio for f in found if f.welford is which] for which in (True, False))
        one_rounding = [f.moved for f in found if f.case.outputs[output] in HALF and f.case.dialect.order == "scale_then_cast"]
        moved = 100 * float(np.mean(one_rounding)) if one_rounding and output != "dx" else nan
        row: Row = {"op": op, "dtype": dtype, "output": output, "ratio": max(others), "Welford": max(welford, default=nan)}
        rows.append(row | {"moved by noise, %": moved})
    return rows


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
                shares = {name: 100 * float(np.mean(np.concatenate(parts))) for name, parts in single.items()}
                rows.append({"dtype": dtype, "dialect": order, "op": op} | {"dbias": nan} | shares)
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


def fifty_digits(case: NormCase) -> dict[str, Array]:
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
    """What `|out - golden| <= atol + rtol·|golden|` makes of honest outputs and of mistakes, on cases that have fixtures."""
    rows: list[Row] = []
    for dtype in DTYPES:
        found = [finding for finding in survey() if finding.case.dtype == dtype and finding.case.has_fixture]
        needed: dict[tuple[str, str], float] = defaultdict(float)
        for finding in found:
            key = finding.case.id, finding.output
            needed[key] = max(needed[key], finding.needed)
        widest = max(needed.values())
        kit, one, hindsight = (Missed() for _ in range(3))
        for case in dict.fromkeys(finding.case for finding in found):
            expected = golden(case).outputs
            for mistake in MISTAKES:
                if case.op not in mistake.ops:
                    continue
                wrong = numbers(mistake, case)
                off = {name: needed_tolerance(expected[name], out) for name, out in wrong.items()}
                kit.note(mistake.id, not all(admitted(expected[name], out) for name, out in wrong.items()))
                one.note(mistake.id, any(t > widest for t in off.values()))
                hindsight.note(mistake.id, any(t > needed[case.id, name] for name, t in off.items()))
        rows.append(
            {
                "dtype": dtype,
                "honest outputs": f"{len(found)}",
                "rejected by default": f"{sum(not finding.close for finding in found)}",
                "rtol = atol to reject none": widest,
                "mistakes": f"{len(kit.everywhere)}",
                "missed by intervals": kit.summary(),
                "missed by one rtol = atol": one.summary(),
                "by one per case and output": hindsight.summary(),
            }
        )
    return rows


class Missed:
    """Which mistakes no case shows, and how many pairs of a case and a mistake show nothing."""

    def __init__(self) -> None:
        self.everywhere: dict[str, bool] = {}
        self.pairs, self.unseen = 0, 0

    def note(self, mistake: str, seen: bool) -> None:
        """Count one pair."""
        self.everywhere[mistake] = self.everywhere.get(mistake, True) and not seen
        self.pairs, self.unseen = self.pairs + 1, self.unseen + (not seen)

    def summary(self) -> str:
        """Mistakes that no case shows, and the share of pairs."""
        return f"{sum(self.everywhere.values())} ({100 * self.unseen / self.pairs:.0f} % of pairs)"


def admitted(expected: Expected, out: Array) -> bool:
    """Whether the intervals admit an output, without the search for its error ratio."""
    (lower, upper), wide = expected.interval(), out.astype(np.float64)
    inside = ((lower <= wide) & (wide <= upper)) | (np.isnan(expected.value) & np.isnan(wide))
    return out.dtype.name == expected.dtype and bool(np.all(inside))


def needed_tolerance(expected: Expected, out: Array) -> float:
    """The smallest rtol = atol that admits an output; infinite where the dtype, a NaN or an infinity is not the golden's."""
    if out.dtype.name != expected.dtype:
        return np.inf
    nearest, out = expected.nearest.astype(np.float64), out.astype(np.float64)
    same = (nearest == out) | (np.isnan(nearest) & np.isnan(out))
    with np.errstate(all="ignore"):
        tolerance = np.abs(out - nearest) / (1 + np.abs(nearest))
    return float(np.max(np.where(same, 0.0, np.nan_to_num(tolerance, nan=np.inf, posinf=np.inf)), initial=0.0))
