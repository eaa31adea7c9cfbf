"""The table of ops: all that is asked."""

from typing import TYPE_CHECKING, Literal

from conformance.ops.block.attention import ATTENTION
from conformance.ops.block.feed_forward import GELU, SWIGLU
from conformance.ops.block.pre_ln_block import PRE_LN_BLOCK, PRE_LN_STACK
from conformance.ops.block.rope import ROPE
from conformance.ops.norms.ops import (
    ADD_LAYER_NORM,
    ADD_RMS_NORM,
    BATCH_NORM,
    GATED_RMS_NORM,
    LAYER_NORM,
    QUANTISED_ADD_RMS_NORM,
    QUANTISED_RMS_NORM,
    RMS_NORM,
)
from conformance.ops.op import Op

ROW_BY_ROW = (RMS_NORM, LAYER_NORM, ADD_RMS_NORM, ADD_LAYER_NORM, GATED_RMS_NORM, QUANTISED_RMS_NORM, QUANTISED_ADD_RMS_NORM)
NORMS = (*ROW_BY_ROW, BATCH_NORM)
COMPOSITES = (ROPE, ATTENTION, SWIGLU, GELU, PRE_LN_BLOCK, PRE_LN_STACK)
OPS: dict[str, Op] = {op.name: op for op in (*NORMS, *COMPOSITES)}
"""Every op by its name, in the order in which a report shows them."""

if TYPE_CHECKING:
    OpName = str
else:
    OpName = Literal[tuple(OPS)]  # for those who read an annotation at run time, such as a report's schema
