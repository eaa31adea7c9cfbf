"""Both norms at fifty digits, one row and one element at a time.

Only the forward definition is written down here. The gradients are differences of it, taken at so many digits that
fifty are left: a mistake in the golden's hand-derived gradients has nowhere to be repeated.
"""

from typing import NamedTuple

import numpy as np
from mpmath import MPContext

Array = np.ndarray

mp = MPContext()  # a context of our own, so that nobody else's precision changes
mp.dps = 120
mpf = mp.mpf

STEP = mpf("1e-30")  # of a row's scale 1 / rstd: truncation leaves 60 digits, rounding 90


class Exact(NamedTuple):
    """A quantity and its size: the same formula with every sum taken over absolute values."""

    value: Array  # of mpf
    size: Array  # of mpf, shaped like value

    def ulps_off(self, golden: Array) -> float:
        """Measure the largest error of `golden`, in float64 ulps of the size."""
        assert golden.shape == self.value.shape
        assert golden.dtype == np.float64
        ulps = np.spacing(self.size.astype(np.float64))
        return float(np.max(abs(to_mp(golden) - self.value) / to_mp(ulps)))


class Row(NamedTuple):
    """One normalised row: x_hat = (x - mean) · rstd, where the mean is zero for RMSNorm."""

    mean: mpf
    rstd: mpf
    x_hat: list[mpf]


def normalise(x: list[mpf], eps: mpf, *, centre: bool) -> Row:
    """Evaluate the definition."""
    mean = mp.fsum(x) / len(x) if centre else mpf(0)
    centred = [x_i - mean for x_i in x]
    rstd = 1 / mp.sqrt(mp.fsum(centred, squared=True) / len(x) + eps)
    return Row(mean, rstd, [c_i * rstd for c_i in centred])


def gradient(g: list[mpf], x: list[mpf], eps: mpf, *, centre: bool) -> list[mpf]:
    """Differentiate ⟨x_hat, g⟩ along every x_j by a central difference of `normalise`."""
    h = STEP / normalise(x, eps, centre=centre).rstd

    def inner(j: int, x_j: mpf) -> mpf:
        return mp.fdot(normalise([*x[:j], x_j, *x[j + 1 :]], eps, centre=centre).x_hat, g)

    return [(inner(j, x_j + h) - inner(j, x_j - h)) / (2 * h) for j, x_j in enumerate(x)]


def evaluate(
    x: Array,
    dy: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float,
    weight_offset: float = 0.0,
    centre: bool,
) -> dict[str, Exact]:
    """Evaluate a norm of x [rows, d] and the gradients of ⟨y, dy⟩: LayerNorm if it is to centre, else RMSNorm."""
    x, dy, eps = to_mp(x), to_mp(dy), mpf(eps)
    scale = to_mp(np.ones(x.shape[-1])) if weight is None else to_mp(weight) + mpf(weight_offset)
    shift = to_mp(np.zeros(x.shape[-1])) if bias is None else to_mp(bias)
    g = dy * scale

    rows = [normalise(list(row), eps, centre=centre) for row in x]
    mean, rstd = np.array([[row.mean] for row in rows]), np.array([[row.rstd] for row in rows])
    x_hat = np.array([row.x_hat for row in rows])
    dx = np.array([gradient(list(g_row), list(row), eps, centre=centre) for g_row, row in zip(g, x, strict=True)])

    # Centring sums a row of x_hat and, going back, a row of g. No size of x itself enters: x is exact.
    x_hat_size = abs(x_hat) + centre * row_mean(abs(x_hat))
    dx_size = rstd * (abs(g) + centre * row_mean(abs(g)) + x_hat_size * row_mean(abs(g) * x_hat_size))

    quantities = {
        "y": Exact(x_hat * scale + shift, x_hat_size * abs(scale) + abs(shift)),
        "x_hat": Exact(x_hat, x_hat_size),
        "rstd": Exact(rstd, rstd),
        "dx": Exact(dx, dx_size),
    }
    if centre:
        quantities["mean"] = Exact(mean, row_mean(abs(x)))
    if weight is not None:
        quantities["dweight"] = Exact((dy * x_hat).sum(axis=0), (abs(dy) * x_hat_size).sum(axis=0))
    if bias is not None:
        quantities["dbias"] = Exact(dy.sum(axis=0), abs(dy).sum(axis=0))
    return quantities


def to_mp(a: Array) -> Array:
    """Convert every float64 exactly."""
    return np.array([mpf(v) for v in a.ravel().tolist()], dtype=object).reshape(a.shape)


def row_mean(a: Array) -> Array:
    """Average every row of mpf."""
    return a.sum(axis=-1, keepdims=True) / a.shape[-1]
