"""Case -> why it has no answer: what a case that is drawn at random, or read from a file, must not ask."""

from math import inf, isfinite, prod

import numpy as np

from conformance.numbers.draws import LARGEST_BELL
from conformance.numbers.rounding import FORMATS
from conformance.ops.draw import LARGEST_WEIGHT
from conformance.ops.golden import Golden
from conformance.ops.norms.cases import ADD_NORMS, NormCase
from conformance.ops.norms.exact_inputs import EPS, WIDTH
from conformance.ops.norms.golden import as_the_norm_has_them
from conformance.ops.norms.quantised import QuantisedCase
from conformance.ops.norms.quantising import group_size
from conformance.ops.norms.values import mean
from conformance.question.case import is_split, layouts

Array = np.ndarray

LARGEST_X = 2.0**36  # beyond it the third power of rstd, which autograd forms, comes near float32's subnormal numbers
SMALLEST_NORMAL = 2.0**-126  # of float32
LARGEST_RANK = 8
LARGEST_SIZE = 2**24  # elements of x: no fault needs more to show, and a mistyped shape should not cost all memory

# The tolerances take the roundings of a sum to behave like a random walk, γ(k) = v·(8 + √k). Those of a running sum of equal
# terms, c + c + … + c, may all go the same way, and come to v·(1 + 2 + … + k)/k = v·(k + 1)/2: from k = 27 on that is more.
EQUAL_TERMS = 26


def why_unanswerable(case: NormCase) -> str:
    """Why no port can be asked this, in words that begin with the field to change; empty if it has an answer."""
    return _of_dialect(case) or _of_shape(case) or _of_groups(case) or _of_numbers(case) or _of_dy(case) or _of_quantising(case)


def has_answer(case: NormCase, golden: Golden) -> bool:
    """Whether the numbers drawn leave every element with an answer; what only they can tell, and a case cannot."""
    return not (_is_undefined(golden) or _is_subnormal(case, golden) or _is_repetitive(case, golden))


def _is_undefined(golden: Golden) -> bool:
    """Whether a rounding that the dialect admits overflows, so that infinity may be taken from infinity."""
    with np.errstate(all="ignore"):
        ends = [(output.value, *placement(1.0)) for output in golden.outputs.values() for placement in output.placements]
        undefined = [np.isnan(low) | np.isnan(high) | ((low == -inf) & (high == inf)) for _, low, high in ends]
    return any(bool(np.any(each & ~np.isnan(value))) for each, (value, *_) in zip(undefined, ends, strict=True))


def _is_subnormal(case: NormCase, golden: Golden) -> bool:
    """Whether float32 arithmetic meets its subnormal numbers, which may be flushed to zero, in any product or output."""
    if case.dtype == "float64":
        return False
    x_hat, rstd, group = golden.intermediates["x_hat"], golden.intermediates["rstd"], case.group_size
    rstd = rstd if group is None else np.repeat(rstd, group, axis=-1)
    with np.errstate(all="ignore"):
        x, dy, w = as_the_norm_has_them(case, golden.inputs)
        g = dy * w
        projected = x_hat * mean(g * x_hat, group=group)
        met = [x, dy, x_hat, g, dy * x_hat, g * x_hat, rstd * g, projected, rstd * projected]
        met += [output.value for output in golden.outputs.values()]
        return any(bool(np.any((a != 0) & (np.abs(a) < SMALLEST_NORMAL))) for a in met)


def _is_repetitive(case: NormCase, golden: Golden) -> bool:
    """Whether a sum over a row or a column has more than a few terms that are nearly equal, whose roundings are not random."""
    x_hat, unit_roundoff = golden.intermediates["x_hat"], FORMATS[FORMATS[case.dtype].compute_dtype].unit_roundoff
    with np.errstate(all="ignore"):
        x, dy, w = as_the_norm_has_them(case, golden.inputs)
        rows = x, np.square(x_hat), dy * w, dy * w * x_hat
        columns = [terms.reshape(-1, x.shape[-1]).T for terms in (dy, dy * x_hat)]
        return any(_repeats(terms) or _drifts(terms, unit_roundoff) for terms in (*rows, *columns))


def _repeats(terms: Array) -> bool:
    """Whether some magnitude other than zero occurs more than `EQUAL_TERMS` times along the last axis."""
    ordered = np.sort(np.abs(terms), axis=-1)
    same = ordered[..., EQUAL_TERMS:] == ordered[..., :-EQUAL_TERMS]
    return bool(np.any(same & (ordered[..., EQUAL_TERMS:] != 0)))


def _drifts(terms: Array, unit_roundoff: float) -> bool:
    """Whether more than `EQUAL_TERMS` along the last axis differ by less than the distance between numbers around their sum.

    Added to a sum near its end, they are all rounded by about the same amount.
    """
    if terms.shape[-1] <= EQUAL_TERMS:
        return False
    apart = 2 * unit_roundoff * np.abs(np.sum(terms, axis=-1))
    return bool(np.any(np.std(terms, axis=-1) < apart))


