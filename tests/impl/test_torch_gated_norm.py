"""impl_torch's norm and gate, and its norms of groups: what they are made of, under the compiler too, and what they refuse.

What the numbers are worth is asked elsewhere, by the kit itself: see test_ports_conform.
"""

import copy
import re

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from impl_torch import LayerNorm, RMSNorm, RMSNormGated, gated_rms_norm, layer_norm, rms_norm

HALF = [torch.bfloat16, torch.float16]
HOW = [
    {"norm_before_gate": first, "activation": activation, "group_size": group}
    for first, activation, group in [(True, "silu", None), (True, "sigmoid", 3), (False, "silu", 3), (False, "sigmoid", None)]
]
of_all = pytest.mark.parametrize("how", HOW, ids=lambda how: "-".join(map(str, how.values())))
GROUPED = {rms_norm: RMSNorm, layer_norm: LayerNorm}


@pytest.fixture(autouse=True)
def _the_same_draws_in_any_order():
    torch.manual_seed(0)


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Draw x, the gate and the weight, all to be differentiated."""
    shapes = {"x": shape, "gate": shape, "weight": shape[-1:]}
    return {name: torch.randn(shape, dtype=dtype, requires_grad=True) for name, shape in shapes.items()}


@of_all
def test_first_and_second_derivatives_are_those_of_finite_differences(how):
    def op(*tensors: Tensor) -> Tensor:
        return gated_rms_norm(*tensors, eps=1e-3, **how)

    inputs = tuple(draw(2, 6).values())
    assert gradcheck(op, inputs)
    assert gradgradcheck(op, inputs)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("first", [True, False])
def test_what_is_rounded_is_what_hugging_face_rounds(dtype, first):
    """In `cast_then_scale`, to the bit: Qwen3-Next's norm and gate, and its gradient of the gate; Mamba2's gate and norm."""
    inputs = draw(16, 24, dtype=dtype)
    dy = torch.randn(16, 24).to(dtype)

    def shipped(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
        wide = x.float() if first else x.float() * nn.functional.silu(gate.float())
        x_hat = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
        y = weight * x_hat.to(dtype)
        return (y * nn.functional.silu(gate.float())).to(dtype) if first else y

    expected = shipped(**inputs)
    actual = gated_rms_norm(**inputs, norm_before_gate=first, order="cast_then_scale")
    assert torch.equal(actual, expected)
    if first:
        assert torch.equal(*(torch.autograd.grad(y, inputs["gate"], dy)[0] for y in (actual, expected)))


@of_all
def test_a_module_is_its_function(how):
    module = RMSNormGated(6, 1e-3, how["group_size"], how["norm_before_gate"], activation=how["activation"])
    nn.init.normal_(module.weight)
    x, gate = torch.randn(2, 4, 6)
    assert torch.equal(module(x, gate), gated_rms_norm(x, gate, module.weight, eps=1e-3, **how))
    assert list(module.state_dict()) == ["weight"]
    assert module.bias is None
    assert {name: getattr(module, name) for name in how} == how
    assert f"activation={how['activation']!r}" in repr(module)
    assert repr(copy.deepcopy(module)) == repr(module)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm", GROUPED)
def test_a_grouped_norm_is_the_plain_one_of_every_group(norm, dtype):
    parameters = [torch.randn(12, dtype=dtype, requires_grad=True) for _ in range(1 + (norm is layer_norm))]
    x, dy = (torch.randn(3, 5, 12).to(dtype).requires_grad_() for _ in range(2))
    y = norm(x, *parameters, group_size=4)
    gradients = torch.autograd.grad(y, [x, *parameters], dy)
    for group in range(3):
        part = slice(4 * group, 4 * group + 4)
        of_group = norm(x[..., part], *(each[part] for each in parameters))
        assert torch.equal(y[..., part], of_group)
        expected = torch.autograd.grad(of_group, [x, *parameters], dy[..., part])
        for actual, each in zip(gradients, expected, strict=True):
            torch.testing.assert_close(actual[..., part], each[..., part], rtol=1e-2 if dtype in HALF else 1e-12, atol=1e-12)
    module = GROUPED[norm](12, group_size=4, dtype=dtype)
    assert torch.equal(
        module(x), norm(x, *(torch.ones_like(x[0, 0]), torch.zeros_like(x[0, 0]))[: len(parameters)], group_size=4)
    )
    assert "group_size=4" in repr(module)


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiles_whole_with_groups():
    inputs, how = draw(5, 24, dtype=torch.float32), HOW[2]
    expected, actual = (op(**inputs, **how) for op in (gated_rms_norm, torch.compile(gated_rms_norm, fullgraph=True)))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    dy, leaves = torch.randn_like(expected), list(inputs.values())
    for one, other in zip(*(torch.autograd.grad(y, leaves, dy) for y in (actual, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_an_empty_batch_has_gradients_of_zero():
    inputs = draw(0, 6)
    gradients = torch.autograd.grad(gated_rms_norm(**inputs, group_size=3).sum(), list(inputs.values()))
    assert [gradient.shape for gradient in gradients] == [(0, 6), (0, 6), (6,)]
    assert not gradients[2].any()


@pytest.mark.parametrize("norm", [gated_rms_norm, RMSNormGated(8)], ids=lambda norm: type(norm).__name__)
def test_a_gate_that_would_broadcast_or_promote_is_refused(norm):
    with pytest.raises(ValueError, match=re.escape("gate has shape [8]; with x of shape [3, 8] it must be [3, 8]")):
        norm(torch.ones(3, 8), torch.ones(8))
    with pytest.raises(TypeError, match=re.escape("gate is torch.float32; with x of torch.bfloat16 it must be torch.bfloat16")):
        norm(torch.ones(3, 8, dtype=torch.bfloat16), torch.ones(3, 8))
    with pytest.raises(TypeError, match=r"x is torch.int64"):
        norm(torch.ones(8, dtype=torch.int64), torch.ones(8))


@pytest.mark.parametrize(
    "norm", [lambda how: gated_rms_norm(torch.ones(8), torch.ones(8), **how), lambda how: RMSNormGated(8, **how)]
)
def test_an_unknown_activation_is_refused(norm):
    with pytest.raises(ValueError, match="activation is 'relu'; it must be 'silu' or 'sigmoid'"):
        norm({"activation": "relu"})


@pytest.mark.parametrize("norm", [*GROUPED, lambda x, **how: gated_rms_norm(x, x, **how)])
@pytest.mark.parametrize("group_size", [0, 5, -4])
def test_a_group_that_does_not_divide_the_row_is_refused(norm, group_size):
    message = f"group_size is {group_size}; with x of shape [3, 8] it must divide 8"
    with pytest.raises(ValueError, match=re.escape(message)):
        norm(torch.ones(3, 8), group_size=group_size)
