"""RMSNorm and a gate as Triton kernels, forward and backward."""

# Triton takes a constant as it is.
# pyright: reportArgumentType=false

import triton
import triton.language as tl

from impl_torch.kernels.backward import add_to_part, through_weight
from impl_torch.kernels.forward import read, reciprocal_root, scale, write


@triton.jit(do_not_specialize=["n_rows"])  # one kernel for all batches
def gated_forward(
    # What is written: [n_rows, d], [n_rows, groups].
    y,
    rstd_out,
    # What is read: [n_rows, d], the same, [d] or None.
    x,
    gate,
    weight,
    n_rows,
    width,  # of a group, as in `norm_forward`
    x_stride,  # numbers from the start of a row to that of the next
    gate_stride,
    eps: tl.constexpr,  # a constant: a number that is passed is float32, in float64 too
    NORM_FIRST: tl.constexpr,
    SILU: tl.constexpr,  # whether the activation is SiLU, and not the sigmoid
    X_HAT: tl.constexpr,  # the dtype that x_hat is rounded to
    Z: tl.constexpr,  # the dtype that what the norm makes is rounded to
    COMPUTE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LONG: tl.constexpr,  # whether a row has more than COLUMNS numbers
):
    """Norm and gate a group of ROWS rows; what is beyond the first COLUMNS numbers is read again, from the cache."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]  # ROWS 1
    columns = tl.program_id(1) * width + tl.arange(0, COLUMNS)[None, :]  # 1 COLUMNS
    stop = (tl.program_id(1) + 1) * width
    end = width if LONG else COLUMNS  # of the loops over what is beyond
    d = tl.num_programs(1) * width
    exists = rows < n_rows  # ROWS 1
    mask = exists & (columns < stop)  # ROWS COLUMNS

    numbers = read(x, x_stride, rows, columns, mask, COMPUTE)  # ROWS COLUMNS
    a = activation(read(gate, gate_stride, rows, columns, mask, COMPUTE), SILU)  # ROWS COLUMNS
    s = numbers if NORM_FIRST else numbers * a
    squares = s * s
    for start in range(COLUMNS, end, COLUMNS):
        beyond = exists & (start + columns < stop)
        other_s = read(x, x_stride, rows, start + columns, beyond, COMPUTE)
        if not NORM_FIRST:
            other_s *= activation(read(gate, gate_stride, rows, start + columns, beyond, COMPUTE), SILU)
        squares += other_s * other_s
    rstd = reciprocal_root(tl.sum(squares, axis=1, keep_dims=True) / width + eps)  # ROWS 1
    tl.store(rstd_out + rows * tl.num_programs(1) + tl.program_id(1), rstd, mask=exists)

    z = scale(s * rstd, weight, None, columns, stop, 0.0, X_HAT).to(Z).to(COMPUTE)
    write(y, rows * d + columns, z * a if NORM_FIRST else z, mask)
    for start in range(COLUMNS, end, COLUMNS):
        beyond = exists & (start + columns < stop)
        numbers = read(x, x_stride, rows, start + columns, beyond, COMPUTE)
        a = activation(read(gate, gate_stride, rows, start + columns, beyond, COMPUTE), SILU)
        s = numbers if NORM_FIRST else numbers * a
        z = scale(s * rstd, weight, None, start + columns, stop, 0.0, X_HAT).to(Z).to(COMPUTE)
        write(y, rows * d + start + columns, z * a if NORM_FIRST else z, beyond)


@triton.jit(do_not_specialize=["n_rows"])
def gated_backward(
    # What is written: [n_rows, d], the same, [programs, d] or None; the last is zeros to begin with.
    dx_out,
    dgate_out,
    dweight_parts,
    # What is read: [n_rows, d], the same, the same, [d] or None, [n_rows, groups].
    dy,
    x,
    gate,
    weight,
    rstd_in,
    n_rows,
    width,  # of a group
    dy_stride,  # numbers from the start of a row to that of the next
    x_stride,
    gate_stride,
    NORM_FIRST: tl.constexpr,
    SILU: tl.constexpr,
    X_HAT: tl.constexpr,
    Z: tl.constexpr,
    COMPUTE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LONG: tl.constexpr,
):
    """The gradients of x and the gate, and the part of dweight that comes from this program's rows of a group.

    A program takes rows, and adds them up, in the same order as in `norm_backward`.
    """
    columns = tl.program_id(1) * width + tl.arange(0, COLUMNS)[None, :]  # 1 COLUMNS
    stop = (tl.program_id(1) + 1) * width
    end = width if LONG else COLUMNS  # of the loops over what is beyond
    d = tl.num_programs(1) * width
    part = tl.program_id(0) * d
    dweight = tl.zeros([ROWS, COLUMNS], COMPUTE)

    for tile in range(tl.program_id(0), tl.cdiv(n_rows, ROWS), tl.num_programs(0)):
        rows = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]  # ROWS 1
        exists = rows < n_rows  # ROWS 1
        mask = exists & (columns < stop)  # ROWS COLUMNS
        rstd = tl.load(rstd_in + rows * tl.num_programs(1) + tl.program_id(1), mask=exists, other=0.0)  # ROWS 1

        numbers = read(x, x_stride, rows, columns, mask, COMPUTE)  # this and the next three: ROWS COLUMNS
        its_gate = read(gate, gate_stride, rows, columns, mask, COMPUTE)
        from_y = read(dy, dy_stride, rows, columns, mask, COMPUTE)
        from_z, x_hat = around_norm(numbers, its_gate, from_y, rstd, NORM_FIRST, SILU)
        g = through_weight(from_z, weight, columns, stop, 0.0)  # ROWS COLUMNS
        dweight += from_z * x_hat

        projections = g * x_hat
        for start in range(COLUMNS, end, COLUMNS):
            beyond = exists & (start + columns < stop)
            other_numbers = read(x, x_stride, rows, start + columns, beyond, COMPUTE)
            other_gate = read(gate, gate_stride, rows, start + columns, beyond, COMPUTE)
            other_dy = read(dy, dy_stride, rows, start + columns, beyond, COMPUTE)
            from_z, other_x_hat = around_norm(other_numbers, other_gate, other_dy, rstd, NORM_FIRST, SILU)
            projections += through_weight(from_z, weight, start + columns, stop, 0.0) * other_x_hat
        projection = tl.sum(projections, axis=1, keep_dims=True) / width  # ROWS 1

        ds = rstd * (g - x_hat * projection)  # ROWS COLUMNS
        z = scale(x_hat, weight, None, columns, stop, 0.0, X_HAT).to(Z).to(COMPUTE)
        dx, dgate = through_gate(ds, numbers, its_gate, from_y, z, NORM_FIRST, SILU)
        write(dx_out, rows * d + columns, dx, mask)
        write(dgate_out, rows * d + columns, dgate, mask)
        for start in range(COLUMNS, end, COLUMNS):
            beyond = exists & (start + columns < stop)
            other_numbers = read(x, x_stride, rows, start + columns, beyond, COMPUTE)
            other_gate = read(gate, gate_stride, rows, start + columns, beyond, COMPUTE)
            other_dy = read(dy, dy_stride, rows, start + columns, beyond, COMPUTE)
            from_z, other_x_hat = around_norm(other_numbers, other_gate, other_dy, rstd, NORM_FIRST, SILU)
            ds = rstd * (through_weight(from_z, weight, start + columns, stop, 0.0) - other_x_hat * projection)
            z = scale(other_x_hat, weight, None, start + columns, stop, 0.0, X_HAT).to(Z).to(COMPUTE)
            dx, dgate = through_gate(ds, other_numbers, other_gate, other_dy, z, NORM_FIRST, SILU)
            write(dx_out, rows * d + start + columns, dx, beyond)
            write(dgate_out, rows * d + start + columns, dgate, beyond)
            add_to_part(dweight_parts, part + start + columns, from_z * other_x_hat, start + columns < stop)

    add_to_part(dweight_parts, part + columns, dweight, columns < stop)


@triton.jit
def activation(gate, SILU: tl.constexpr):
    """SiLU or the sigmoid of the gate."""
    a = tl.sigmoid(gate)
    if SILU:
        a *= gate
    return a


@triton.jit
def slope(gate, SILU: tl.constexpr):
    """The activation's derivative. One less the sigmoid is the sigmoid of the other sign, and does not cancel."""
    falls = tl.sigmoid(-gate)
    factor = tl.sigmoid(gate)
    return factor * (1.0 + gate * falls) if SILU else factor * falls


@triton.jit
def around_norm(numbers, gate, dy, rstd, NORM_FIRST: tl.constexpr, SILU: tl.constexpr):
    """The gradient of what the norm makes, and x_hat, from x, the gate and dy, all [ROWS, COLUMNS]."""
    a = activation(gate, SILU)
    if NORM_FIRST:
        return dy * a, numbers * rstd
    else:
        return dy, numbers * a * rstd


@triton.jit
def through_gate(ds, numbers, gate, dy, z, NORM_FIRST: tl.constexpr, SILU: tl.constexpr):
    """The gradients of x and the gate, from that of what the norm read; z is what it made."""
    if NORM_FIRST:
        return ds, dy * z * slope(gate, SILU)
    else:
        return ds * activation(gate, SILU), ds * numbers * slope(gate, SILU)
