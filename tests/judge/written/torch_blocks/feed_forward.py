"""Mistakes in a block's feed-forward layer, and in the precision of its matrix products."""

import torch
import torch.nn.functional as F
from torch import Tensor

from conformance.numbers.rounding import HALF
from tests.judge.written.torch_blocks.block import Block, fault


class GateAndUpSwapped(Block):
    """up goes through SiLU, and the gate does not."""

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return gate * F.silu(up)


class SiluOfBoth(Block):
    """Both go through SiLU."""

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * F.silu(up)


class SiluOfTheProduct(Block):
    """SiLU is taken of the product."""

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate * up)


class GateAdded(Block):
    """The gate's SiLU is added to up."""

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) + up


class GateAndUpInterleaved(Block):
    """The fused projection holds the gate, then up; it is read as pairs of the two."""

    def feed_forward(self, x: Tensor) -> Tensor:
        if self.config.feed_forward != "swiglu":
            return super().feed_forward(x)
        fused = torch.cat([self.linear(x, f"feed_forward.{name}") for name in ("gate", "up")], dim=-1)
        gate, up = self.tap("gate", fused[..., 0::2]), self.tap("up", fused[..., 1::2])
        return self.tap("ffn_out", self.linear(self.tap("act", self.swiglu(gate, up)), "feed_forward.down"))


class GeluForSilu(Block):
    """The gate goes through GELU, as Gemma has it."""

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.gelu(gate) * up


class ReluForSilu(Block):
    """The gate goes through ReLU."""

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.relu(gate) * up


class SigmoidForSilu(Block):
    """The gate goes through a sigmoid: GLU, not SwiGLU."""

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return torch.sigmoid(gate) * up


class GateNotActivated(Block):
    """The gate is not activated."""

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return gate * up


class GateClampedAtOne(Block):
    """The gate is clamped from above, as gpt-oss has it, though at 1."""

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate.clamp(max=1.0)) * up


class GateClampedAtSeven(Block):
    """The gate is clamped from above at 7."""

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate.clamp(max=7.0)) * up


class GateAndUpClampedAtSeven(Block):
    """Gate and up are clamped at 7, as gpt-oss has it."""

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate.clamp(max=7.0)) * up.clamp(min=-7.0, max=7.0)


class SiluOf1702(Block):
    """SiLU has gpt-oss's alpha: x·sigmoid(1.702 x)."""

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return gate * torch.sigmoid(1.702 * gate) * up


class SiluStepByStepInXDtype(Block):
    """SiLU is written out in x's dtype: x / (1 + exp(-x))."""

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return gate * (1 / (1 + torch.exp(-gate))) * up


class GeluOfTheOtherFormula(Block):
    """GELU is the exact one where the tanh is asked for, and the reverse."""

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="none" if self.config.feed_forward == "gelu_tanh" else "tanh")


class GeluBySigmoid(Block):
    """GELU is OpenAI's quick one."""

    def gelu(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ReluForGelu(Block):
    """ReLU stands for GELU."""

    def gelu(self, x: Tensor) -> Tensor:
        return F.relu(x)


class BiasesMissing(Block):
    """The feed-forward layer has no biases."""

    def bias(self, name: str) -> Tensor | None:
        bias = super().bias(name)
        return bias * 0 if bias is not None and name.startswith("feed_forward.") else bias


class DownBiasMissing(Block):
    """The last projection has no bias."""

    def bias(self, name: str) -> Tensor | None:
        bias = super().bias(name)
        return bias * 0 if bias is not None and name == "feed_forward.down" else bias


class ProductsInBfloat16(Block):
    """All matrix products are under autocast to bfloat16."""

    def linear(self, x: Tensor, name: str) -> Tensor:
        bias = self.bias(name)
        y = torch.matmul(x.bfloat16(), self.weight(name).bfloat16().T).to(x.dtype)
        return y if bias is None else y + bias

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.matmul(q.bfloat16(), k.bfloat16().transpose(2, 3)).to(q.dtype) * self.scaling()

    def mix(self, probs: Tensor, v: Tensor) -> Tensor:
        return torch.matmul(probs.bfloat16(), v.bfloat16()).to(v.dtype)


class ProductsInTf32(Block):
    """The inputs of all matrix products are rounded to tf32, as on a GPU by default; their gradients are not."""

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(tf32(x), tf32(self.weight(name)), self.bias(name))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return super().scores(tf32(q), tf32(k))

    def mix(self, probs: Tensor, v: Tensor) -> Tensor:
        return super().mix(tf32(probs), tf32(v))


def tf32(x: Tensor) -> Tensor:
    """Eleven significant bits, by Veltkamp's splitting; the gradient passes."""
    if x.dtype != torch.float32:
        return x
    with torch.no_grad():
        large = x * (2.0**13 + 1)
        rounded = large - (large - x)
    return x + (rounded - x).detach()


FAULTS = (
    fault(GateAndUpSwapped, "gate_and_up_swapped"),
    fault(SiluOfBoth, "up_activated_too", taps=True),
    fault(SiluOfTheProduct, "product_activated"),
    fault(GateAdded, "gate_added", taps=True),
    fault(GateAndUpInterleaved, "gate_and_up_interleaved", taps=True),
    fault(GeluForSilu, "gelu_for_silu"),
    fault(ReluForSilu, "relu_for_silu", taps=True),
    fault(SigmoidForSilu, "sigmoid_for_silu"),
    fault(GateNotActivated, "silu_missing", taps=True),
    fault(GateClampedAtOne),
    fault(GateClampedAtSeven, "gate_clamped", taps=True),
    fault(GateAndUpClampedAtSeven, "gate_and_up_clamped", taps=True),
    fault(SiluOf1702, "silu_of_1.702"),
    fault(SiluStepByStepInXDtype, "silu_in_storage_dtype", taps=True, dtypes=HALF),
    fault(GeluOfTheOtherFormula, "gelu_of_the_other_formula", taps=True),
    fault(GeluBySigmoid, "gelu_by_sigmoid"),
    fault(ReluForGelu, "relu_for_gelu"),
    fault(BiasesMissing, "feed_forward_bias_missing", taps=True),
    fault(DownBiasMissing, "down_bias_missing"),
    fault(ProductsInBfloat16, "matmul_in_bfloat16"),
    fault(ProductsInTf32, "matmul_in_tf32", taps=True),
)
