"""A norm with a gate: what is rounded to a narrower dtype on the way."""

import numpy as np

from conformance.mistakes.mistake import Change, Of
from conformance.mistakes.norms.gating import acts, gate_first, norm_first, of_gate
from conformance.mistakes.norms.precision import ALREADY
from conformance.numbers.rounding import round_to
from conformance.ops.norms.anatomy import Norm

Array = np.ndarray


def _scaled_first(norm: Norm) -> bool:
    """Whether the norm is first, and nothing of it is rounded before the gate."""
    return norm_first(norm) and norm.dialect.order == "scale_then_cast"


def _around_a_norm(norm: Norm) -> bool:
    """Whether nothing of the norm itself is rounded before a product with the gate."""
    return gate_first(norm) or _scaled_first(norm)


def _stored(norm: Norm, a: Array) -> Array:
    return round_to(a.astype(np.float64), norm.case.dtype).astype(a.dtype)


def _times_rounded(norm: Norm) -> object:
    return lambda d, a: _stored(norm, d * a)


def _rounded_times_rounded(norm: Norm) -> object:
    return lambda d, a: _stored(norm, _stored(norm, d) * a)


ROUNDED_GRADIENT: Change = {"gated.to_x": Of(_times_rounded), "gated.to_weight": Of(_times_rounded)}


EVERY_GRADIENT_ROUNDED: Change = {f"gated.to_{each}": Of(_rounded_times_rounded) for each in ("x", "gate", "weight")}
ACTIVATION_STORED = acts(lambda norm, gate, a, slope: (_stored(norm, a), slope))

MISTAKES = (
    of_gate(
        "gate_in_bfloat16",
        "the gate is rounded to bfloat16",
        {"gated.gate": Of(lambda norm: round_to(norm.gated.gate.astype(np.float64), "bfloat16"))},
        "Every element is off by up to 0.4 %, and by more where the gate is large and negative.",
        "planted: a projection that an autocast region computes in bfloat16",
        hidden={"bfloat16": ALREADY},
    ),
    of_gate(
        "activation_in_storage_dtype",
        "the activation of the gate is rounded to x's dtype before it multiplies",
        {**ACTIVATION_STORED, "gated.to_gate": Of(_times_rounded)},
        "A third of the elements differ by one ulp; dgate too, for its gradient is rounded as it is.",
        "F.silu(gate) without gate.float()",
        half=True,
    ),
    of_gate(
        "gated_in_storage_dtype",
        "the gate multiplies in x's dtype: its activation and what it multiplies are rounded first, the gradients too",
        {"rounded.normed": "storage", "rounded.x": "storage", **ACTIVATION_STORED, **EVERY_GRADIENT_ROUNDED},
        "Half of the elements differ by one ulp.",
        "planted: rms_norm(x) * F.silu(gate), with no .float() on the way",
        half=True,
        where=_around_a_norm,
    ),
    of_gate(
        "gated_x_in_storage_dtype",
        "x times the gate is rounded to x's dtype before the norm reads it",
        {"rounded.x": "storage"},
        "A third of the elements differ by one ulp.",
        "a product that is written by one kernel and normed by the next",
        half=True,
        where=gate_first,
    ),
    of_gate(
        "normed_in_storage_dtype",
        "what the norm makes is rounded to x's dtype before the gate multiplies it, and its gradient too",
        {"rounded.normed": "storage", **ROUNDED_GRADIENT},
        "A third of the elements differ by one ulp.",
        "a norm of its own, and a product after it",
        half=True,
        where=_scaled_first,
    ),
    of_gate(
        "gated_dy_in_storage_dtype",
        "dy times the gate is rounded to x's dtype before the norm's backward pass reads it",
        ROUNDED_GRADIENT,
        "y and dgate are right; a few elements of dx and dweight differ by one ulp.",
        "planted: two kernels for the backward pass of one",
        half=True,
        where=_scaled_first,
    ),
)
