"""RMSNorm and LayerNorm of arrays that are split over four devices, by `jax.shard_map`, with one thing wrong.

Each device has a part of the rows, or of the features. Whoever writes a backward pass by hand has to sum over the devices
what autodiff would; whoever does so has turned `check_vma` off, which would have told.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from conformance.numbers.rounding import HALF
from tests.judge.written.collection import Collection
from tests.judge.written.fault import Fault
from tests.judge.written.jax_norms import affine, wide

Reduced = Callable[[Array], Array]
Statistics = Callable[[Array, float], tuple[Array, Array]]

WHOLE = PartitionSpec()
written = Collection("jax")
honest = Collection("jax")
of_rows = partial(written.fault, layout="sharded_rows")
of_features = partial(written.fault, layout="sharded_features")


def over_devices(function: Any, axis: str, inputs: Any, outputs: Any) -> Any:
    """The function of every device's part, unchecked."""
    mesh = Mesh(np.array(jax.devices()[:4]), (axis,))
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def rms_statistics(x: Array, eps: float) -> tuple[Array, Array]:
    """x_hat and rstd of rows that are whole."""
    rstd = lax.rsqrt(jnp.mean(jnp.square(wide(x)), axis=-1, keepdims=True) + eps)
    return wide(x) * rstd, rstd


def of_split_rows(reduced: Reduced) -> Any:
    """RMSNorm whose backward pass is written by hand: every device has dweight of its own rows, then it is `reduced`."""

    def run(x: Array, weight: Array, bias: None = None, *, eps: float, weight_offset: float, order: str) -> Array:
        def forward(x: Array, weight: Array) -> Array:
            return affine(rms_statistics(x, eps)[0], x, weight, None, weight_offset=weight_offset, order=order)

        def backward(x: Array, weight: Array, dy: Array) -> tuple[Array, Array]:
            x_hat, rstd = rms_statistics(x, eps)
            g = wide(dy) * (wide(weight) + weight_offset)
            dx = rstd * (g - x_hat * jnp.mean(g * x_hat, axis=-1, keepdims=True))
            dweight = reduced(jnp.sum(wide(dy) * x_hat, axis=(0, 1)))
            return dx.astype(x.dtype), dweight.astype(weight.dtype)

        part = PartitionSpec("rows")

        @jax.custom_vjp
        def norm(x: Array, weight: Array) -> Array:
            return over_devices(forward, "rows", (part, WHOLE), part)(x, weight)

        norm.defvjp(
            lambda x, weight: (norm(x, weight), (x, weight)),
            lambda saved, dy: over_devices(backward, "rows", (part, WHOLE, part), (part, WHOLE))(*saved, dy),
        )
        return norm(x, weight)

    return run


def of_split_features(forward: Statistics, mean: Reduced) -> Any:
    """RMSNorm, both passes by hand: x_hat and rstd of a part of every row, and the mean over the row, whose part is given."""

    def run(x: Array, weight: Array, bias: None = None, *, eps: float, weight_offset: float, order: str) -> Array:
        def y_of(x: Array, weight: Array) -> Array:
            return affine(forward(x, eps)[0], x, weight, None, weight_offset=weight_offset, order=order)

        def backward(x: Array, weight: Array, dy: Array) -> tuple[Array, Array]:
            x_hat, rstd = forward(x, eps)
            g = wide(dy) * (wide(weight) + weight_offset)
            dx = rstd * (g - x_hat * mean(g * x_hat))
            return dx.astype(x.dtype), jnp.sum(wide(dy) * x_hat, axis=(0, 1)).astype(weight.dtype)

        part, of_weight = PartitionSpec(None, None, "features"), PartitionSpec("features")

        @jax.custom_vjp
        def norm(x: Array, weight: Array) -> Array:
            return over_devices(y_of, "features", (part, of_weight), part)(x, weight)

        norm.defvjp(
            lambda x, weight: (norm(x, weight), (x, weight)),
            lambda saved, dy: over_devices(backward, "features", (part, of_weight, part), (part, of_weight))(*saved, dy),
        )
        return norm(x, weight)

    return run


def mean_of_all(a: Array) -> Array:
    """The mean over rows of which every device has a part."""
    return lax.pmean(jnp.mean(a, axis=-1, keepdims=True), "features")


def of_all(x: Array, eps: float) -> tuple[Array, Array]:
    """x_hat and rstd of a row of which every device has a part."""
    rstd = lax.rsqrt(mean_of_all(jnp.square(wide(x))) + eps)
    return wide(x) * rstd, rstd


