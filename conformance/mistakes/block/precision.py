"""A block's precision: what is rounded on the way that should not be, and what is added up in too low a precision.

A block's own noise hides most of it in half precision. A single stage cannot hide it from one who knows what it was given.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conformance.mistakes.block.feed_forward import has_silu
from conformance.mistakes.block.places import NORMS
from conformance.mistakes.block.stages import alters, wraps
from conformance.mistakes.mistake import ATTENTION, BLOCK, BLOCKS, MASKED, SWIGLU, Mistake, Of, all_but, in_dtypes, in_half
from conformance.mistakes.norms.precision import TF32
from conformance.numbers.rounding import HALF, SINGLE, round_to, significant_bits
from conformance.ops.block.attention_primitives import DotProducts, Mix, Softmax
from conformance.ops.block.machine import Machine
from conformance.ops.block.primitives import Linear, Normalise, SwiGLU
from conformance.ops.block.program import Kind, Kinds, Pulled
from conformance.ops.block.wrappers import After, Before, Map, Measured

Array = np.ndarray
Function = Callable[[Array], Array]

LINEAR = ("q", "k", "v", "attn_out", "gate", "up", "ffn_out")
MATMULS = (*LINEAR, "scores", "attn")
PRODUCTS = (Linear, DotProducts, Mix)


def _to(dtype: str) -> Function:
    return lambda a: round_to(a, dtype)


@dataclass(frozen=True)
class _Coarse(Measured):
    """A product of two matrices of which both are rounded first, forward and backward."""

    op: Any
    coarse: Function

    def forward(self, m: Machine, a: Array, b: Array, *bias: Array) -> Array:
        return self.op.forward(m, self.coarse(a), self.coarse(b), *bias)

    def vjp(self, m: Machine, dy: Array, a: Array, b: Array, *bias: Array) -> tuple[Array, ...]:
        da, db, *_ = self.op.vjp(m, self.coarse(dy), self.coarse(a), self.coarse(b), *bias)
        return da, db, *self.op.vjp(m, dy, a, b, *bias)[2:]


@dataclass(frozen=True)
class _Accumulated(Measured):
    """A product of matrices whose terms are rounded and added up one by one; the backward pass is as it should be."""

    product: Linear | DotProducts | Mix
    rounded: Function

    def forward(self, m: Machine, a: Array, b: Array, *bias: Array) -> Array:
        match self.product:
            case Linear(d_head):
                terms = np.swapaxes(a[..., None, :] * b, -1, -2)  # *batch s in out
                y = self._sum(terms, -2) + (bias[0] if bias else 0.0)
                return y.reshape(*y.shape[:-1], -1, d_head) if d_head else y
            case DotProducts(scale, groups):
                k = np.take(b, groups, axis=-2)
                return scale * self._sum(np.einsum("...shd,...thd->...hstd", a, k), -1)
            case Mix(groups, merged):
                values = np.take(b, groups, axis=-2)
                y = self._sum(np.einsum("...hst,...thd->...shtd", a, values), -2)
                return y.reshape(*y.shape[:-2], -1) if merged else y

    def vjp(self, m: Machine, dy: Array, a: Array, b: Array, *bias: Array) -> tuple[Array, ...]:
        return self.product.vjp(m, dy, a, b, *bias)

    def _sum(self, terms: Array, axis: int) -> Array:
        total = np.zeros_like(np.take(terms, 0, axis))
        for term in np.moveaxis(terms, axis, 0):
            total = self.rounded(total + self.rounded(term))
        return total


@dataclass(frozen=True)
class _RoughNorm(Measured):
    """A norm of which every step is rounded; the backward pass is that of the exact one."""

    norm: Normalise
    rounded: Function

    def forward(self, m: Machine, x: Array, weight: Array, *bias: Array) -> Array:
        r = self.rounded
        centred = r(x - r(np.mean(x, axis=-1, keepdims=True))) if self.norm.centred else x
        rstd = r(1 / np.sqrt(r(r(np.mean(r(np.square(centred)), axis=-1, keepdims=True)) + self.norm.eps)))
        return r(centred * rstd) * (weight + self.norm.weight_offset) + (bias[0] if bias else 0.0)

    def vjp(self, m: Machine, dy: Array, x: Array, weight: Array, *bias: Array) -> tuple[Array, ...]:
        return self.norm.vjp(m, dy, x, weight, *bias)


def _in_storage(kind: Kinds[Kind], make: Callable[[Kind, Function], Any]) -> Of:
    """An op made of the one that is there and of rounding to the storage dtype."""
    return Of(lambda composite: alters(kind, lambda op: make(op, _to(composite.case.dtype))))


def _rough(op: Softmax, rounded: Function) -> Softmax:
    return replace(op, inner=rounded)


def _rough_silu(op: SwiGLU, rounded: Function) -> SwiGLU:
    return replace(op, activation=lambda x: rounded(x * rounded(1 / rounded(1 + rounded(np.exp(-x))))))


def _gradients(op: Linear, rounded: Function) -> Pulled:
    """The rows of a projection's dweight are added up one by one."""

    def pull(cotangents: tuple[Array, ...], dy: Array, x: Array, *parameters: Array) -> tuple[Array, ...]:
        inputs = x.reshape(-1, x.shape[-1])
        rows = dy.reshape(len(inputs), -1)
        dweight, dbias = np.zeros((rows.shape[-1], inputs.shape[-1])), np.zeros(rows.shape[-1])
        for row, values in zip(rows, inputs, strict=True):
            dweight, dbias = rounded(dweight + rounded(np.outer(row, values))), rounded(dbias + row)
        return cotangents[0], dweight, *([dbias] if len(cotangents) > 2 else [])

    return Pulled(op, pull)


