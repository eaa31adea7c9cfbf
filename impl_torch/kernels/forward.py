"""The forward pass of every norm of rows, as one Triton kernel: RMSNorm and LayerNorm, of x or of a sum with a residual."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n_rows"])  # one kernel for all batches
def norm_forward(
    # What is written: [n_rows, d], the same or None, [n_rows, groups], [n_rows, groups].
    y,
    residual_out,
    mean_out,
    rstd_out,
    # What is read: [n_rows, d], the same or None, [d] or None, [d] or None.
    x,
    residual,
    weight,
    bias,
    n_rows,
    width,  # of a group, of which the grid's second axis has one after the other; most rows are one group
    x_stride,  # numbers from the start of a row to that of the next
    residual_stride,
    eps: tl.constexpr,  # a constant: a number that is passed is float32, in float64 too
    weight_offset: tl.constexpr,
    CENTRED: tl.constexpr,  # whether it is LayerNorm
    ROUNDED: tl.constexpr,  # whether the norm reads the sum as it is stored
    X_HAT: tl.constexpr,  # the dtype that x_hat is rounded to
    COMPUTE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LONG: tl.constexpr,  # whether a row has more than COLUMNS numbers
):
    """Normalise a group of ROWS rows, of which the first COLUMNS numbers stay in registers: most rows have no more.

    What is beyond, a row reads again, from the cache, for each of its statistics and for y.
    """
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]  # ROWS 1
    columns = tl.program_id(1) * width + tl.arange(0, COLUMNS)[None, :]  # 1 COLUMNS
    stop = (tl.program_id(1) + 1) * width  # the column where the next group begins
    end = width if LONG else COLUMNS  # of the loops over what is beyond; a constant, and there is none to compile
    d = tl.num_programs(1) * width
    group = rows * tl.num_programs(1) + tl.program_id(1)  # ROWS 1
    exists = rows < n_rows  # ROWS 1
    mask = exists & (columns < stop)  # ROWS COLUMNS
    first = read_sum(x, x_stride, residual, residual_stride, rows, columns, mask, ROUNDED, COMPUTE)

    mean = tl.zeros([ROWS, 1], COMPUTE)
    if CENTRED:
        total = first
        for start in range(COLUMNS, end, COLUMNS):
            beyond = exists & (start + columns < stop)
            total += read_sum(x, x_stride, residual, residual_stride, rows, start + columns, beyond, ROUNDED, COMPUTE)
        mean = tl.sum(total, axis=1, keep_dims=True) / width
        tl.store(mean_out + group, mean, mask=exists)

    squares = squared_distance(first, mean, mask)
    for start in range(COLUMNS, end, COLUMNS):
        beyond = exists & (start + columns < stop)
        s = read_sum(x, x_stride, residual, residual_stride, rows, start + columns, beyond, ROUNDED, COMPUTE)
        squares += squared_distance(s, mean, beyond)
    rstd = reciprocal_root(tl.sum(squares, axis=1, keep_dims=True) / width + eps)  # ROWS 1
    tl.store(rstd_out + group, rstd, mask=exists)

    scaled = scale((first - mean) * rstd, weight, bias, columns, stop, weight_offset, X_HAT)
    write(y, rows * d + columns, scaled, mask)
    write(residual_out, rows * d + columns, first, mask)
    for start in range(COLUMNS, end, COLUMNS):
        beyond = exists & (start + columns < stop)
        s = read_sum(x, x_stride, residual, residual_stride, rows, start + columns, beyond, ROUNDED, COMPUTE)
        scaled = scale((s - mean) * rstd, weight, bias, start + columns, stop, weight_offset, X_HAT)
        write(y, rows * d + start + columns, scaled, beyond)
        write(residual_out, rows * d + start + columns, s, beyond)


@triton.jit
def read_sum(x, x_stride, residual, residual_stride, rows, columns, mask, ROUNDED: tl.constexpr, COMPUTE: tl.constexpr):
    """What the norm reads, [ROWS, COLUMNS] in COMPUTE, zero outside the mask: x, or its sum with the residual."""
    s = read(x, x_stride, rows, columns, mask, COMPUTE)
    if residual is not None:
        s += read(residual, residual_stride, rows, columns, mask, COMPUTE)
        if ROUNDED:
            s = s.to(residual.dtype.element_ty).to(COMPUTE)
    return s


@triton.jit
def read(pointer, stride, rows, columns, mask, COMPUTE: tl.constexpr):
    """Some numbers of some rows, [ROWS, COLUMNS] in COMPUTE, zero outside the mask."""
    return tl.load(pointer + rows * stride + columns, mask=mask, other=0.0).to(COMPUTE)


@triton.jit
def squared_distance(s, mean, mask):
    """(s - mean)², [ROWS, COLUMNS], zero outside the mask."""
    distance = tl.where(mask, s - mean, 0.0)
    return distance * distance


@triton.jit
def reciprocal_root(number):
    """1 / √number. The device's own `rsqrt` is an approximation, which takes the smallest numbers for zero."""
    if number.dtype == tl.float64:
        return 1.0 / tl.sqrt(number)
    else:
        return tl.div_rn(1.0, tl.sqrt_rn(number))


@triton.jit
def scale(x_hat, weight, bias, columns, stop, weight_offset: tl.constexpr, X_HAT: tl.constexpr):
    """(weight + weight_offset) · x_hat + bias, [ROWS, COLUMNS], of x_hat rounded to X_HAT."""
    y = x_hat.to(X_HAT).to(x_hat.dtype)
    if weight is not None:
        y *= tl.load(weight + columns, mask=columns < stop, other=0.0).to(x_hat.dtype) + weight_offset
    if bias is not None:
        y += tl.load(bias + columns, mask=columns < stop, other=0.0).to(x_hat.dtype)
    return y


@triton.jit
def write(pointer, places, numbers, mask):
    """Round the numbers to the dtype of what they are stored in, if it is there."""
    if pointer is not None:
        tl.store(pointer + places, numbers.to(pointer.dtype.element_ty), mask=mask)
