r"""How far an honest implementation may be from the golden, element by element, before any rounding to a storage dtype.

The setting. Inputs are exact in their storage dtype. An honest implementation computes statistics and sums in float32
(float64 for float64 inputs), in any order, fused or not. With v that compute dtype's unit roundoff, a sum of k terms
accumulates rounding errors that behave like a random walk, about v·√k in units of the sum of magnitudes, on top of a
few elementary operations (Higham & Mary 2019, "A New Approach to Probabilistic Rounding Error Analysis"):

$$ \gamma(k) = v\,(8 + \sqrt k) $$

The worst case of one-by-one summation, v·k, would hide mistakes; equal terms come near it, the cases' own do not.
What is proved, what is probable and what these bounds lack: docs/tolerances.md.

Every bound below is first order in v and holds element by element, with n features, R rows, r = rstd,
w the effective weight (offset included), g = dy·w, c1 = mean g (LayerNorm; else 0), c2 = mean(g·x_hat).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from conformance.numbers.rounding import FORMATS
from conformance.ops.norms.values import NormValues, Running, Stage, Sum, by_feature, sum_rows

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class NormBudget:
    """Half-widths of the intervals around the float64 values; `rstd` is the relative error of a product with rstd.

    `dy` is what the norm's dy is off by; `before` and `after` have, by name, the half-widths of what is made of dx and of y,
    besides those of the two.
    """

    rstd: Array
    x_hat: Array
    y: Array
    dx: Array
    dweight: Array
    dbias: Array
    running_mean: Array | float = 0.0
    running_var: Array | float = 0.0
    dy: Array | float = 0.0
    before: Mapping[str, Array] = field(default_factory=dict)
    after: Mapping[str, Array] = field(default_factory=dict)


def norm_budget(norm: NormValues) -> NormBudget:
    r"""The budget of RMSNorm, LayerNorm or BatchNorm in the arithmetic that its values name.

    x_hat. LayerNorm's computed mean is off by γ(n)·mean|x|, in x_hat by δμ = γ(n)·mean|x|·r: the conditioning |μ|/σ
    that a scalar tolerance cannot know. (The mean of a single feature is exact.) The mean square is off by a relative
    γ(n), and LayerNorm's by δμ² more, since Σ(x−μ−e)² = Σ(x−μ)² + n·e²; half of it reaches rstd, with two or three
    roundings of its own, which ρ = γ(n) + δμ²/2 covers. A variance by Welford's recurrence is off by a relative κv/2
    or so besides, κ = mean|x|·r, whatever the width, unless the features are sorted (Chan, Golub & LeVeque 1983): LayerNorm's
    ρ has 2κv more. Two more roundings form the product: δ = δμ + |x_hat|·(ρ + 2v).

    y. δ scaled by the weight, the product's and the effective weight's rounding, and the final operations.

    dx = r·(g − c1 − x_hat·c2). g is off by up to 3v (weight, product, subtraction); x_hat by δ, directly and within
    c2; the means by γ(n) times the mean of magnitudes; the whole by rstd's ρ and two roundings.

    dweight, dbias. A sum over the rows, γ(R)·Σ|terms|, and for dweight δ in every term.

    BatchNorm in training is LayerNorm turned: its statistics, and dx's means, are over the R rows, n = R. In evaluation the
    statistics are exact inputs, of n = 0 terms, and only ρ = 8v is left for rstd. There x may be scaled and shifted at once,
    y = x·α + β with α = w·r and β = b − μ·α, in which the roundings of x·α and μ·α do not cancel: δμ = v·(|x| + 2|μ|)·r.
    There is no c1 and no c2. The running statistics (1−m)·old + m·new have three roundings of either term, and the new mean's
    own error γ(R)·mean|x|, the new variance's 2ρ/r².

    A residual. The sum s is off by v·|s| where the norm reads it before it is rounded to a storage dtype: as much as x is then
    off, directly, in its mean, and in the mean square, by mean(|x_hat|·v|s|)·r. The sum that is returned has no room: it is
    rounded once, or to float32 first, which comes to the same, since float32 has more than twice the bits of half precision
    (Figueroa 1995, "When is double rounding innocuous?"). Another v·|dx| is due to the addition of ds and dresidual_out.

    A gate. Its activation a is off by a relative α·v, α = 8 + 2|gate|·σ(−gate): an exponential may err by as much as its
    argument is large. Where it stands before the norm, x is off by (α + 1)v|x|, as after a sum; where it stands after, dy is,
    and so g, c2 and the terms of dweight. What it multiplies is off by the norm's own error times a, by a's own, and by v.

    In float64 the golden is itself one of the implementations so bounded, so the half-widths double.

    Two kinds of arithmetic are no honest implementation's, and serve to recognise those that are not: a sum whose
    accumulator is of lower precision may be off by the worst case, u·(8 + k) of its magnitudes, up to all of them; and a
    variance in one pass, E[x²] − E[x]², is off by some γ(n)·E[x²]·r² (Chan, Golub & LeVeque 1983).
    """
    backward = _budget(norm, norm.arithmetic.backward)
    if norm.arithmetic.forward == norm.arithmetic.backward:
        return backward
    forward = _budget(norm, norm.arithmetic.forward)
    return replace(backward, x_hat=forward.x_hat, y=forward.y)


def _budget(norm: NormValues, compute_dtype: str) -> NormBudget:
    v = FORMATS[compute_dtype].unit_roundoff
    n, rows = norm.count, norm.x.size // norm.x.shape[-1]

    def gamma(k: int, sum_: Sum) -> float:
        if accumulator := norm.arithmetic.sums.get(sum_):
            return min(1.0, FORMATS[accumulator].unit_roundoff * (8 + k))
        return v * (8 + np.sqrt(k))

    g = norm.dy * norm.pullback.w
    x_hat, w_x_hat = np.abs(norm.x_hat), np.abs(norm.w * norm.x_hat)
    size, spread = np.abs(norm.x), gamma(n, "mean") * norm.mean(np.abs(norm.x))  # of x, of its mean's error

    delta_mean = np.zeros_like(norm.rstd)
    rho = delta_mean + gamma(n, "squares")
    if norm.given is not None:
        delta_mean = v * (size + 2 * np.abs(norm.given)) * norm.rstd
    elif norm.centred and n > 1:
        delta_mean = spread * norm.rstd
        rho = rho + delta_mean**2 / 2 + 2 * v * norm.mean(size) * norm.rstd
    if norm.before and norm.before.doubt is not None:
        t_x = v * norm.before.doubt
        delta_mean = delta_mean + (t_x + (norm.mean(t_x) if norm.centred else 0.0)) * norm.rstd
        rho = rho + norm.mean(x_hat * t_x) * norm.rstd
    if norm.arithmetic.one_pass:
        rho = rho + 3 * gamma(n, "squares") * norm.mean(np.square(norm.x)) * np.square(norm.rstd)
    delta = delta_mean + x_hat * (rho + 2 * v)

    last = 2 * v * (np.abs(norm.y) + np.abs(norm.bias)) if norm.centred else v * np.abs(norm.y)
    t_y = np.abs(norm.w) * delta + 2 * v * w_x_hat + last

    t_dy = v * norm.after.doubt if norm.after and norm.after.doubt is not None else 0.0
    through_dy = t_dy * np.abs(norm.pullback.w)
    t_g = 3 * v * np.abs(g) + through_dy
    if norm.given is None:
        c2, through_x_hat = norm.mean(g * norm.x_hat), norm.mean(np.abs(g) * delta + through_dy * x_hat)
        t_c2 = gamma(n, "projection") * norm.mean(np.abs(g * norm.x_hat)) + through_x_hat
        t_g = t_g + (np.abs(c2) + through_x_hat) * delta + x_hat * t_c2
        t_g = t_g + (gamma(n, "shift") * norm.mean(np.abs(g)) if norm.centred else 0.0)
    t_dx = norm.rstd * t_g + np.abs(norm.dx) * (rho + 2 * v)

    dy, multiplicand = np.abs(norm.dy_of_weight), np.abs(norm.pullback.multiplicand)
    t_dweight = gamma(rows, "dweight") * sum_rows(dy * multiplicand) + sum_rows(dy * delta + t_dy * multiplicand)
    t_dbias = gamma(rows, "dbias") * sum_rows(np.abs(norm.dy))

    budgets = [rho + 5 * v, delta, t_y, t_dx, t_dweight, t_dbias]
    if norm.running:
        d = norm.x.shape[-1]  # below, a NaN is left to the values: a statistic that is NaN admits nothing else
        t_mean, t_var = (np.nan_to_num(by_feature(t, d), nan=0.0) for t in (spread, 2 * rho / np.square(norm.rstd)))
        budgets += _running(norm.running, v, t_mean, t_var)
    golden_share = 2.0 if compute_dtype == "float64" else 1.0
    return NormBudget(
        *(golden_share * t for t in budgets),
        dy=golden_share * t_dy if norm.after else 0.0,
        before=_of_stage(norm.before, norm.dx, golden_share * v),
        after=_of_stage(norm.after, norm.y, golden_share * v),
    )


def _of_stage(stage: Stage | None, q: Array, v: float) -> dict[str, Array]:
    """The half-widths of what a stage makes of an exact q."""
    return {name: v * made.size(q) for name, made in stage.made.items()} if stage else {}


def _running(running: Running, v: float, t_mean: Array, t_var: Array) -> tuple[Array, Array]:
    """The half-widths of the running mean and variance, from those of the batch's."""
    t_running_mean = 3 * v * (np.abs(running.old_mean) + np.abs(running.mean)) + running.share * t_mean
    t_running_var = 3 * v * (running.old_var + np.abs(running.var)) + running.var_share * t_var
    return t_running_mean, t_running_var
