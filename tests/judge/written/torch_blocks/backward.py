"""Mistakes in a block's backward pass, where its forward pass is right."""

import math

import torch
from torch import Tensor

from conformance.numbers.rounding import HALF
from tests.judge.written.torch_blocks.block import Block, compute_dtype, fault
from tests.judge.written.torch_blocks.by_hand import ByHand, Gradients, share_below, sum_rows

# Detached under autograd


class FirstResidualDetached(Block):
    """The stream is detached before attention's output is added."""

    def add_attention(self, x: Tensor, normed: Tensor, attn_out: Tensor) -> Tensor:
        return x.detach() + attn_out


class SecondResidualDetached(Block):
    """The stream is detached before the feed-forward layer's output is added."""

    def add_feed_forward(self, x: Tensor, h: Tensor, normed: Tensor, ffn_out: Tensor) -> Tensor:
        return h.detach() + ffn_out


class AttentionOfDetachedX(Block):
    """Attention's norm reads a detached x."""

    def attention_norm(self, x: Tensor) -> Tensor:
        return super().attention_norm(x.detach())


class FeedForwardOfDetachedH(Block):
    """The feed-forward layer's norm reads a detached h."""

    def ffn_norm(self, h: Tensor) -> Tensor:
        return super().ffn_norm(h.detach())


class RstdDetached(Block):
    """rstd is computed under no_grad."""

    def rescale(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            rstd = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.config.eps)
        return x * rstd


class StatisticsOfQueriesAndKeysDetached(Block):
    """The rstd of queries and keys is computed under no_grad."""

    def qk_norm(self, x: Tensor, name: str) -> Tensor:
        wide = x.to(compute_dtype(x))
        rstd = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.config.eps).detach()
        return self.scale_and_shift(wide * rstd, f"attention.{name}_norm", x.dtype)


class ValuesOfDetachedX(Block):
    """The values are projected from a detached x."""

    def linear(self, x: Tensor, name: str) -> Tensor:
        return super().linear(x.detach() if name == "attention.v" else x, name)


class GateOfDetachedX(Block):
    """The gate is projected from a detached h."""

    def linear(self, x: Tensor, name: str) -> Tensor:
        return super().linear(x.detach() if name == "feed_forward.gate" else x, name)


class ActivatedGateDetached(Block):
    """The activated gate is detached, as if it were a mask."""

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return torch.nn.functional.silu(gate).detach() * up + 0 * gate


class KeysDetached(Block):
    """The keys are written to the cache, and read from it without their gradient."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        return super().attend(q, k.detach() + 0 * k, v, visible)


# Kernels of norms


class NormBackwardWithoutProjection(ByHand):
    """dx of the norms is rstd·g."""

    def dx(self, g: Tensor, dy: Tensor, x_hat: Tensor, rstd: Tensor) -> Tensor:
        return rstd * g


class NormBackwardWithoutWeight(ByHand):
    """dx of the norms leaves the weight out."""

    def dx(self, g: Tensor, dy: Tensor, x_hat: Tensor, rstd: Tensor) -> Tensor:
        return super().dx(dy, dy, x_hat, rstd)


class NormBackwardProjectsOnX(ByHand):
    """dx of the norms subtracts the projection on x, not on x_hat."""

    def dx(self, g: Tensor, dy: Tensor, x_hat: Tensor, rstd: Tensor) -> Tensor:
        through_mean = g.mean(dim=-1, keepdim=True) if self.config.norm == "layer_norm" else 0.0
        return rstd * (g - through_mean - x_hat / rstd * (g * x_hat).mean(dim=-1, keepdim=True))


class NormWeightGradientOfX(ByHand):
    """dweight of the norms sums dy·x."""

    def dweight(self, dy: Tensor, x: Tensor, x_hat: Tensor) -> Tensor:
        return sum_rows(dy * x)


class NormWeightGradientOfTheLastPosition(ByHand):
    """dweight of the norms is overwritten by every position."""

    def dweight(self, dy: Tensor, x: Tensor, x_hat: Tensor) -> Tensor:
        return sum_rows((dy * x_hat)[:, -1])


class NormWeightGradientZero(ByHand):
    """dweight of the norms is allocated and never written."""

    def dweight(self, dy: Tensor, x: Tensor, x_hat: Tensor) -> Tensor:
        return torch.zeros_like(x[0, 0] if x.ndim == 3 else x[0, 0, 0])


# Kernels of projections


class WeightGradientOfTheLastSequence(ByHand):
    """The batch is a loop, whose turns overwrite the weights' gradients."""

    def linear_dweight(self, dy: Tensor, x: Tensor) -> Tensor:
        return super().linear_dweight(dy[-1:], x[-1:])


class WeightGradientHalved(ByHand):
    """The weights' gradients are averaged over two ranks that have them already."""

    def linear_dweight(self, dy: Tensor, x: Tensor) -> Tensor:
        return super().linear_dweight(dy, x) / 2


