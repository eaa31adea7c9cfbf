"""The forward and the backward pass of every norm of rows as Pallas kernels: RMSNorm and LayerNorm, of x or of a sum.

A kernel is given references to blocks, [ROWS, COLUMNS] of a tensor and [1, COLUMNS] of a parameter, by name, and those of what
it writes; what a norm does not have is not among them.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from impl_jax.rows import round_to

References = dict[str, Any]


@dataclass(frozen=True)
class Norm:
    """What a kernel is compiled for.

    `centred`: LayerNorm. `sum_dtype`: the dtype in which the norm reads the sum. `width` and `n_rows`: of a tensor, which
    blocks may reach beyond. `elides`: whether the compiler may drop a rounding between two casts. `masked`: whether nothing
    else keeps a block within its tensor, as under Triton.
    """

    centred: bool
    x_hat_dtype: Any
    sum_dtype: Any
    compute: Any
    n_rows: int
    width: int
    elides: bool = False
    masked: bool = False

    def load(self, reference: Any) -> Array:
        """A block in the dtype of `compute`."""
        if not self.masked:
            return reference[...].astype(self.compute)
        return triton.load(reference, mask=self._mask(reference.shape), other=0).astype(self.compute)

    def store(self, reference: Any, numbers: Array) -> None:
        """Round a block to the dtype of what it is stored in."""
        numbers = numbers.astype(reference.dtype)
        if self.masked:
            triton.store(reference, numbers, mask=self._mask(reference.shape))
        else:
            reference[...] = numbers

    def exists(self, shape: tuple[int, ...]) -> Array:
        """Which numbers of a block are of a row that there is."""
        return pl.program_id(1) * shape[0] + lax.broadcasted_iota(jnp.int32, shape, 0) < self.n_rows

    def _mask(self, shape: tuple[int, ...]) -> Array:
        """Likewise, of a column that there is; all rows of a parameter are."""
        mask = lax.broadcasted_iota(jnp.int32, shape, 1) < self.width
        return mask & self.exists(shape) if shape[0] > 1 else mask

    def rounded(self, numbers: Array, dtype: Any) -> Array:
        """The numbers rounded to a dtype, in that of `compute`."""
        cast = round_to(numbers, dtype) if self.elides else numbers.astype(dtype)
        return cast.astype(self.compute)


def forward(norm: Norm, given: References, made: References) -> None:
    """Write y and, where there is a residual, the sum."""
    s = _read(norm, given)  # ROWS COLUMNS
    _, _, x_hat = _statistics(norm, given, s)
    y = norm.rounded(x_hat, norm.x_hat_dtype)  # ROWS COLUMNS
    if "weight" in given:
        y *= norm.load(given["weight"]) + given["constants"][1]
    if "bias" in given:
        y += norm.load(given["bias"])
    norm.store(made["y"], y)
    if "residual_out" in made:
        norm.store(made["residual_out"], s)


def backward(norm: Norm, given: References, made: References) -> None:
    """Write the gradient of what the norm read, and the parts of dweight and dbias that come from these rows.

    The statistics are computed again: to read them would take longer.
    """
    _, rstd, x_hat = _statistics(norm, given, _read(norm, given))
    dy = norm.load(given["dy"])  # ROWS COLUMNS
    g = dy * (norm.load(given["weight"]) + given["constants"][1]) if "weight" in given else dy
    projection = _row_sum(norm, g * x_hat) / norm.width  # ROWS 1
    shift = _row_sum(norm, g) / norm.width if norm.centred else 0  # ROWS 1
    ds = rstd * (g - shift - x_hat * projection)  # ROWS COLUMNS
    if "dresidual_out" in given:
        ds += norm.load(given["dresidual_out"])
    norm.store(made["ds"], ds)

    exists = norm.exists(dy.shape)
    for name, terms in (("dweight", dy * x_hat), ("dbias", dy)):
        if name in made:
            norm.store(made[name], jnp.sum(jnp.where(exists, terms, 0), axis=0, keepdims=True))  # 1 COLUMNS


def _read(norm: Norm, given: References) -> Array:
    """What the norm reads: x, or its sum with the residual."""
    s = norm.load(given["x"])
    if "residual" in given:
        s += norm.load(given["residual"])
        s = norm.rounded(s, norm.sum_dtype)
    return s


def _statistics(norm: Norm, given: References, s: Array) -> tuple[Array | int, Array, Array]:
    """mean and rstd, [ROWS, 1], and x_hat, [ROWS, COLUMNS]."""
    mean = _row_sum(norm, s) / norm.width if norm.centred else 0
    distance = s - mean
    rstd = lax.rsqrt(_row_sum(norm, jnp.square(distance)) / norm.width + given["constants"][0])
    return mean, rstd, distance * rstd


def _row_sum(norm: Norm, terms: Array) -> Array:
    """The sum of each row, [ROWS, 1], of the numbers that it has."""
    if terms.shape[1] > norm.width:
        terms = jnp.where(lax.broadcasted_iota(jnp.int32, terms.shape, 1) < norm.width, terms, 0)
    return jnp.sum(terms, axis=1, keepdims=True)
