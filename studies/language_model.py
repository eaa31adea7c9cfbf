"""A small language model in MiniMind's make, its norms where MiniMind has them, or after every sum, or nowhere."""

from math import sqrt
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from impl_torch import BlockConfig, LayerNorm, PreLNBlock, PreLNStack, RMSNorm, attention, rope, swiglu

Placement = Literal["none", "post", "pre"]
Init = Literal["small", "Kaiming", "Xavier"]

BYTES = 128  # ASCII
CONFIG = BlockConfig(d_model=64, n_heads=4, n_kv_heads=2, d_head=16, d_ff=176)


class LanguageModel(nn.Module):
    """Bytes in, logits of the next byte out; the embedding is the head as well.

    `small` draws every matrix with a deviation of 0.02, as GPT-2 and Llama do. The others draw those of a layer by its width,
    and the embedding with a deviation of 1/√d, multiplied by √d at the input (Vaswani et al. 2017, arXiv:1706.03762).
    Models of one seed begin with the same matrices, wherever their norms are.
    """

    def __init__(self, config: BlockConfig, layers: int, placement: Placement = "pre", init: Init = "small") -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, config.d_model)
        if placement == "pre":
            self.stack, self.norm = PreLNStack(config, layers), norm_of(config)
        else:  # what Post-LN puts out is normed already
            self.stack = nn.Sequential(*(OtherBlock(config, placement == "post") for _ in range(layers)))
            self.norm = nn.Identity()
        self.scale = 1.0 if init == "small" else sqrt(config.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02 if init == "small" else 1 / self.scale)
        for matrix in (parameter for parameter in self.stack.parameters() if parameter.ndim == 2):
            match init:
                case "small":  # as the blocks draw it
                    pass
                case "Kaiming":
                    nn.init.kaiming_normal_(matrix, nonlinearity="relu")
                case "Xavier":
                    nn.init.xavier_normal_(matrix)

    def forward(self, text: Int[Tensor, "*batch s"]) -> Float[Tensor, "*batch s bytes"]:
        """Logits for every place."""
        return self.norm(self.stack(self.scale * self.embedding(text))) @ self.embedding.weight.T


class OtherBlock(PreLNBlock):
    r"""The same sublayers with a norm after every sum, which is Post-LN (arXiv:1706.03762), or with none.

    $$ h = \mathrm{norm}_1(x + \mathrm{attention}(x)), \qquad out = \mathrm{norm}_2(h + \mathrm{feed\_forward}(h)) $$

    For a config with rotary positions and SwiGLU, and without biases and norms of queries and keys. Its projections and its
    SwiGLU are submodules that are called, so that hooks see what they return.
    """

    def __init__(self, config: BlockConfig, normed: bool) -> None:
        super().__init__(config)
        for name, matrix in [*self.named_parameters()]:
            if matrix.ndim == 2:
                projection = nn.utils.skip_init(nn.Linear, *reversed(matrix.shape), bias=False)
                projection.weight = matrix
                self.set_submodule(name.removesuffix(".weight"), projection)
        self.get_submodule("feed_forward").add_module("act", Act())
        self.attention_norm, self.ffn_norm = (norm_of(config) if normed else nn.Identity() for _ in range(2))

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - there is no cache here
        self, x: Float[Tensor, "*batch s d_model"]
    ) -> Float[Tensor, "*batch s d_model"]:
        """The stream after both sums."""
        h = self.attention_norm(x + self.attend(x))
        return self.ffn_norm(h + self.feed(h))

    def attend(self, x: Float[Tensor, "*batch s d_model"]) -> Float[Tensor, "*batch s d_model"]:
        """The attention sublayer, as a `PreLNBlock` has it behind its norm."""
        part = self.get_submodule
        q, k, v = (part(f"attention.{name}")(x).unflatten(-1, (-1, self.config.d_head)) for name in "qkv")
        q, k = (rope(heads, base=self.config.rope_base) for heads in (q, k))
        return part("attention.o")(attention(q, k, v).flatten(start_dim=-2))

    def feed(self, x: Float[Tensor, "*batch s d_model"]) -> Float[Tensor, "*batch s d_model"]:
        """The feed-forward sublayer, as a `PreLNBlock` has it behind its norm."""
        gate, up, act, down = (self.get_submodule(f"feed_forward.{name}") for name in ("gate", "up", "act", "down"))
        return down(act(gate(x), up(x)))


class Act(nn.Module):
    """SwiGLU's product."""

    def forward(self, gate: Float[Tensor, "*shape"], up: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The gate's SiLU times the other projection."""
        return swiglu(gate, up)


def norm_of(config: BlockConfig) -> nn.Module:
    """The norm that a block of this config has, on its own."""
    if config.norm == "layer_norm":
        return LayerNorm(config.d_model, eps=config.eps, order=config.order)
    return RMSNorm(config.d_model, eps=config.eps, order=config.order)