ALREADY = "the storage dtype is the compute dtype: nothing is rounded more than it must be"
NO_NARROWER: dict[str, str] = dict.fromkeys(SINGLE, ALREADY)
FEWER: dict[str, str] = dict.fromkeys(HALF, "a number of half precision has no more significant bits than that")
NOISE = "roundings inside a stage are as large as those between stages, which an honest block has too"
ALONE = NO_NARROWER | {f"attention/{dtype}": f"{NOISE}, and attention alone is asked for no intermediate" for dtype in HALF}
IN_NOISE = {f"{op}/{dtype}": NOISE for op in BLOCKS for dtype in HALF}
MISTAKES = (
    Mistake(
        "matmul_in_tf32",
        "matrices are rounded to 11 significant bits before they are multiplied",
        dict.fromkeys(MATMULS, wraps(lambda op: _Coarse(op, lambda a: significant_bits(a, TF32)))),
        "A block in float32 is off by 8e-4.",
        "jax#12008, jax#10413",
        ATTENTION,
        FEWER,
        where=in_dtypes(*SINGLE),
    ),
    Mistake(
        "matmul_in_bfloat16",
        "matrices are rounded to bfloat16 before they are multiplied",
        dict.fromkeys(MATMULS, wraps(lambda op: _Coarse(op, _to("bfloat16")))),
        "A block in float32 is off by 6e-3.",
        "jax#12008, jax#10413",
        ATTENTION,
        {"bfloat16": "they are in that dtype already"},
        where=in_dtypes(*all_but("bfloat16")),
    ),
    Mistake(
        "stages_in_float32",
        "every stage of a float64 block is rounded to float32",
        {"*": wraps(lambda op: After(op, Map(_to("float32"))))},
        "An error of 1e-7.",
        "jax without jax_enable_x64",
        ("rope", "attention", "swiglu", "gelu", *BLOCKS),
        dict.fromkeys(all_but("float64"), "no value has more bits than float32 has"),
        where=in_dtypes("float64"),
    ),
    Mistake(
        "softmax_in_bfloat16",
        "every step of the softmax is rounded to bfloat16",
        {"probs": alters(Softmax, lambda op: _rough(op, _to("bfloat16")))},
        "A block in float32 is off by 3e-3.",
        "tinygrad#12280",
        ATTENTION,
        {"bfloat16": "softmax_in_storage_dtype is the same"},
        where=in_dtypes(*all_but("bfloat16")),
    ),
    Mistake(
        "softmax_in_storage_dtype",
        "every step of the softmax is rounded to the storage dtype",
        {"probs": _in_storage(Softmax, _rough)},
        "Probabilities are off by some roundoffs, small ones by as many as their score lies below the largest.",
        "tinygrad#12280",
        ATTENTION,
        ALONE,
        needs_taps=IN_NOISE,
        where=in_half,
    ),
    Mistake(
        "matmul_accumulated_in_storage_dtype",
        "the terms of the projections are rounded to the storage dtype, and so is every partial sum",
        dict.fromkeys(LINEAR, _in_storage(PRODUCTS, _Accumulated)),
        "An error that grows with the width.",
        "Liger#950",
        BLOCK,
        NO_NARROWER,
        where=in_half,
    ),
    Mistake(
        "scores_accumulated_in_storage_dtype",
        "the terms of a score are rounded to the storage dtype, and so is every partial sum",
        {"scores": _in_storage(PRODUCTS, _Accumulated)},
        "An error that grows with d_head.",
        "planted: a kernel without a float32 accumulator",
        MASKED,
        ALONE,
        needs_taps={f"pre_ln_block/{dtype}": NOISE for dtype in HALF},
        where=in_half,
    ),
    Mistake(
        "values_accumulated_in_storage_dtype",
        "the terms of attn are rounded to the storage dtype, and so is every partial sum",
        {"attn": _in_storage(PRODUCTS, _Accumulated)},
        "An error that grows with the number of keys.",
        "planted: a kernel without a float32 accumulator",
        ATTENTION,
        ALONE,
        needs_taps=IN_NOISE,
        where=in_half,
    ),
    Mistake(
        "norm_in_storage_dtype",
        "every step of the norms is rounded to the storage dtype",
        dict.fromkeys((*NORMS, "q_norm", "k_norm"), _in_storage(Normalise, _RoughNorm)),
        "All of a row is off by one factor; squares of 300 overflow float16.",
        "pytorch#133085",
        BLOCKS,
        NO_NARROWER,
        needs_taps={case: reason for case, reason in IN_NOISE.items() if case != "pre_ln_block/float16"},
        where=in_half,
    ),
    Mistake(
        "silu_in_storage_dtype",
        "every step of SiLU is rounded to the storage dtype",
        {"act": _in_storage(SwiGLU, _rough_silu)},
        "act is off by some roundoffs.",
        "planted: an activation without a cast to float32",
        SWIGLU,
        NO_NARROWER
        | {
            f"swiglu/{dtype}": "its three roundings are no more than those that swiglu and its gradient may have"
            for dtype in HALF
        },
        needs_taps=IN_NOISE,
        where=lambda composite: in_half(composite) and has_silu(composite),
    ),
    Mistake(
        "residual_in_bfloat16",
        "the residual stream is rounded to bfloat16",
        dict.fromkeys(("h", "out"), wraps(lambda op: After(op, Map(_to("bfloat16"))))),
        "h and out are off by up to 2^-9.",
        "planted: a buffer of the wrong dtype",
        BLOCKS,
        {"bfloat16": "it is in that dtype already"},
        where=in_dtypes(*all_but("bfloat16")),
    ),
    Mistake(
        "probs_in_bfloat16",
        "probabilities are rounded to bfloat16",
        {"attn": wraps(lambda op: Before(op, Map(_to("bfloat16"))))},
        "attn is off by up to 2^-9.",
        "planted: the second product of a mixed-precision kernel",
        ATTENTION,
        {"bfloat16": "they may be in that dtype", "float16": "a kernel of float16 does not go by way of bfloat16"},
        where=in_dtypes(*SINGLE),
    ),
    Mistake(
        "dweight_accumulated_in_storage_dtype",
        "the rows of the projections' gradients are added up one by one in the storage dtype",
        dict.fromkeys(LINEAR, _in_storage(Linear, _gradients)),
        "An error that grows with the number of rows.",
        "Liger#950, helion#3595",
        BLOCK,
        NO_NARROWER,
        where=in_half,
    ),
)
