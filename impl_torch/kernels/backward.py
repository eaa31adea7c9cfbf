"""The backward pass of every norm of rows, as one Triton kernel."""

# Triton takes a constant as it is.
# pyright: reportArgumentType=false

import triton
import triton.language as tl

from impl_torch.kernels.forward import read, read_sum, write


@triton.jit(do_not_specialize=["n_rows"])  # one kernel for all batches
def norm_backward(
    # What is written: [n_rows, d], [programs, d] or None, the same; the last two are zeros to begin with.
    ds_out,
    dweight_parts,
    dbias_parts,
    # What is read: [n_rows, d], the same or None, the same, the same or None, [d] or None, [n_rows, groups], [n_rows, groups].
    dy,
    dresidual_out,
    x,
    residual,
    weight,
    mean_in,
    rstd_in,
    n_rows,
    width,  # of a group, as in the forward pass
    dy_stride,  # numbers from the start of a row to that of the next
    dresidual_out_stride,
    x_stride,
    residual_stride,
    weight_offset: tl.constexpr,
    CENTRED: tl.constexpr,  # whether it is LayerNorm
    COMPUTE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LONG: tl.constexpr,  # whether a row has more than COLUMNS numbers
):
    """The gradient of what the norm read, and the parts of dweight and dbias that come from this program's rows of a group.

    A program takes ROWS rows, then ROWS others as far on as there are programs, until there are no more. It adds them up in
    that order, and whoever called adds up the parts: no bit depends on which program is first, and none needs atomics.
    The first COLUMNS numbers of a row and of its program's part stay in registers. What is beyond, a row reads twice, from the
    cache, and adds to the part in memory.
    """
    columns = tl.program_id(1) * width + tl.arange(0, COLUMNS)[None, :]  # 1 COLUMNS
    stop = (tl.program_id(1) + 1) * width  # the column where the next group begins
    end = width if LONG else COLUMNS  # of the loops over what is beyond; a constant, and there is none to compile
    dweight = tl.zeros([ROWS, COLUMNS], COMPUTE)
    dbias = tl.zeros([ROWS, COLUMNS], COMPUTE)
    d = tl.num_programs(1) * width
    part = tl.program_id(0) * d

    for tile in range(tl.program_id(0), tl.cdiv(n_rows, ROWS), tl.num_programs(0)):
        rows = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]  # ROWS 1
        exists = rows < n_rows  # ROWS 1
        group = rows * tl.num_programs(1) + tl.program_id(1)  # ROWS 1
        mask = exists & (columns < stop)  # ROWS COLUMNS
        rstd = tl.load(rstd_in + group, mask=exists, other=0.0)  # ROWS 1
        mean = tl.zeros([ROWS, 1], COMPUTE)
        if CENTRED:
            mean = tl.load(mean_in + group, mask=exists, other=0.0)

        x_hat = (read_sum(x, x_stride, residual, residual_stride, rows, columns, mask, False, COMPUTE) - mean) * rstd
        from_y = read(dy, dy_stride, rows, columns, mask, COMPUTE)
        g = through_weight(from_y, weight, columns, stop, weight_offset)  # ROWS COLUMNS
        dweight += from_y * x_hat
        dbias += from_y

        projections = g * x_hat
        shifts = g
        for start in range(COLUMNS, end, COLUMNS):
            beyond = exists & (start + columns < stop)
            s = read_sum(x, x_stride, residual, residual_stride, rows, start + columns, beyond, False, COMPUTE)
            from_y = read(dy, dy_stride, rows, start + columns, beyond, COMPUTE)
            other_g = through_weight(from_y, weight, start + columns, stop, weight_offset)
            projections += other_g * ((s - mean) * rstd)
            shifts += other_g
        projection = tl.sum(projections, axis=1, keep_dims=True) / width  # ROWS 1
        shift = tl.zeros([ROWS, 1], COMPUTE)
        if CENTRED:
            shift = tl.sum(shifts, axis=1, keep_dims=True) / width  # ROWS 1

        ds = rstd * (g - shift - x_hat * projection)  # ROWS COLUMNS
        if dresidual_out is not None:
            ds += read(dresidual_out, dresidual_out_stride, rows, columns, mask, COMPUTE)
        write(ds_out, rows * d + columns, ds, mask)
        for start in range(COLUMNS, end, COLUMNS):
            beyond = exists & (start + columns < stop)
            s = read_sum(x, x_stride, residual, residual_stride, rows, start + columns, beyond, False, COMPUTE)
            from_y = read(dy, dy_stride, rows, start + columns, beyond, COMPUTE)
            other_g = through_weight(from_y, weight, start + columns, stop, weight_offset)
            other_x_hat = (s - mean) * rstd
            ds = rstd * (other_g - shift - other_x_hat * projection)
            if dresidual_out is not None:
                ds += read(dresidual_out, dresidual_out_stride, rows, start + columns, beyond, COMPUTE)
            write(ds_out, rows * d + start + columns, ds, beyond)
            add_to_part(dweight_parts, part + start + columns, from_y * other_x_hat, start + columns < stop)
            add_to_part(dbias_parts, part + start + columns, from_y, start + columns < stop)

    add_to_part(dweight_parts, part + columns, dweight, columns < stop)
    add_to_part(dbias_parts, part + columns, dbias, columns < stop)


@triton.jit
def through_weight(dy, weight, columns, stop, weight_offset: tl.constexpr):
    """(weight + weight_offset) · dy, [ROWS, COLUMNS]."""
    if weight is not None:
        dy *= tl.load(weight + columns, mask=columns < stop, other=0.0).to(dy.dtype) + weight_offset
    return dy


@triton.jit
def add_to_part(part, places, terms, mask):
    """Add the sum over rows of [ROWS, COLUMNS] terms to a part, where there is one; no other program does."""
    if part is not None:
        tl.debug_barrier()  # what another thread of this program added to these places before
        tl.store(part + places, tl.load(part + places, mask=mask) + tl.sum(terms, axis=0, keep_dims=True), mask=mask)
