"""A block without norms, laid open: projections and SwiGLU are modules that are called, so that hooks see what they return."""

from jaxtyping import Float
from torch import Tensor, nn

from impl_torch import PreLNBlock, attention, rope, swiglu


class Opened(nn.Module):
    r"""A block's own parameters, and what it computes, in modules.

    $$ h = x + \mathrm{attention}(x), \qquad out = h + \mathrm{feed\_forward}(h) $$

    For a block with rotary positions and SwiGLU, and without norms and biases.
    """

    def __init__(self, block: PreLNBlock) -> None:
        super().__init__()
        self.config = block.config
        self.attention, self.feed_forward = nn.Module(), nn.Module()
        for name, matrix in block.named_parameters():
            projection = nn.utils.skip_init(nn.Linear, *reversed(matrix.shape), bias=False)
            projection.weight = matrix
            self.set_submodule(name.removesuffix(".weight"), projection)
        self.feed_forward.add_module("act", Act())

    def forward(self, x: Float[Tensor, "*batch s d_model"]) -> Float[Tensor, "*batch s d_model"]:
        """The stream after both sums."""
        part = self.get_submodule
        q, k, v = (part(f"attention.{name}")(x).unflatten(-1, (-1, self.config.d_head)) for name in "qkv")
        q, k = (rope(heads, base=self.config.rope_base) for heads in (q, k))
        h = x + part("attention.o")(attention(q, k, v).flatten(start_dim=-2))
        gate, up, act, down = (part(f"feed_forward.{name}") for name in ("gate", "up", "act", "down"))
        return h + down(act(gate(h), up(h)))


class Act(nn.Module):
    """SwiGLU's product."""

    def forward(self, gate: Float[Tensor, "*shape"], up: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The gate's SiLU times the other projection."""
        return swiglu(gate, up)
