"""The figures of docs/tolerances.md on a variance by Welford's updates: its error, and whether dx leaves room for it."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks.limits import expect
from conformance.judging.compare import compare_output
from conformance.numbers.rounding import FORMATS
from conformance.ops.cases import select
from conformance.ops.golden import golden
from conformance.ops.norms.cases import NormCase
from conformance.ops.norms.golden import exact_inputs
from conformance.tools.judges.honest import Arrangement, Honest

Array = np.ndarray
Inputs = dict[str, Array]
Row = dict[str, str | float]

SEEDS = 200
ROWS = 100
UPDATES = Arrangement("welford")


def tables() -> Iterator[tuple[str, list[Row]]]:
    """Every table by its name."""
    yield "welford-rstd", errors_of_rstd()
    yield "welford", rejections()


def errors_of_rstd() -> list[Row]:
    """In units of κv: the root mean square and the largest, and the largest ratio of dx, in random order and sorted."""
    rows: list[Row] = []
    for order in ("random", "sorted"):
        for n in (7, 33, 129, 768, 4096):
            case, given = around_300(n, order)
            norm = Honest(case, given, "sequential", UPDATES)
            errors = error_of_rstd(norm)
            row: Row = {
                "order": order,
                "n": f"{n}",
                "rms": float(np.sqrt(np.mean(errors**2))),
                "largest": float(np.max(errors)),
            }
            ratio = compare_output("dx", expect(case, given)["dx"], norm.dx()).ratio
            torchs = compare_output("dx", expect(case, given)["dx"], torch_dx(case, given)).ratio
            rows.append(row | {"ratio of dx": ratio, "of F.layer_norm": torchs})
    return rows


def around_300(n: int, order: str) -> tuple[NormCase, Inputs]:
    """A hundred float32 rows of deviation 1 around 300."""
    (case,) = select("layer_norm/either_order/float32/mean_300")
    case, rng = replace(case, shape=(ROWS, n)), np.random.default_rng(n)
    deviates, dy = rng.normal(size=(2, ROWS, n))
    x = 300 + (np.sort(deviates) if order == "sorted" else deviates)
    given = {"x": x, "dy": dy, "weight": np.ones(n), "bias": np.zeros(n)}
    return case, {name: a.astype(np.float32) for name, a in given.items()}


def error_of_rstd(norm: Honest) -> Array:
    """The relative error of every row's rstd, in units of κv."""
    x, *_ = exact_inputs({"x": norm.x, "dy": norm.dy})
    rstd = 1 / np.sqrt(np.var(x, axis=-1, keepdims=True) + norm.case.eps)
    kappa = np.mean(np.abs(x), axis=-1, keepdims=True) * rstd
    return np.abs(norm.rstd / rstd - 1) / (kappa * FORMATS["float32"].unit_roundoff)


def rejections() -> list[Row]:
    """How often dx is rejected where |mean| / sigma is large, by how much, and the same for torch's own layer_norm."""
    rows: list[Row] = []
    for name in ("mean_30", "mean_300", "mean_1e4"):
        for case in select(f"layer_norm/either_order/*/{name}"):
            row: Row = {"case": name, "dtype": case.dtype}
            for variance in ("two passes", "welford"):
                norms = (Honest(case, golden(case, s).inputs, "sequential", Arrangement(variance)) for s in range(SEEDS))
                row |= _rejections(variance, case, (norm.dx() for norm in norms))
            row |= _rejections("F.layer_norm", case, (torch_dx(case, golden(case, s).inputs) for s in range(SEEDS)))
            rows.append(row)
    return rows


def _rejections(name: str, case: NormCase, outputs: Iterator[Array]) -> Row:
    ratios = [compare_output("dx", golden(case, seed).outputs["dx"], dx).ratio for seed, dx in enumerate(outputs)]
    return {f"{name}, rejected": f"{sum(ratio > 1 for ratio in ratios)}", f"{name}, largest": max(ratios)}


def torch_dx(case: NormCase, given: Inputs) -> Array:
    """torch's own layer_norm on the CPU, through autograd; its forward pass merges Welford's updates."""
    import torch
    from torch.nn.functional import layer_norm

    x, weight, bias, dy = (torch.from_numpy(given[name].copy()) for name in ("x", "weight", "bias", "dy"))
    x.requires_grad_()
    y = layer_norm(x, x.shape[-1:], weight, bias, case.eps)
    (dx,) = torch.autograd.grad(y, x, dy)
    return dx.numpy()
