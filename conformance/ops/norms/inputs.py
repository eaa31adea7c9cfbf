"""The input classes: tensors built from raw bits with exact arithmetic, bit-identical on any machine.

Every draw is scaled by one IEEE multiplication, then rounded once to the storage dtype.
"""

import numpy as np

from conformance.numbers.draws import bell, random_words, signed_weights
from conformance.numbers.rounding import store
from conformance.ops.norms.cases import NormCase, Y
from conformance.ops.norms.exact_inputs import exact_tensors

Array = np.ndarray


def inputs(case: NormCase, seed: int) -> dict[str, Array]:
    """The tensors of a case in their storage dtypes: x, dy, weight and bias, where it has them, and what else its op reads."""
    if case.exact:
        return _exact(case, seed)
    n = case.shape[-1]
    parameter_dtype = case.dialect.parameter_dtype(case.dtype)

    x = store(drawn_rows(case, "x", seed), case.dtype)
    tensors = {"x": x}
    if case.weight != "absent":
        tensors["weight"] = store(_weight(case, random_words(case.id, "weight", seed, n)), parameter_dtype)
    if case.bias:
        tensors["bias"] = store(bell(random_words(case.id, "bias", seed, n)), parameter_dtype)
    tensors |= case.further_inputs(x, seed)
    if case.dy == "aligned":
        dy = x.astype(np.float64) * tensors["weight"].astype(np.float64)
    elif case.dy == "ones":
        dy = np.full(case.shape, case.dy_scale)
    else:
        dy = bell(random_words(case.id, "dy", seed, x.size)).reshape(case.shape) * case.dy_scale
    if case.layout == "expanded":
        dy = np.broadcast_to(dy[:1], dy.shape)
    if case.layout == "dy_one_number":  # not too small a one: it is all that the gradients are made of
        dy = np.full(case.shape, signed_weights(random_words(case.id, "dy", seed, 1)) * case.dy_scale)
    if case.is_read("y"):
        tensors["dy"] = store(dy, Y.dtype(case))
    return tensors


def _exact(case: NormCase, seed: int) -> dict[str, Array]:
    tensors = exact_tensors(case, seed)
    if not case.bias:
        del tensors["bias"]
    if not case.is_read("y"):
        del tensors["dy"]
    stored = {name: store(tensor, case.dtype) for name, tensor in tensors.items()}
    return stored | case.further_inputs(stored["x"], seed)


def drawn_rows(case: NormCase, tensor: str, seed: int) -> Array:
    """A tensor of x's shape, drawn as the case says that x is."""
    count = int(np.prod(case.shape))
    x = case.x.offset + case.x.scale * bell(random_words(case.id, tensor, seed, count)).reshape(case.shape)
    if case.layout == "expanded":
        x = np.broadcast_to(x[:1], x.shape)
    rows = x.reshape(-1, case.shape[-1])
    match case.x.rows:
        case "dense" | "exact":
            pass
        case "zero_rows":
            rows[::2] = 0.0
        case "constant_rows":
            rows[:] = rows[:, :1]
        case "spike":
            spike = np.arange(len(rows)) * 7 % rows.shape[1]
            kept = rows[np.arange(len(rows)), spike]
            rows[:] = 0.0
            rows[np.arange(len(rows)), spike] = kept
        case "nan_row":
            rows[0, 1] = np.nan
        case "inf_row":
            rows[0, 1] = np.inf
        case "zero_columns":
            rows[:, ::2] = 0.0
        case "constant_columns":
            rows[:] = rows[:1]
        case "uneven_groups":
            rows[:] *= 2.0 ** (-5 * (np.arange(rows.shape[1]) * 3 // rows.shape[1]))
    return rows.reshape(case.shape)


def _weight(case: NormCase, words: Array) -> Array:
    if case.weight == "tiny":  # zeros and values near zero: dividing y by them recovers nothing
        return np.where(np.arange(len(words)) % 2, 1e-6 if case.dtype == "float16" else 1e-9, 0.0)
    if case.weight == "ones":
        return np.full(len(words), 1.0 - case.dialect.weight_offset)
    if case.weight == "far_from_one":  # values whose sum with one is no bfloat16 (15.8125, -0.998), no float16 (3.998)
        return np.resize([0.0, 15.8125, -0.998, 3.998], len(words))
    return signed_weights(words) - case.dialect.weight_offset