def _of_dialect(case: NormCase) -> str:
    if case.op == "batch_norm":
        return "op: batch_norm is asked by the kit's own cases alone; it must be another norm"
    if case.dialect not in case.dialects:
        known = ", ".join(dialect.name for dialect in case.dialects)
        return f"dialect: {case.dtype} has {known}, not {case.dialect.name}"
    if case.bias and not case.centred:
        return f"bias: {case.op} has none"
    if case.weight == "absent" and not case.dialect.is_plain:
        return f"weight: {case.dialect.name} is about the weight, which is absent"
    return ""


def _of_shape(case: NormCase) -> str:
    if not case.shape or case.shape[-1] < 1 or min(case.shape) < 0:
        return "shape: it must have a last axis of at least 1, and no negative one"
    if len(case.shape) > LARGEST_RANK:
        return f"shape: it has {len(case.shape)} axes; {LARGEST_RANK} are enough for any fault"
    if prod(case.shape) > LARGEST_SIZE:
        return f"shape: it has more than {LARGEST_SIZE} elements, which are enough for any fault"
    if case.layout == "permuted" and len(case.shape) < 2:
        return "layout: permuted needs two axes"
    if layouts(case.layout).keys() == {"weight", "bias"} and case.weight == "absent":
        return f"layout: {case.layout} is about the weight, which is absent"
    if case.layout == "residual_aliased" and getattr(case, "residual", "") != "is_x":
        return "layout: residual_aliased is that of a residual that is x"
    if is_split(case.layout) and len(case.shape) < 2:
        return f"layout: {case.layout} needs two axes"
    if case.layout == "expanded" and case.x.rows != "dense":
        return f"layout: expanded repeats the first entry, and {case.x.rows} makes it another"
    if case.exact and (case.shape[-1] != WIDTH or case.eps != EPS):
        return f"x.rows: exact asks for {WIDTH} features and an eps of {EPS}, which make rstd 2"
    if case.exact and (not case.dialect.is_plain or case.weight == "absent" or case.layout != "contiguous"):
        return "x.rows: exact asks for a weight of x's dtype with no offset, and contiguous tensors"
    if case.x.rows in ("nan_row", "inf_row") and not case.is_read("y"):
        return f"x.rows: {case.x.rows} has no scale, and no quantised value"
    if case.x.rows in ("nan_row", "inf_row") and (case.shape[-1] < 2 or 0 in case.shape):
        return f"x.rows: {case.x.rows} needs a row of two features"
    return ""


def _of_groups(case: NormCase) -> str:
    if case.group_size is None:
        return ""
    if case.op in ADD_NORMS:
        return f"group_size: {case.op} has no groups"
    divides = case.group_size > 0 and case.shape[-1] % case.group_size == 0
    return "" if divides else f"group_size: {case.group_size} does not divide the last axis of {case.shape[-1]}"


def _of_numbers(case: NormCase) -> str:
    if not (0 < case.eps <= FORMATS["float32"].largest and case.eps == float(np.float32(case.eps))):
        return "eps: it must be positive, finite and a float32 number, which every implementation can be given"
    for name, scale in (("x.scale", case.x.scale), ("dy_scale", case.dy_scale)):
        if not 0 <= scale < inf:
            return f"{name}: it must be finite and not negative"
    if not isfinite(case.x.offset):
        return "x.offset: it must be finite"
    if _largest_x(case) > min(LARGEST_X, FORMATS[case.dtype].largest):
        return f"x: values of up to {_largest_x(case):.3g} are beyond the dtype, or their squares and cubes beyond float32"
    return ""


def _of_dy(case: NormCase) -> str:
    if case.dy == "aligned" and case.layout == "dy_one_number":
        return "dy: aligned with x, it is not one number, which the layout asks for"
    if case.dy == "aligned" and case.weight == "absent":
        return "dy: aligned is x times the weight, which is absent"
    if case.dy == "aligned" and case.x.rows in ("nan_row", "inf_row"):
        return "dy: aligned with a row that is not finite, it is not finite either, and has no gradient"
    reach = _largest_x(case) * LARGEST_WEIGHT[case.weight] if case.dy == "aligned" else LARGEST_BELL * case.dy_scale
    dtype = case.dialect.output_dtype(case.dtype)
    return f"dy: values of up to {reach:.3g} are beyond {dtype}" if reach > FORMATS[dtype].largest else ""


def _of_quantising(case: NormCase) -> str:
    if not isinstance(case, QuantisedCase):
        return ""
    if case.scaling == "mx" and case.quantised_dtype == "int8":
        return "scaling: mx has another meaning of int8, which no case asks for"
    if case.shape[-1] % group_size(case.scaling, case.shape[-1]):
        return f"shape: {case.scaling} asks for a last axis of so many groups, and no part of one"
    if not (0 < case.static_scale < inf and case.static_scale == float(np.float32(case.static_scale))):
        return "static_scale: it must be positive, finite and a float32 number"
    if case.scale_ub and case.scaling not in ("per_row", "per_group_128"):
        return f"scale_ub: {case.scaling} has none"
    if not (0 <= case.scale_ub < inf and case.scale_ub == float(np.float32(case.scale_ub))):
        return "scale_ub: it must be a finite float32 number, and not negative"
    if (case.weights == "ties") > case.exact:
        return "weights: ties are those of an exact case, with x.rows exact"
    return ""


def _largest_x(case: NormCase) -> float:
    """The largest number that may be drawn for x, or be normalised."""
    return case.magnifies * (abs(case.x.offset) + LARGEST_BELL * case.x.scale)
