"""What several studies train: the placements of the norm against the golden and against each other, and the training."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

from impl_torch import PreLNStack
from studies.language_model import BYTES, CONFIG, LanguageModel
from studies.training import TEXT, training

NORMS = ("rms_norm", "layer_norm")


def drawn(module):
    """Norms other than one too, in float64."""
    rng = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2, generator=rng)
    return module.double().requires_grad_(False)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("placement", ["pre", "post", "none"])
def test_the_model_is_the_kits_own_stack(placement, norm):
    config = replace(CONFIG, norm=norm)
    model, stack = drawn(LanguageModel(config, 3, placement)), PreLNStack(replace(config, placement=placement), 3).double()
    stack.load_state_dict(model.stack.state_dict())
    text = torch.arange(40).reshape(2, 20)
    stream = stack(model.embedding(text))
    assert torch.equal(model(text), model.norm(stream) @ model.embedding.weight.T)
    assert isinstance(model.norm, nn.Identity) is (placement != "pre"), "what Post-LN puts out is normed already"


@pytest.mark.parametrize("init", ["small", "Kaiming", "Xavier"])
def test_models_of_a_seed_begin_with_the_same_matrices(init):
    states = []
    for placement in ("none", "post", "pre"):
        torch.manual_seed(3)
        states.append(LanguageModel(CONFIG, 2, placement, init).state_dict())
    for name, matrix in states[0].items():
        assert all(torch.equal(matrix, state[name]) for state in states), name
        assert all(torch.all(value == 1) for key, value in states[-1].items() if key.endswith("norm.weight"))
    fan_in, fan_out = CONFIG.d_model, CONFIG.d_ff
    deviation = {"small": 0.02, "Kaiming": (2 / fan_in) ** 0.5, "Xavier": (2 / (fan_in + fan_out)) ** 0.5}[init]
    assert states[0]["stack.1.feed_forward.up.weight"].std().item() == pytest.approx(deviation, rel=0.03)


def steps_of(count=4, **how):
    torch.manual_seed(0)
    model = LanguageModel(CONFIG, 1)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    moved, gradients, seen = [], [], []
    for step in islice(training(model, **how), count):
        after = torch.cat([p.detach().flatten() for p in model.parameters()])
        moved.append((after - before).abs().max().item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
        seen.append(step)
        before = after
    return seen, moved, gradients


def test_a_step_tells_its_loss_and_its_gradient():
    seen, _, gradients = steps_of()
    assert seen[0].loss == pytest.approx(np.log(BYTES), abs=0.1), "log 128, for who knows nothing"
    assert [step.gradient for step in seen] == pytest.approx(gradients, rel=1e-4)


def test_warming_up_the_rate_rises_to_what_it_is():
    """Adam's first steps are about as long as the rate."""
    _, moved, _ = steps_of(rate=1e-3)
    _, warmed, _ = steps_of(rate=1e-3, warm_up=4)
    assert moved[0] == pytest.approx(1e-3, rel=0.02)  # and weights decay a little
    assert warmed == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3], rel=0.1)


def test_a_gradient_is_clipped_to_a_norm():
    seen, _, gradients = steps_of(clip=0.01)
    assert all(step.gradient > 0.02 for step in seen), "told as it was before"
    assert gradients == pytest.approx([0.01] * len(seen), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains_with_the_weights_of_its_step(dtype):
    """Autocast keeps a weight's cast until it is left: a model that is not, goes on with its first matrices."""
    (seen, *_), (exact, *_) = steps_of(count=4, batch=2, dtype=dtype), steps_of(count=4, batch=2)
    assert [step.loss for step in seen] == pytest.approx([step.loss for step in exact], rel=2e-3)
    assert seen != exact
    assert not torch.is_autocast_enabled("cpu")


def test_the_text_is_ascii():
    assert TEXT.read_text(encoding="ascii").startswith("\n                                 Apache License")