class WeightGradientAddedUpInXDtype(ByHand):
    """The weights' gradients are added up row by row in the weight's dtype."""

    def linear_dweight(self, dy: Tensor, x: Tensor) -> Tensor:
        dtype = self.weight("attention.o").dtype
        total = torch.zeros(dy.shape[-1], x.shape[-1], dtype=dtype)
        for dy_row, x_row in zip(dy.flatten(0, -2), x.flatten(0, -2), strict=True):
            total = total + torch.outer(dy_row, x_row).to(dtype)
        return total


class BiasGradientAveraged(ByHand):
    """The biases' gradients are means over the rows."""

    def linear_dbias(self, dy: Tensor) -> Tensor:
        return dy.flatten(0, -2).mean(dim=0)


# Kernels of attention


class RotatedForwardInTheBackward(ByHand):
    """Cotangents are turned forward: the same kernel with the same sign."""

    def rotate_backward(self, dy: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return super().rotate_backward(dy, cos, -sin)


class NotRotatedInTheBackward(ByHand):
    """Cotangents are passed straight through."""

    def rotate_backward(self, dy: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return dy


class GroupAveraged(ByHand):
    """dk and dv are means over the query heads of a group."""

    def repeat_backward(self, dy: Tensor) -> Tensor:
        return dy.mean(dim=3)


class FirstHeadOfTheGroup(ByHand):
    """dk and dv are those of the first query head of a group: the others overwrite nothing."""

    def repeat_backward(self, dy: Tensor) -> Tensor:
        return dy[..., 0, :]


class LastHeadOfTheGroup(ByHand):
    """dk and dv are overwritten by every query head of a group."""

    def repeat_backward(self, dy: Tensor) -> Tensor:
        return dy[..., -1, :]


class ScaleMissingInTheBackward(ByHand):
    """The scores' cotangent is not scaled."""

    def scores_backward(self, dscores: Tensor, q: Tensor, k: Tensor) -> Gradients:
        return dscores @ k, dscores.transpose(2, 3) @ q


class ScaleMissingInDk(ByHand):
    """dk lacks the scale."""

    def scores_backward(self, dscores: Tensor, q: Tensor, k: Tensor) -> Gradients:
        return dscores / math.sqrt(self.config.d_head) @ k, dscores.transpose(2, 3) @ q


class SoftmaxBackwardWithoutTheSum(ByHand):
    """The softmax passes p·dp back."""

    def softmax_backward(self, dprobs: Tensor, probs: Tensor, scores: Tensor) -> Tensor:
        return probs * dprobs


class SoftmaxBackwardOfASigmoid(ByHand):
    """The softmax passes p·(1 - p)·dp back."""

    def softmax_backward(self, dprobs: Tensor, probs: Tensor, scores: Tensor) -> Tensor:
        return probs * (1 - probs) * dprobs


class SoftmaxBackwardSumsOverQueries(ByHand):
    """The sum of p·dp is over the queries."""

    def softmax_backward(self, dprobs: Tensor, probs: Tensor, scores: Tensor) -> Tensor:
        return probs * (dprobs - (dprobs * probs).sum(dim=-2, keepdim=True))


class SoftmaxBackwardNotMasked(ByHand):
    """The probabilities are made again for the backward pass, without the mask."""

    def softmax_backward(self, dprobs: Tensor, probs: Tensor, scores: Tensor) -> Tensor:
        return super().softmax_backward(dprobs, torch.softmax(scores, dim=-1), scores)


# Kernels of the feed-forward layer


class GateGradientWithoutUp(ByHand):
    """dgate lacks up."""

    def swiglu_backward(self, dy: Tensor, gate: Tensor, up: Tensor) -> Gradients:
        return super().swiglu_backward(dy, gate, torch.ones_like(up))


class UpGradientOfTheGate(ByHand):
    """dup has the gate for its SiLU."""

    def swiglu_backward(self, dy: Tensor, gate: Tensor, up: Tensor) -> Gradients:
        return super().swiglu_backward(dy, gate, up)[0], dy * gate


class GateAndUpGradientsSwapped(ByHand):
    """The gradients of gate and up are exchanged."""

    def swiglu_backward(self, dy: Tensor, gate: Tensor, up: Tensor) -> Gradients:
        return tuple(reversed(super().swiglu_backward(dy, gate, up)))


class SlopeOfSiluIsTheSigmoid(ByHand):
    """The slope of SiLU is taken for the sigmoid."""

    def swiglu_backward(self, dy: Tensor, gate: Tensor, up: Tensor) -> Gradients:
        return dy * up * torch.sigmoid(gate), super().swiglu_backward(dy, gate, up)[1]


class SlopeOfSiluIsThatOfTheSigmoid(ByHand):
    """The slope of SiLU is taken for that of the sigmoid."""

    def swiglu_backward(self, dy: Tensor, gate: Tensor, up: Tensor) -> Gradients:
        sigmoid = torch.sigmoid(gate)
        return dy * up * sigmoid * (1 - sigmoid), super().swiglu_backward(dy, gate, up)[1]


class SlopeOfGeluIsTheShare(ByHand):
    """The slope of GELU is taken for the share below x."""

    def slope_of_gelu(self, x: Tensor, *, approximate: bool) -> Tensor:
        root = math.sqrt(2 / math.pi)
        return (1 + torch.tanh(root * (x + 0.044715 * x**3))) / 2 if approximate else share_below(x)


class SlopeOfTheOtherGelu(ByHand):
    """The slope of GELU is that of its other formula."""

    def slope_of_gelu(self, x: Tensor, *, approximate: bool) -> Tensor:
        return super().slope_of_gelu(x, approximate=not approximate)


FAULTS = (
    fault(FirstResidualDetached, "attention_residual_without_gradient", group="backward"),
    fault(SecondResidualDetached, "feed_forward_residual_without_gradient", group="backward", taps=True),
    fault(AttentionOfDetachedX, "dx_without_attention", group="backward"),
    fault(FeedForwardOfDetachedH, "dh_without_feed_forward", group="backward", taps=True),
    fault(RstdDetached, "norm_statistics_without_gradient", "qk_norm_statistics_without_gradient", group="backward"),
    fault(StatisticsOfQueriesAndKeysDetached, "qk_norm_statistics_without_gradient", group="backward", taps=True),
    fault(ValuesOfDetachedX, "values_pass_nothing_back", group="backward"),
    fault(GateOfDetachedX, "gate_passes_nothing_back", group="backward", taps=True),
    fault(ActivatedGateDetached, "activated_gate_without_gradient", group="backward"),
    fault(KeysDetached, "keys_without_gradient", group="backward", taps=True),
    fault(
        NormBackwardWithoutProjection,
        "norm_statistics_without_gradient",
        "qk_norm_statistics_without_gradient",
        group="backward",
    ),
    fault(NormBackwardWithoutWeight, "norm_dx_without_weight", group="backward"),
    fault(NormBackwardProjectsOnX, "norm_projection_on_x", group="backward"),
    fault(NormWeightGradientOfX, "norm_dweight_of_x", group="backward", taps=True),
    fault(NormWeightGradientOfTheLastPosition, "norm_weight_gradient_of_last_position", group="backward"),
    fault(NormWeightGradientZero, "norm_weight_gradient_missing", group="backward", taps=True),
    fault(WeightGradientOfTheLastSequence, "dweight_of_last_sequence", group="backward"),
    fault(WeightGradientHalved, "dweight_halved", group="backward", taps=True),
    fault(
        WeightGradientAddedUpInXDtype,
        "dweight_accumulated_in_storage_dtype",
        group="backward",
        taps=True,
        dtypes=HALF,
    ),
    fault(BiasGradientAveraged, "dbias_averaged", group="backward"),
    fault(RotatedForwardInTheBackward, "rope_backward_forward", group="backward"),
    fault(NotRotatedInTheBackward, "rope_backward_missing", group="backward", taps=True),
    fault(GroupAveraged, "dk_and_dv_averaged_over_group", group="backward"),
    fault(FirstHeadOfTheGroup, "dk_of_first_head_in_group", "dv_of_first_head_in_group", group="backward"),
    fault(LastHeadOfTheGroup, "dk_and_dv_of_last_head_in_group", group="backward"),
    fault(ScaleMissingInTheBackward, "scale_missing_in_backward", group="backward", taps=True),
    fault(ScaleMissingInDk, "scale_missing_in_dk", group="backward"),
    fault(SoftmaxBackwardWithoutTheSum, "softmax_backward_without_sum", group="backward"),
    fault(SoftmaxBackwardOfASigmoid, "softmax_backward_of_sigmoid", group="backward", taps=True),
    fault(SoftmaxBackwardSumsOverQueries, "softmax_backward_sums_over_queries", group="backward"),
    fault(SoftmaxBackwardNotMasked, "softmax_backward_without_mask", group="backward"),
    fault(GateGradientWithoutUp, "dgate_without_up", group="backward"),
    fault(UpGradientOfTheGate, "dup_without_silu", group="backward", taps=True),
    fault(GateAndUpGradientsSwapped, "dgate_and_dup_swapped", group="backward"),
    fault(SlopeOfSiluIsTheSigmoid, "silu_slope_of_sigmoid", group="backward"),
    fault(SlopeOfSiluIsThatOfTheSigmoid, "silu_slope_of_its_sigmoid", group="backward", taps=True),
    fault(SlopeOfGeluIsTheShare, "gelu_slope_of_share", group="backward"),
    fault(SlopeOfTheOtherGelu, "gelu_slope_of_the_other_formula", group="backward", taps=True),
)
