"""The op `rope`: rotary position embedding."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import reference
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.case import GLM4, INTERLEAVED, LLAMA, PHI, CompositeCase, Y, in_dtypes
from conformance.ops.block.golden import Values, composite_golden, exact_inputs
from conformance.ops.block.primitives import Rotate
from conformance.ops.block.program import Program, Stage
from conformance.ops.op import Constant, Golden, Op, Tensor
from reference.rope import rope_angles


@dataclass(frozen=True)
class RopeCase(CompositeCase):
    """x is [batch, s, n_heads, d_head], and stands at `position` and after."""

    op: str = field(default="rope", init=False)
    known = ("rotary_features",)

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """x alone."""
        return {"x": (self.batch, self.s, self.config.n_heads, self.config.d_head)}

    @property
    def settings(self) -> dict[str, Any]:
        """Where x stands, the base of its angles, which features are a pair, and how many are turned if not all."""
        pairs = {"base": self.config.rope_base, "interleaved": self.config.rope == "interleaved"}
        return {"position": self.position} | pairs | self.features


# Asked in every dtype.
PLAIN = (RopeCase("half_split", "random", "pairs of neighbours instead of halves; the sign of an angle", LLAMA),)
# Not in float64, which float32 speaks for.
PAIRS_AND_POSITIONS = (
    RopeCase("interleaved", "random", "pairs of halves instead of neighbours", INTERLEAVED),
    RopeCase("half_split", "position_5000", "positions or angles in half precision", LLAMA, position=5000),
)
# In float32, which shows every feature's angle.
PARTS = (
    RopeCase("half_split", "partial", "the first of the features that are turned, the last, and the next", PHI, position=20),
    RopeCase("interleaved", "partial", "all features turned; frequencies of the whole head", GLM4, position=20),
)
# Faults that a dtype hardly changes.
BASES = (RopeCase("half_split", "base_1e6", "the base hard-coded at 1e4", replace(LLAMA, rope_base=1e6), position=20),)


def rotate(case: CompositeCase, first: int) -> Rotate:
    """The rotation of s positions from the first."""
    c = case.config
    positions = np.arange(first, first + case.s, dtype=np.float64)
    angles = rope_angles(positions, c.rotary_features or c.d_head, base=c.rope_base)
    # base ** -exponent magnifies the exponent's rounding by log(base); the product with the position adds its own.
    return Rotate(angles, c.rope == "interleaved", growth=4.0 + math.log(c.rope_base))


def _anatomy(case: CompositeCase, seed: int) -> Composite:
    return Composite(case, Program((Stage("q_rope", rotate(case, case.position), ("x",)),)), seed)


def _golden(case: CompositeCase, seed: int) -> Golden:
    tensors, dy = exact_inputs(case, seed)
    positions = np.arange(case.position, case.position + case.s, dtype=np.float64)
    how = case.config.rope_constants
    exact: Values = {
        "y": reference.rope(tensors["x"], positions, **how),
        "dx": reference.rope_vjp(dy, positions, **how),
    }
    return composite_golden(_anatomy(case, seed), {}, exact)


ROPE = Op(
    name="rope",
    formula="Every head's pairs of features, turned by their angles.",
    tensors=(Tensor("x"),),
    outputs=(Y,),
    constants=(
        *(Constant("position"), Constant("base"), Constant("interleaved")),
        Constant("rotary_features", sometimes=True),
    ),
    cases=tuple(in_dtypes(PLAIN, PAIRS_AND_POSITIONS, (*BASES, *PARTS))),
    golden=_golden,
    anatomy=_anatomy,
    costly=True,
)