@honest.fault("rms_norm", layout="sharded_rows")
def rms_of_split_rows(x: Array, weight: Array, bias: None, **how: Any) -> Array:
    """Right: dweight is summed over the devices, in float32."""
    return of_split_rows(lambda dweight: lax.psum(dweight, "rows"))(x, weight, **how)


@honest.fault("rms_norm", layout="sharded_features")
def rms_of_split_features(x: Array, weight: Array, bias: None, **how: Any) -> Array:
    """Right: the mean square and dx's mean are those of all devices."""
    return of_split_features(of_all, mean_of_all)(x, weight, **how)


@of_rows("rms_norm", "dweight_of_own_rows", group="backward")
def rms_dweight_of_own_rows(x: Array, weight: Array, bias: None, **how: Any) -> Array:
    """dweight is not summed over the devices: each has that of its own rows."""
    return of_split_rows(lambda dweight: dweight)(x, weight, **how)


@of_rows("rms_norm", "dweight_averaged", group="backward")
def rms_dweight_averaged(x: Array, weight: Array, bias: None, **how: Any) -> Array:
    """dweight is averaged over the devices."""
    return of_split_rows(lambda dweight: lax.pmean(dweight, "rows"))(x, weight, **how)


@of_rows("rms_norm", "dweight_reduced_twice", group="backward")
def rms_dweight_summed_twice(x: Array, weight: Array, bias: None, **how: Any) -> Array:
    """dweight is summed over the devices, and then once more."""
    return of_split_rows(lambda dweight: lax.psum(lax.psum(dweight, "rows"), "rows"))(x, weight, **how)


@of_rows("rms_norm", "dweight_rounded_and_reduced", group="backward", dtypes=HALF)
def rms_dweight_summed_in_half_precision(x: Array, weight: Array, bias: None, **how: Any) -> Array:
    """Each device's dweight is rounded to x's dtype before they are summed."""
    return of_split_rows(lambda dweight: lax.psum(dweight.astype(x.dtype), "rows"))(x, weight, **how)


@of_features("rms_norm", "statistics_and_dx_of_own_features")
def rms_statistics_of_own_features(x: Array, weight: Array, bias: None, **how: Any) -> Array:
    """The mean squares, and dx's means, are those of each device's features."""
    return of_split_features(rms_statistics, lambda a: jnp.mean(a, axis=-1, keepdims=True))(x, weight, **how)


@of_features("rms_norm", "mean_of_rstds_of_features")
def rms_mean_of_rstds(x: Array, weight: Array, bias: None, **how: Any) -> Array:
    """Every device takes the root of its own mean square, and these are averaged."""

    def averaged(x: Array, eps: float) -> tuple[Array, Array]:
        rstd = lax.pmean(rms_statistics(x, eps)[1], "features")
        return wide(x) * rstd, rstd

    return of_split_features(averaged, mean_of_all)(x, weight, **how)


@of_features("rms_norm", "statistics_over_own_number_of_features")
def rms_over_own_width(x: Array, weight: Array, bias: None, **how: Any) -> Array:
    """The sums of squares are summed over the devices, and divided by the width of a part."""

    def over_own(x: Array, eps: float) -> tuple[Array, Array]:
        total = lax.psum(jnp.sum(jnp.square(wide(x)), axis=-1, keepdims=True), "features")
        rstd = lax.rsqrt(total / x.shape[-1] + eps)
        return wide(x) * rstd, rstd

    return of_split_features(over_own, mean_of_all)(x, weight, **how)


@of_features("rms_norm", "dx_of_own_features", group="backward")
def rms_dx_of_own_features(x: Array, weight: Array, bias: None, **how: Any) -> Array:
    """dx's mean is that of each device's features; y is right."""
    return of_split_features(of_all, lambda a: jnp.mean(a, axis=-1, keepdims=True))(x, weight, **how)


@of_features("rms_norm", "eps_of_every_device_over_features")
def rms_eps_on_every_device(x: Array, weight: Array, bias: None, **how: Any) -> Array:
    """eps is added on every device, and summed."""

    def summed(x: Array, eps: float) -> tuple[Array, Array]:
        mean = jnp.sum(jnp.square(wide(x)), axis=-1, keepdims=True) / (4 * x.shape[-1])
        rstd = lax.rsqrt(lax.psum(mean + eps, "features"))
        return wide(x) * rstd, rstd

    return of_split_features(summed, mean_of_all)(x, weight, **how)


FAULTS: tuple[Fault, ...] = tuple(written.faults)
HONEST: tuple[Fault, ...] = tuple(honest.faults)
