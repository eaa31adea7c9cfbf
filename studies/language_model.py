"""A small language model in MiniMind's make, its norms where MiniMind has them, or after every sum, or nowhere."""

from dataclasses import replace
from math import sqrt
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from impl_torch import BlockConfig, LayerNorm, PreLNStack, RMSNorm

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
        self.stack = PreLNStack(replace(config, placement=placement), layers)
        self.norm = norm_of(config) if placement == "pre" else nn.Identity()  # what Post-LN puts out is normed already
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


def norm_of(config: BlockConfig) -> nn.Module:
    """The norm that a block of this config has, on its own."""
    if config.norm == "layer_norm":
        return LayerNorm(config.d_model, eps=config.eps, order=config.order)
    return RMSNorm(config.d_model, eps=config.eps, order=config.order)
