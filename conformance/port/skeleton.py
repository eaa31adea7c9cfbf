"""A port to begin with: it runs at once, and skips what is not written yet."""

from string import Template

from conformance.ops.norms.cases import ROW_NORMS
from conformance.ops.table import OPS
from conformance.port.base import NOT_WRITTEN

PORT = Template('''\
"""What $name makes of the norms: `conformance run $file`."""

import numpy as np
from conformance import port


class Port(port.Port):
    """The layers of $name. What raises Skip is not judged."""

    name = "$name"
    dtypes = ("float64", "float32", "bfloat16", "float16")  # strike what it lacks
    # orders = ("cast_then_scale",)  # `conformance identify $file` tells

    def versions(self):
        """What a report names, such as {"torch": torch.__version__}."""
        return {}

    def to_tensor(self, array):
        """A NumPy array, bfloat16 as ml_dtypes has it, to a tensor of its dtype."""
        return array

    def to_numpy(self, tensor):
        """A tensor to a NumPy array of its dtype."""
        return np.asarray(tensor)
$ops
    # Until this is written, y alone is judged.
    # def gradients(self, function, tensors, dy):
    #     """y = function(*tensors), and the gradients of sum(y · dy) for each tensor."""
    #     return y, [...]
''')
OP = Template('''
    def $definition:
        """$sentence"""
        raise port.Skip("$reason")
''')
TRITON_PORT = Template('''\
"""What $name's Triton kernels make of the norms.

On a GPU: `conformance run $file --device cuda`.
Anywhere, in Triton's interpreter: `TRITON_INTERPRET=1 conformance run $file`.
"""

import torch
import triton
import triton.language as tl
from conformance import port
from impl_torch.kernels.port import TritonPort


@triton.jit
def rms_norm_kernel(x, weight, y, x_stride, width, eps, COLUMNS: tl.constexpr):
    """Normalise and scale one row: the statistics in float32, rounded once."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    mask = columns < width
    numbers = tl.load(x + row * x_stride + columns, mask=mask, other=0.0)
    numbers = numbers.to(tl.float32)
    mean_square = tl.sum(numbers * numbers) / width
    scaled = numbers * tl.rsqrt(mean_square + eps)
    if weight is not None:
        scaled *= tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + row * width + columns, scaled.to(y.dtype.element_ty), mask=mask)


def rms_norm(x, weight, eps):
    """Launch a program for every row; rows may lie apart."""
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    weight = None if weight is None else weight.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if len(rows):  # a grid of no programs is an error on a GPU
        arguments = (rows, weight, y, rows.stride(0), width, eps)
        columns = triton.next_power_of_2(width)
        rms_norm_kernel[(len(rows),)](*arguments, COLUMNS=columns)
    return y


class Port(TritonPort):
    """The kernels of $name. What raises Skip is not judged."""

    name = "$name"
    dtypes = ("float32", "bfloat16", "float16")
    orders = ("scale_then_cast",)  # `conformance identify $file` tells
    vjp = port.Port.vjp  # y alone is judged; strike this once there are gradients

    def rms_norm(self, x, weight, *, eps):
        """Call what is to be judged."""
        return rms_norm(x, weight, eps)
$ops''')
PALLAS_PORT = Template('''\
"""What $name's Pallas kernels make of the norms.

On an accelerator: `conformance run $file --device tpu`, or `cuda`.
On a CPU, interpreted: `conformance run $file`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from conformance import port
from impl_jax.kernels.port import PallasPort
from jax.experimental import pallas as pl

ROWS = 8  # that a program takes


def rms_norm_kernel(*references, width, eps):
    """Normalise and scale ROWS rows: the statistics in float32, rounded once."""
    x, *weight, y = references
    numbers = x[...].astype(jnp.float32)
    mean_square = jnp.sum(numbers * numbers, axis=1, keepdims=True) / width
    scaled = numbers * jax.lax.rsqrt(mean_square + eps)
    if weight:
        scaled *= weight[0][...].astype(jnp.float32)
    y[...] = scaled.astype(y.dtype)


def rms_norm(x, weight, eps):
    """Launch a program for every ROWS rows, of which the last may have fewer."""
    if x.size == 0:  # a grid of no programs
        return x
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    parameters = [] if weight is None else [weight.reshape(1, width)]
    of_rows = pl.BlockSpec((ROWS, width), lambda tile: (tile, 0))
    of_parameter = pl.BlockSpec((1, width), lambda tile: (0, 0))
    y = pl.pallas_call(
        partial(rms_norm_kernel, width=width, eps=eps),
        out_shape=jax.ShapeDtypeStruct(rows.shape, x.dtype),
        grid=(pl.cdiv(len(rows), ROWS),),
        in_specs=[of_rows, *(of_parameter for _ in parameters)],
        out_specs=of_rows,
    )(rows, *parameters)
    return y.reshape(x.shape)


class Port(PallasPort):
    """The kernels of $name. What raises Skip is not judged."""

    name = "$name"
    dtypes = ("float32", "bfloat16", "float16")
    orders = ("scale_then_cast",)  # `conformance identify $file` tells
    static = (*PallasPort.static, "eps")  # a kernel may hold it, and read no tracer
    vjp = port.Port.vjp  # y alone is judged; strike this once there are gradients

    def rms_norm(self, x, weight, *, eps):
        """Call what is to be judged."""
        return rms_norm(x, weight, eps)
$ops''')
PORTS = {"": PORT, "triton": TRITON_PORT, "pallas": PALLAS_PORT}
LINE = 88  # characters, as formatters have it


def skeleton(name: str, file: str, *, block: bool, kernel: str = "") -> str:
    """The source of a port by that name, to be written to that file; with `block`, all other ops too.

    `kernel` is "triton" or "pallas" where the first op is to be there, as such a kernel.
    """
    ops = list(OPS.values()) if block else [OPS[each] for each in ROW_NORMS]
    left = ops[1:] if kernel else ops
    written = [OP.substitute(definition=_wrapped(op.signature), sentence=op.formula, reason=NOT_WRITTEN) for op in left]
    return PORTS[kernel].substitute(name=name, file=file, ops="".join(written))


def _wrapped(signature: str) -> str:
    """A method's name and parameters, in a line, or each in its own where the line would be too long."""
    name, _, parameters = signature.removesuffix(")").partition("(")
    if len(f"    def {signature}:") <= LINE:
        return signature
    return "\n        ".join((f"{name}(", *(f"{each}," for each in parameters.split(", ")))) + "\n    )"
