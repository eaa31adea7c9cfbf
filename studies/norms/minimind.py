"""MiniMind-small with any norm in it: 512 wide, 8 Pre-LN blocks, a vocabulary of 6400 (the MiniMind of 2025)."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from impl_torch import BlockConfig, attention, rope, swiglu
from reference.presets import PRESETS

CONFIG = BlockConfig(**vars(PRESETS["minimind"]))
VOCABULARY = 6400

NewNorm = Callable[[int], nn.Module]


class Block(nn.Module):
    """`impl_torch.PreLNBlock`, with modules for its norms: grouped-query attention with rotary positions, SwiGLU."""

    def __init__(self, new_norm: NewNorm) -> None:
        super().__init__()
        d_q, d_kv = CONFIG.n_heads * CONFIG.d_head, CONFIG.n_kv_heads * CONFIG.d_head
        self.attention_norm, self.ffn_norm = new_norm(CONFIG.d_model), new_norm(CONFIG.d_model)
        self.q, self.k, self.v = (nn.Linear(CONFIG.d_model, d, bias=False) for d in (d_q, d_kv, d_kv))
        self.o = nn.Linear(d_q, CONFIG.d_model, bias=False)
        self.gate, self.up = (nn.Linear(CONFIG.d_model, CONFIG.d_ff, bias=False) for _ in range(2))
        self.down = nn.Linear(CONFIG.d_ff, CONFIG.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """As in `impl_torch.pre_ln_block`."""
        normed = self.attention_norm(x)
        q, k, v = (project(normed).unflatten(-1, (-1, CONFIG.d_head)) for project in (self.q, self.k, self.v))
        q, k = (rope(heads, base=CONFIG.rope_base) for heads in (q, k))
        h = x + self.o(attention(q, k, v).flatten(start_dim=-2))
        normed = self.ffn_norm(h)
        return h + self.down(swiglu(self.gate(normed), self.up(normed)))


class Model(nn.Module):
    """Tokens in, logits of the next token out; the embedding is the head as well."""

    def __init__(self, new_norm: NewNorm, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, CONFIG.d_model)
        self.blocks = nn.ModuleList(Block(new_norm) for _ in range(layers))
        self.norm = new_norm(CONFIG.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits for every place."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.embedding.weight)

    def compile_blocks(self) -> None:
        """Compile what makes up nearly all of it, once for all blocks, which share their code."""
        for block in self.blocks:
            block.compile(fullgraph=True, dynamic=False)

    def loss(self, tokens: Tensor) -> Tensor:
        """The mean cross entropy of every token but the first, given those before it."""
        logits = self(tokens[:, :-1])
        return functional.cross_entropy(logits.flatten(end_dim=-2), tokens[:, 1:].flatten())
