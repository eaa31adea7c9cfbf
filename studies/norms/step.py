"""A training step in three phases, of a layer alone or of a model: what is timed, and what memory is counted of."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from studies.norms.contenders import CONTENDERS
from studies.norms.minimind import CONFIG, VOCABULARY, Model

Mode = Literal["eager", "compiled"]

# Sequences and their length. A CPU that trains a model in turns with another is given fewer; for its memory, of which one
# step tells all, enough for activations to weigh what they do in training.
LARGE = {"cpu": (16, 128), "cuda": (128, 128)}
SMALL = {"cpu": (2, 128), "cuda": (128, 128)}


@dataclass(frozen=True)
class Step:
    """Forward, backward, update; and every tensor that is there before and after it."""

    forward: Callable[[], Tensor]
    backward: Callable[[Tensor], None]
    update: Callable[[], None]
    held: Callable[[], Iterable[Tensor]]

    def __call__(self) -> None:
        """All of it."""
        self.backward(self.forward())
        self.update()


def layer_step(name: str, mode: Mode, dtype: torch.dtype, batch: tuple[int, int], device: torch.device) -> Step:
    """A norm's y, and its gradients for a normal dy: there is nothing to update, only gradients to drop."""
    module = CONTENDERS[name](CONFIG.d_model).to(device, dtype)
    x, dy = (torch.randn(*batch, CONFIG.d_model, device=device).to(dtype) for _ in range(2))
    x = x.square_().add_(0.5).requires_grad_()  # positive, for a root alone; a norm's time does not depend on it
    parameters = [x, *module.parameters()]
    call = torch.compile(lambda x: module(x), fullgraph=True, dynamic=False) if mode == "compiled" else module

    def backward(y: Tensor) -> None:
        y.backward(dy)

    return Step(lambda: call(x), backward, lambda: _drop_gradients(parameters), lambda: [dy, *parameters, *module.buffers()])


def model_step(name: str, mode: Mode, layers: int, batch: tuple[int, int], device: torch.device) -> Step:
    """MiniMind-small's loss on random tokens, its gradients, and AdamW."""
    model = Model(CONTENDERS[name], layers).to(device)
    if mode == "compiled":
        model.compile_blocks()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(VOCABULARY, (batch[0], batch[1] + 1), device=device)

    def update() -> None:
        optimiser.step()
        optimiser.zero_grad()

    def held() -> Iterable[Tensor]:
        moments = [value for state in optimiser.state.values() for value in state.values() if isinstance(value, Tensor)]
        return [tokens, *model.parameters(), *model.buffers(), *moments]

    return Step(lambda: model.loss(tokens), lambda loss: loss.backward(), update, held)


def count_parameters(module: nn.Module) -> int:
    """The numbers that are learnt."""
    return sum(parameter.numel() for parameter in module.parameters())


def _drop_gradients(parameters: Iterable[Tensor]) -> None:
    for parameter in parameters:
        parameter.grad = None
