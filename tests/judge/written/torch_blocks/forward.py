"""Mistakes in a block's forward pass alone: a fused kernel, beside which the backward pass runs the honest block again."""

from typing import Any

import torch
from torch import Tensor

from tests.judge.written.fault import Fault
from tests.judge.written.torch_blocks import attention, feed_forward, norms, rotation, stream
from tests.judge.written.torch_blocks.block import Block, fault


class _Recomputed(torch.autograd.Function):
    """What the kernel made, with the gradients of what the block makes."""

    @staticmethod
    def forward(ctx: Any, honest: Tensor, made: Tensor) -> Tensor:
        return made.clone()

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] - one cotangent
        return dout, None


def _in_a_kernel(kernel: type[Block], *names: str, taps: bool = False) -> Fault:
    class Recomputing(Block):
        def __call__(self, x: Tensor, k_cache: Tensor | None, v_cache: Tensor | None, key_mask: Tensor | None) -> Tensor:
            with torch.no_grad():
                forward = kernel(self.parameters, self.config, self.position)
                made = forward(x, k_cache, v_cache, key_mask)
            honest = super().__call__(x, k_cache, v_cache, key_mask)
            self.taps = forward.taps
            return _Recomputed.apply(honest, made)

    Recomputing.__name__ = f"{kernel.__name__}InTheForwardAlone"
    Recomputing.__doc__ = f"{(kernel.__doc__ or '').rstrip('.')}; the gradients are those of the right block."
    return fault(Recomputing, *names, group="forward", taps=taps)


FAULTS = (
    _in_a_kernel(attention.CausalMaskShowsTheNextKey, "causal_mask_one_too_many"),
    _in_a_kernel(attention.ScaleOfDModel, "scale_of_d_model", taps=True),
    _in_a_kernel(attention.HeadsTiled, "key_heads_tiled"),
    _in_a_kernel(attention.FlashSoftmaxNotRescaled, "softmax_blocks_of_4_not_rescaled", taps=True),
    _in_a_kernel(rotation.NeighboursForHalves, "rope_pairs_swapped"),
    _in_a_kernel(rotation.FrequenciesByLinspace, "rope_by_linspace"),
    _in_a_kernel(norms.EpsMissing, "norm_eps_missing"),
    _in_a_kernel(norms.DividesByNMinusOne, "norm_divides_by_n_minus_1", taps=True),
    _in_a_kernel(norms.LayerNormForRmsNorm, "norm_of_the_other_kind"),
    _in_a_kernel(feed_forward.GateAndUpSwapped, "gate_and_up_swapped", taps=True),
    _in_a_kernel(feed_forward.GeluOfTheOtherFormula, "gelu_of_the_other_formula"),
    _in_a_kernel(stream.SecondResidualFromX, "second_residual_from_x"),
)
