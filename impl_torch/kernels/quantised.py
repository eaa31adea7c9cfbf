"""RMSNorm whose output is quantised as a Triton kernel, of x or of a sum with a residual."""

# Triton takes a constant as it is, and None for one.
# pyright: reportUnnecessaryComparison=false, reportAssignmentType=false

import triton
import triton.language as tl
from triton.language.extra import libdevice

from impl_torch.kernels.forward import read_sum, reciprocal_root, scale, squared_distance, write

BIAS, DIGITS, LEAST_EXPONENT = tl.constexpr(127), tl.constexpr(23), tl.constexpr(-126)  # of float32


@triton.jit(do_not_specialize=["n_rows"])  # one kernel for all batches
def quantised_forward(
    # What is written: [n_rows, width], [n_rows, scales] or None, [n_rows, width] or None.
    q,
    scale_out,
    residual_out,
    # What is read: [n_rows, width], the same or None, [width] or None, [1] or None.
    x,
    residual,
    weight,
    scale_in,
    n_rows,
    width,
    x_stride,  # numbers from the start of a row to that of the next
    residual_stride,
    eps: tl.constexpr,
    weight_offset: tl.constexpr,
    qmax: tl.constexpr,
    emax: tl.constexpr,  # the exponent of qmax where a scale is a power of two, and else None
    floor: tl.constexpr,  # the least scale
    scale_ub: tl.constexpr,  # of the largest |y|, or None
    GROUP: tl.constexpr,  # numbers that share a scale, or None: a row's
    ROUNDED: tl.constexpr,  # whether the norm reads the sum as it is stored
    X_HAT: tl.constexpr,  # the dtype that x_hat is rounded to
    Y: tl.constexpr,  # the dtype that y is rounded to
    COMPUTE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LONG: tl.constexpr,  # whether a row has more than COLUMNS numbers
):
    """Normalise and quantise ROWS rows; what is beyond their first COLUMNS numbers is read again, from the cache."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]  # ROWS 1
    columns = tl.arange(0, COLUMNS)[None, :]  # 1 COLUMNS
    end = width if LONG else COLUMNS  # of the loops over what is beyond
    exists = rows < n_rows  # ROWS 1
    mask = exists & (columns < width)  # ROWS COLUMNS
    first = read_sum(x, x_stride, residual, residual_stride, rows, columns, mask, ROUNDED, COMPUTE)

    squares = squared_distance(first, 0.0, mask)
    for start in range(COLUMNS, end, COLUMNS):
        beyond = exists & (start + columns < width)
        s = read_sum(x, x_stride, residual, residual_stride, rows, start + columns, beyond, ROUNDED, COMPUTE)
        squares += squared_distance(s, 0.0, beyond)
    rstd = reciprocal_root(tl.sum(squares, axis=1, keep_dims=True) / width + eps)  # ROWS 1

    y = scale(first * rstd, weight, None, columns, width, weight_offset, X_HAT).to(Y).to(tl.float32)  # ROWS COLUMNS
    divisor = tl.full([1, 1], 1.0, tl.float32)
    if scale_in is not None:
        divisor *= tl.load(scale_in)
    elif GROUP is None:
        largest = tl.max(tl.abs(y), axis=1, keep_dims=True)  # ROWS 1
        for start in range(COLUMNS, end, COLUMNS):
            beyond = exists & (start + columns < width)
            s = read_sum(x, x_stride, residual, residual_stride, rows, start + columns, beyond, ROUNDED, COMPUTE)
            other_y = scale(s * rstd, weight, None, start + columns, width, weight_offset, X_HAT).to(Y).to(tl.float32)
            largest = tl.maximum(largest, tl.max(tl.abs(other_y), axis=1, keep_dims=True))
        divisor = dynamic_scale(largest, qmax, emax, floor, scale_ub)  # ROWS 1
        tl.store(scale_out + rows, divisor, mask=exists)

    write(residual_out, rows * width + columns, first, mask)
    if GROUP is not None:
        divisor = scale_of_groups(scale_out, y, rows, 0, width, exists, qmax, emax, floor, scale_ub, GROUP)
    write_quantised(q, rows * width + columns, y, divisor, qmax, mask)
    for start in range(COLUMNS, end, COLUMNS):
        beyond = exists & (start + columns < width)
        s = read_sum(x, x_stride, residual, residual_stride, rows, start + columns, beyond, ROUNDED, COMPUTE)
        y = scale(s * rstd, weight, None, start + columns, width, weight_offset, X_HAT).to(Y).to(tl.float32)
        write(residual_out, rows * width + start + columns, s, beyond)
        if GROUP is not None:
            divisor = scale_of_groups(scale_out, y, rows, start, width, exists, qmax, emax, floor, scale_ub, GROUP)
        write_quantised(q, rows * width + start + columns, y, divisor, qmax, beyond)


@triton.jit
def dynamic_scale(largest, qmax: tl.constexpr, emax: tl.constexpr, floor: tl.constexpr, scale_ub: tl.constexpr):
    """What brings the largest |y| to qmax, or near to it."""
    if emax is not None:
        exponent = (largest.to(tl.int32, bitcast=True) >> DIGITS) - BIAS - emax  # floor(log2(largest)) - emax
        power = ((tl.maximum(exponent, LEAST_EXPONENT) + BIAS) << DIGITS).to(tl.float32, bitcast=True)
        return tl.where(largest == 0.0, 1.0, power)
    else:
        if scale_ub is not None:
            largest = tl.minimum(largest, scale_ub)
        return tl.maximum(tl.div_rn(largest, tl.full(largest.shape, qmax, tl.float32)), floor)


@triton.jit
def scale_of_groups(
    scale_out,
    y,
    rows,
    start,
    width,
    exists,
    qmax: tl.constexpr,
    emax: tl.constexpr,
    floor: tl.constexpr,
    scale_ub: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Store the scale of every GROUP numbers of y, [ROWS, COLUMNS]; return, in y's shape, the one that each is divided by."""
    GROUPS: tl.constexpr = y.shape[1] // GROUP
    of_groups: tl.constexpr = [y.shape[0], GROUPS, GROUP]
    largest = tl.max(tl.abs(tl.reshape(y, of_groups)), axis=2)  # ROWS GROUPS
    divisor = dynamic_scale(largest, qmax, emax, floor, scale_ub)  # ROWS GROUPS
    groups = start // GROUP + tl.arange(0, GROUPS)[None, :]  # 1 GROUPS
    scales = width // GROUP
    tl.store(scale_out + rows * scales + groups, divisor, mask=exists & (groups < scales))
    return tl.reshape(tl.broadcast_to(divisor[:, :, None], of_groups), y.shape)


@triton.jit
def write_quantised(q, places, y, divisor, qmax: tl.constexpr, mask):
    """Divide, saturate and round. The device's own division is an approximation, which breaks ties."""
    z = tl.clamp(tl.div_rn(y, tl.broadcast_to(divisor, y.shape)), -qmax, qmax, propagate_nan=tl.PropagateNan.ALL)
    if q.dtype.element_ty == tl.int8:
        z = libdevice.rint(z)
    write(q, places, z, mask)
