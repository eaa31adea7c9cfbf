"""What launches the kernels, by Mosaic on a TPU, by Triton on a GPU, and interpreted on a CPU."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu, triton

from impl_jax.kernels.passes import Norm, References

TPU_NUMBERS, GPU_NUMBERS = 65536, 4096  # that a program reads at once, of as many rows as that takes
PARAMETERS = ("weight", "bias", "constants")
LANES, SUBLANES, MOST_ROWS = 128, 8, 512  # of a tile on a TPU

Kernel = Callable[[Norm, References, References], None]
Shapes = dict[str, jax.ShapeDtypeStruct]


def launch(kernel: Kernel, norm: Norm, given: dict[str, Array], made: Shapes, parts: tuple[str, ...] = ()) -> dict[str, Array]:
    """Return what the kernel makes of what it is given.

    Tensors are [groups, n_rows, width], parameters [groups, 1, width], and "constants" is eps and the weight's offset, [2].
    What is made is shaped as `made` says; `parts`, parameters' sums over rows, come one for every tile of rows, and are added
    up here: no bit depends on which program is first.
    """
    if norm.n_rows == 0:
        sums = {name: jnp.zeros((len(given["x"]), 1, norm.width), norm.compute) for name in parts}
        return sums | {name: jnp.zeros(each.shape, each.dtype) for name, each in made.items()}
    of_triton = triton.CompilerParams(num_warps=8)
    of_tpu, of_gpu = _tpu_tile(norm.width), _gpu_tile(norm.width)
    call = partial(_call, kernel=kernel, parts=parts)
    return lax.platform_dependent(
        given,
        cpu=partial(_interpreted, call, norm=replace(norm, elides=True), made=made, tile=of_tpu),
        tpu=partial(call, norm=norm, made=made, tile=of_tpu, constants=pl.BlockSpec(memory_space=tpu.SMEM)),
        cuda=partial(call, norm=replace(norm, masked=True), made=made, tile=of_gpu, compiler_params=of_triton),
    )


def _interpreted(
    call: Callable[..., dict[str, Array]], given: dict[str, Array], *, norm: Norm, made: Shapes, tile: tuple[int, int]
) -> dict[str, Array]:
    """What is made of two tiles at least, the second beyond the last row where there is one.

    XLA unrolls a loop that turns once, and then adds up a row that is alone in another order.
    """
    beyond = (0, 0), (0, max(0, tile[0] + 1 - norm.n_rows)), (0, 0)
    longer = {name: jnp.pad(each, beyond) for name, each in given.items() if name not in PARAMETERS}
    shapes = {name: jax.ShapeDtypeStruct(longer["x"].shape, each.dtype) for name, each in made.items()}
    outputs = call(given | longer, norm=norm, made=shapes, tile=tile, interpret=True)
    return outputs | {name: outputs[name][:, : norm.n_rows] for name in made}


def _call(
    given: dict[str, Array],
    *,
    kernel: Kernel,
    norm: Norm,
    made: Shapes,
    parts: tuple[str, ...],
    tile: tuple[int, int],
    constants: pl.BlockSpec | None = None,
    **compiled: Any,
) -> dict[str, Array]:
    groups, tiles = len(given["x"]), pl.cdiv(given["x"].shape[1], tile[0])
    of_rows = pl.BlockSpec((None, *tile), lambda group, row: (group, row, 0))
    of_parameter = pl.BlockSpec((None, 1, tile[1]), lambda group, row: (group, 0, 0))
    of_part = pl.BlockSpec((None, None, 1, tile[1]), lambda group, row: (group, row, 0, 0))
    shapes = made | {name: jax.ShapeDtypeStruct((groups, tiles, 1, norm.width), norm.compute) for name in parts}
    specs = {name: of_parameter if name in PARAMETERS else of_rows for name in given}
    outputs = pl.pallas_call(
        partial(kernel, norm),
        out_shape=shapes,
        grid=(groups, tiles),
        in_specs=(specs | {"constants": constants or pl.BlockSpec((2,), lambda group, row: (0,))},),
        out_specs={name: of_part if name in parts else of_rows for name in shapes},
        **compiled,
    )(given)
    return outputs | {name: jnp.sum(outputs[name], axis=1) for name in parts}


def _tpu_tile(width: int) -> tuple[int, int]:
    """Rows and columns of a block: whole rows. The width alone says how many, so that a row has the same bits in any batch."""
    rows = TPU_NUMBERS // (pl.cdiv(width, LANES) * LANES) // SUBLANES * SUBLANES
    return min(max(rows, SUBLANES), MOST_ROWS), width


def _gpu_tile(width: int) -> tuple[int, int]:
    """Likewise; Triton's blocks have powers of two."""
    columns = pl.next_power_of_2(width)
    return max(1, GPU_NUMBERS // columns), columns
