"""The ops `swiglu` and `gelu`: the activations of a feed-forward layer."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

import reference
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.case import GELU as BY_ERF
from conformance.ops.block.case import GELU_TANH as BY_TANH
from conformance.ops.block.case import LLAMA, CompositeCase, Y, in_dtypes
from conformance.ops.block.golden import composite_golden, exact_inputs
from conformance.ops.block.primitives import Gelu
from conformance.ops.block.primitives import SwiGLU as GatedSilu
from conformance.ops.block.program import Program, Stage
from conformance.ops.draw import Draw
from conformance.ops.op import Constant, Golden, Op, Tensor
from reference import BlockConfig


@dataclass(frozen=True)
class SwiGLUCase(CompositeCase):
    """gate and up are [batch, s, d_ff]."""

    op: str = field(default="swiglu", init=False)

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """gate and up."""
        return dict.fromkeys(("gate", "up"), (self.batch, self.s, self.config.d_ff))


@dataclass(frozen=True)
class GELUCase(CompositeCase):
    """x is [batch, s, d_ff]."""

    op: str = field(default="gelu", init=False)

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """x alone."""
        return {"x": (self.batch, self.s, self.config.d_ff)}

    @property
    def settings(self) -> dict[str, Any]:
        """Whether the tanh stands for the error function."""
        return {"approximate": self.config.feed_forward == "gelu_tanh"}


# Asked in every dtype.
GATES = (
    SwiGLUCase("silu", "random", "gate and up swapped; another activation", LLAMA),
    SwiGLUCase("silu", "large", "an overflow in the sigmoid", LLAMA, x=Draw(scale=30.0)),
)
SHARES = (
    GELUCase("erf", "random", "the tanh for the error function", BY_ERF),
    GELUCase("erf", "tail", "a share below that cancels; the tanh's error", BY_ERF, x=Draw(scale=0.3, offset=-2.6)),
    GELUCase("erf", "large", "an overflow in a cube", BY_ERF, x=Draw(scale=30.0)),
    GELUCase("tanh", "random", "the error function for the tanh", BY_TANH),
    GELUCase("tanh", "tail", "the error function for the tanh", BY_TANH, x=Draw(scale=0.3, offset=-2.6)),
)


GEGLU = GatedSilu(
    activation=lambda gate: reference.gelu(gate, approximate=True),
    slope=lambda gate: reference.gelu_vjp(np.ones_like(gate), gate, approximate=True),
    cancels=True,
)
"""GeGLU by a hyperbolic tangent: the gate's GELU times up."""


def gelu_of(c: BlockConfig) -> Gelu:
    """The GELU that a config asks for."""
    return Gelu(approximate=c.feed_forward == "gelu_tanh")


def _swiglu_anatomy(case: CompositeCase, seed: int) -> Composite:
    return Composite(case, Program((Stage("act", GatedSilu(), ("gate", "up")),)), seed)


def _swiglu_golden(case: CompositeCase, seed: int) -> Golden:
    tensors, dy = exact_inputs(case, seed)
    gate, up = tensors["gate"], tensors["up"]
    dgate, dup = reference.swiglu_vjp(dy, gate, up)
    exact = {"y": reference.swiglu(gate, up), "dgate": dgate, "dup": dup}
    return composite_golden(_swiglu_anatomy(case, seed), {}, exact)


def _gelu_anatomy(case: CompositeCase, seed: int) -> Composite:
    return Composite(case, Program((Stage("act", gelu_of(case.config), ("x",)),)), seed)


def _gelu_golden(case: CompositeCase, seed: int) -> Golden:
    tensors, dy = exact_inputs(case, seed)
    x, how = tensors["x"], case.settings["approximate"]
    exact = {"y": reference.gelu(x, approximate=how), "dx": reference.gelu_vjp(dy, x, approximate=how)}
    return composite_golden(_gelu_anatomy(case, seed), {}, exact)


SWIGLU = Op(
    name="swiglu",
    formula="gate · sigmoid(gate) · up.",
    tensors=(Tensor("gate"), Tensor("up")),
    outputs=(Y,),
    cases=tuple(in_dtypes(GATES)),
    golden=_swiglu_golden,
    anatomy=_swiglu_anatomy,
    costly=True,
)
GELU = Op(
    name="gelu",
    formula="x · Φ(x), by erf; by tanh if it is approximate.",
    tensors=(Tensor("x"),),
    outputs=(Y,),
    constants=(Constant("approximate"),),
    cases=tuple(in_dtypes(SHARES)),
    golden=_gelu_golden,
    anatomy=_gelu_anatomy,
    costly=True,
)
