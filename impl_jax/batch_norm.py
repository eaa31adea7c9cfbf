"""BatchNorm (Ioffe & Szegedy 2015, arXiv:1502.03167) for JAX."""

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float

from impl_jax.mesh import AxisName
from impl_jax.rows import check_rows, compute_dtype, sum_rows


def batch_norm(
    x: Float[Array, "*batch d"],
    weight: Float[Array, " d"] | None,
    bias: Float[Array, " d"] | None,
    running_mean: Float[Array, " d"],
    running_var: Float[Array, " d"],
    *,
    eps: float = 1e-5,
    training: bool = False,
    momentum: float = 0.1,
    unbiased: bool = True,
    axis_name: AxisName | None = None,
) -> Float[Array, "*batch d"] | tuple[Float[Array, "*batch d"], Float[Array, " d"], Float[Array, " d"]]:
    r"""Centre every feature and divide it by its standard deviation, over the batch or as it ran so far; scale and shift.

    $$ y_i = w_i\, \hat x_i + b_i, \qquad \hat x_i = (x_i - \mu_i) / \sqrt{\sigma^2_i + \varepsilon} $$

    In training, returns y and new running statistics, (1 − momentum)·old + momentum·new, of the variance divided by R − 1 for
    R rows, or by R with `unbiased=False`, as flax does. In evaluation, returns y, normalised by the running statistics.
    Statistics and sums are in float32 (float64 for float64), forward and backward; y has x's dtype. `momentum` is the share
    of the new, as in PyTorch: one less flax's. Inside `jax.shard_map` rows may be split, evenly,
    over the mesh axis `axis_name`: its devices' rows are one batch, of R in all (PyTorch's SyncBatchNorm).

    Raises `TypeError` for an x that is not of floating point; `ValueError` for a shape that does not fit, and for a training
    batch of too few rows.
    """
    check_rows(x, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    rows = x.size // x.shape[-1] * (1 if axis_name is None else lax.axis_size(axis_name))
    if training and rows < 1 + unbiased:
        raise ValueError(f"x has shape {list(x.shape)}: {rows} rows are too few to train on with unbiased={unbiased}")
    compute = compute_dtype(x)
    wide = x.astype(compute)  # *batch d
    mean = _sum(wide, axis_name) / rows if training else running_mean  # d
    centred = wide - mean  # *batch d
    var = _sum(jnp.square(centred), axis_name) / rows if training else running_var  # d
    y = centred * lax.rsqrt(var + jnp.asarray(eps, compute))  # *batch d
    if weight is not None:
        y = y * weight.astype(compute)  # *batch d
    if bias is not None:
        y = y + bias.astype(compute)  # *batch d
    y = y.astype(x.dtype)
    if not training:
        return y
    kept = var * (rows / (rows - 1)) if unbiased else var  # d
    share = jnp.asarray(momentum, compute)
    new_mean = running_mean + share * (lax.stop_gradient(mean) - running_mean)  # d
    new_var = running_var + share * (lax.stop_gradient(kept) - running_var)  # d
    return y, new_mean.astype(running_mean.dtype), new_var.astype(running_var.dtype)


class BatchNorm(nnx.Module):
    """`batch_norm` over the last axis, of `num_features`; `use_running_average`, a call's own or else the module's, evaluates.

    `nnx.Module.train()` and `eval()` set it, as they do flax's own.
    """

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        unbiased: bool = True,
        use_running_average: bool = False,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs | None = None,  # accepted like every flax module's, though nothing here is drawn
    ) -> None:
        self.eps, self.momentum, self.unbiased = eps, momentum, unbiased
        self.use_running_average = use_running_average
        self.weight = nnx.Param(jnp.ones(num_features, param_dtype))
        self.bias = nnx.Param(jnp.zeros(num_features, param_dtype))
        self.mean = nnx.BatchStat(jnp.zeros(num_features, param_dtype))
        self.var = nnx.BatchStat(jnp.ones(num_features, param_dtype))

    def __call__(self, x: Float[Array, "*batch d"], use_running_average: bool | None = None) -> Float[Array, "*batch d"]:
        evaluates = self.use_running_average if use_running_average is None else use_running_average
        given = x, self.weight[...], self.bias[...], self.mean[...], self.var[...]
        made = batch_norm(*given, eps=self.eps, training=not evaluates, momentum=self.momentum, unbiased=self.unbiased)
        if not isinstance(made, tuple):
            return made
        y, self.mean[...], self.var[...] = made
        return y


def _sum(a: Array, axis_name: AxisName | None) -> Array:
    """Sum [*batch, d] over the rows, those that other devices have too."""
    total = sum_rows(a)
    return total if axis_name is None else lax.psum(total, axis_name)
