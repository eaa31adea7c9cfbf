"""A small language model in MiniMind's make, on a text that the project ships and nobody changes: its licence."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from impl_torch import BlockConfig, PreLNStack, RMSNorm

TEXT = Path(__file__).parents[2] / "LICENSE"
CONFIG = BlockConfig(d_model=64, n_heads=4, n_kv_heads=2, d_head=16, d_ff=176)
LAYERS, BYTES, WINDOW, BATCH = 4, 128, 64, 16
HELD_OUT = 2048  # bytes at the end of the text


class Model(nn.Module):
    """Bytes in, logits of the next byte out; the embedding is the head as well."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, config.d_model)
        self.stack = PreLNStack(config, LAYERS)
        self.norm = RMSNorm(config.d_model, eps=config.eps, order=config.order)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        """Logits for every place."""
        return self.norm(self.stack(self.embedding(text))) @ self.embedding.weight.T


@cache
def train(steps: int, seed: int) -> Model:
    """A model trained in float32, where the orders are one, by AdamW at 3e-3 on random windows."""
    torch.manual_seed(seed)
    model, text = Model(CONFIG), _text()[:-HELD_OUT]
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        starts = torch.randint(len(text) - WINDOW, (BATCH, 1))
        windows = text[starts + torch.arange(WINDOW + 1)]
        optimiser.zero_grad()
        _loss(model(windows[:, :-1]), windows).backward()
        optimiser.step()
    return model


def evaluate(model: Model, order: str, dtype: torch.dtype) -> tuple[float, Tensor]:
    """The loss on what was held out, and the logits, with these weights in a model of this order and dtype."""
    other = Model(replace(CONFIG, order=order))  # pyright: ignore[reportArgumentType] - a Literal
    other.load_state_dict(model.state_dict())
    windows = _text()[-HELD_OUT:].unfold(0, WINDOW + 1, WINDOW)
    with torch.no_grad():
        logits = other.to(dtype)(windows[:, :-1])
    return _loss(logits.float(), windows).item(), logits


def _loss(logits: Tensor, windows: Tensor) -> Tensor:
    """The mean cross entropy of the next byte, in nats."""
    return functional.cross_entropy(logits.flatten(end_dim=-2), windows[:, 1:].flatten())


def _text() -> Tensor:
    return torch.frombuffer(bytearray(TEXT.read_bytes()), dtype=torch.uint8).long()
