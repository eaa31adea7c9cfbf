"""The honest block on kernels: every backward pass is written by hand, as a Triton kernel's is, in float32."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.judge.written.torch_blocks.block import Block, compute_dtype

Gradients = Tensor | Sequence[Tensor | None]


class _Kernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, forward: Callable[..., Tensor], backward: Callable[..., Gradients], *inputs: Any) -> Tensor:
        ctx.backward_pass = backward
        ctx.save_for_backward(*inputs)
        return forward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] - one cotangent
        inputs = ctx.saved_tensors
        made: Gradients = ctx.backward_pass(_widened(dy), *map(_widened, inputs))
        gradients: Sequence[Tensor | None] = (made,) if isinstance(made, Tensor) else made
        stored = (None if each is None else each.to(x.dtype) for each, x in zip(gradients, inputs, strict=True))
        return None, None, *stored


def kernel(forward: Callable[..., Tensor], backward: Callable[..., Gradients], *inputs: Tensor | None) -> Tensor:
    """forward(*inputs); backward(dy, *inputs) gives their gradients, and all it is given is in float32 or wider."""
    return _Kernel.apply(forward, backward, *inputs)


def _widened(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.to(compute_dtype(x))


class ByHand(Block):
    """The block, with backward passes of its own; attention's scores and its mix, and the sums, are autograd's."""

    def norm(self, x: Tensor, name: str) -> Tensor:
        forward = super().norm
        return kernel(lambda x, *_: forward(x, name), self.norm_backward, x, self.weight(name), self.bias(name))

    def norm_backward(self, dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Gradients:
        centred = x - x.mean(dim=-1, keepdim=True) if self.config.norm == "layer_norm" else x
        rstd = torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + self.config.eps)
        x_hat = centred * rstd
        g = dy * (self.config.weight_offset + weight)
        dbias = None if bias is None else sum_rows(dy)
        return self.dx(g, dy, x_hat, rstd), self.dweight(dy, x, x_hat), dbias

    def dx(self, g: Tensor, dy: Tensor, x_hat: Tensor, rstd: Tensor) -> Tensor:
        through_mean = g.mean(dim=-1, keepdim=True) if self.config.norm == "layer_norm" else 0.0
        return rstd * (g - through_mean - x_hat * (g * x_hat).mean(dim=-1, keepdim=True))

    def dweight(self, dy: Tensor, x: Tensor, x_hat: Tensor) -> Tensor:
        return sum_rows(dy * x_hat)

    def linear(self, x: Tensor, name: str) -> Tensor:
        forward = super().linear
        return kernel(lambda x, *_: forward(x, name), self.linear_backward, x, self.weight(name), self.bias(name))

    def linear_backward(self, dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Gradients:
        return dy @ weight, self.linear_dweight(dy, x), None if bias is None else self.linear_dbias(dy)

    def linear_dweight(self, dy: Tensor, x: Tensor) -> Tensor:
        return dy.flatten(0, -2).T @ x.flatten(0, -2)

    def linear_dbias(self, dy: Tensor) -> Tensor:
        return sum_rows(dy)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        forward = super().rotate
        return kernel(lambda x: forward(x, cos, sin), lambda dy, x: self.rotate_backward(dy, cos, sin), x)

    def rotate_backward(self, dy: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return super().rotate(dy, cos, -sin)

    def repeat(self, x: Tensor) -> Tensor:
        forward = super().repeat
        return kernel(forward, lambda dy, x: self.repeat_backward(dy.unflatten(2, (x.shape[2], -1))), x)

    def repeat_backward(self, dy: Tensor) -> Tensor:
        """Of [b, t, h_kv, group, d_head]."""
        return dy.sum(dim=3)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return kernel(super().scores, self.scores_backward, q, k)

    def scores_backward(self, dscores: Tensor, q: Tensor, k: Tensor) -> Gradients:
        scaled = dscores / math.sqrt(self.config.d_head)
        return scaled @ k, scaled.transpose(2, 3) @ q

    def probs(self, scores: Tensor, visible: Tensor) -> Tensor:
        forward = super().probs

        def backward(dprobs: Tensor, scores: Tensor) -> Tensor:
            return self.softmax_backward(dprobs, forward(scores, visible), scores)

        return kernel(lambda scores: forward(scores, visible), backward, scores)

    def softmax_backward(self, dprobs: Tensor, probs: Tensor, scores: Tensor) -> Tensor:
        return probs * (dprobs - (dprobs * probs).sum(dim=-1, keepdim=True))

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return kernel(super().swiglu, self.swiglu_backward, gate, up)

    def swiglu_backward(self, dy: Tensor, gate: Tensor, up: Tensor) -> Gradients:
        sigmoid = torch.sigmoid(gate)
        return dy * up * sigmoid * (1 + gate * (1 - sigmoid)), dy * gate * sigmoid

    def gelu(self, x: Tensor) -> Tensor:
        return kernel(super().gelu, self.gelu_backward, x)

    def gelu_backward(self, dy: Tensor, x: Tensor) -> Tensor:
        return dy * self.slope_of_gelu(x, approximate=self.config.feed_forward == "gelu_tanh")

    def slope_of_gelu(self, x: Tensor, *, approximate: bool) -> Tensor:
        if not approximate:
            return share_below(x) + x * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
        root = math.sqrt(2 / math.pi)
        tanh = torch.tanh(root * (x + 0.044715 * x**3))
        return (1 + tanh) / 2 + x * (1 - tanh.square()) / 2 * root * (1 + 3 * 0.044715 * x.square())


def share_below(x: Tensor) -> Tensor:
    """The normal distribution's share below x."""
    return torch.erfc(-x / math.sqrt(2)) / 2


def sum_rows(a: Tensor) -> Tensor:
    """Over all axes but the last."""
    return a.flatten(0, -2).sum(dim=0)
