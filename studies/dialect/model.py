"""A language model trained in float32, and what becomes of it in either order."""

from dataclasses import replace
from functools import cache
from itertools import islice

import torch
from torch import Tensor

from studies.language_model import CONFIG, LanguageModel
from studies.training import held_out, next_byte_loss, training

LAYERS = 4


@cache
def train(steps: int, seed: int) -> LanguageModel:
    """A model trained in float32, where the orders are one."""
    torch.manual_seed(seed)
    model = LanguageModel(CONFIG, LAYERS)
    for _ in islice(training(model), steps):
        pass
    return model


def evaluate(model: LanguageModel, order: str, dtype: torch.dtype) -> tuple[float, Tensor]:
    """The loss on what was held out, and the logits, with these weights in a model of this order and dtype."""
    other = LanguageModel(replace(CONFIG, order=order), LAYERS)  # pyright: ignore[reportArgumentType] - a Literal
    other.load_state_dict(model.state_dict())
    windows = held_out()
    with torch.no_grad():
        logits = other.to(dtype)(windows[:, :-1])
    return next_byte_loss(logits.float(), windows).item(), logits
