"""How the studies train: on a text that the project ships and nobody changes, its licence, by AdamW on random windows of it."""

from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_, get_total_norm

from studies.language_model import LanguageModel

TEXT = Path(__file__).parent.parent / "LICENSE"
HELD_OUT = 2048  # bytes at the end of the text
WINDOW, BATCH = 64, 16


class Step(NamedTuple):
    """What a step of training saw: its loss, in nats a byte, and the norm of the gradient before it was clipped."""

    loss: float
    gradient: float


def training(
    model: LanguageModel,
    *,
    rate: float = 3e-3,
    warm_up: int = 0,
    clip: float = inf,
    batch: int = BATCH,
    window: int = WINDOW,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Step]:
    """Train, step by step, for as long as it is asked; the gradients of a step stay on the parameters until the next.

    The rate rises to `rate` over the first `warm_up` steps, and stays there. A `dtype` of half precision is autocast's, which
    is left with every step: until then it keeps its casts of the weights, and a loop within it would train against the first.
    """
    text = training_text()
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / max(1, warm_up)))
    while True:
        windows = random_windows(text, batch, window)
        optimiser.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = next_byte_loss(model(windows[:, :-1]), windows)
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = clip_grad_norm_(model.parameters(), clip) if clip < inf else get_total_norm(gradients)
        optimiser.step()
        schedule.step()
        yield Step(loss.item(), norm.item())


def random_windows(text: Int[Tensor, " length"], batch: int = BATCH, window: int = WINDOW) -> Int[Tensor, "batch window+1"]:
    """Pieces of a text, each with the byte that follows."""
    starts = torch.randint(len(text) - window, (batch, 1))
    return text[starts + torch.arange(window + 1)]


def next_byte_loss(logits: Float[Tensor, "*batch s bytes"], windows: Int[Tensor, "*batch s+1"]) -> Tensor:
    """The mean cross entropy of the byte that comes next, in nats."""
    return functional.cross_entropy(logits.flatten(end_dim=-2), windows[..., 1:].flatten())


def training_text() -> Int[Tensor, " length"]:
    """What models are trained on."""
    return read_text()[:-HELD_OUT]


def held_out() -> Int[Tensor, "batch s+1"]:
    """Windows, one after another, of what no model is trained on."""
    return read_text()[-HELD_OUT:].unfold(0, WINDOW + 1, WINDOW)


def read_text() -> Int[Tensor, " length"]:
    """The text, byte by byte."""
    return torch.frombuffer(bytearray(TEXT.read_bytes()), dtype=torch.uint8).long()
