"""impl_torch's Triton kernels, beyond what the suite asks; run by test_triton, in a process with TRITON_INTERPRET=1."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from impl_torch import (
    add_layer_norm,
    add_rms_norm,
    gated_rms_norm,
    layer_norm,
    quantised_add_rms_norm,
    quantised_rms_norm,
    rms_norm,
)
from impl_torch.kernels import gated_norms, in_triton, launch, quantised_norms
from impl_torch.kernels.grid import HELD_FORWARD

NORMS = {"rms_norm": rms_norm, "layer_norm": layer_norm, "add_rms_norm": add_rms_norm, "add_layer_norm": add_layer_norm}
GATES = {
    f"gated_rms_norm-{first}-{activation}": partial(gated_rms_norm, norm_before_gate=first, activation=activation)
    for first, activation in [(True, "silu"), (False, "sigmoid")]
}
OPS = NORMS | GATES
pytestmark = pytest.mark.one_in(2)
SUMS = ["rounded", "unrounded", "float32"]
EPS = 1e-3  # far from every default
LONG = HELD_FORWARD + HELD_FORWARD // 2 + 3  # numbers of a row, more than registers hold


@pytest.fixture(autouse=True)
def _the_same_draws_in_any_order():
    torch.manual_seed(0)


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def draw(op: str, *shape: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """All that an op may be given, to be differentiated."""
    shapes = {"x": shape, "residual": shape, "gate": shape, "weight": shape[-1:], "bias": shape[-1:]}
    absent = ("residual" if "add" not in op else "", "gate" if "gated" not in op else "", "bias" if "rms" in op else "")
    return {n: torch.randn(s).to(dtype).requires_grad_() for n, s in shapes.items() if n not in absent}


def outputs_and_gradients(op, inputs: dict[str, Tensor], **settings) -> list[Tensor]:
    """With cotangents that are the same for every function that is asked."""
    made = op(**inputs, **settings)
    outputs = made if isinstance(made, tuple) else (made,)
    drawn = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(each.shape, generator=drawn).to(each.dtype) for each in outputs]
    return [*outputs, *torch.autograd.grad(outputs, list(inputs.values()), cotangents)]


def assert_as_torch(op: str, inputs: dict[str, Tensor], *, rtol: float = 1e-11, **settings) -> None:
    """The kernel's outputs and gradients are those of torch's operations."""
    both = [outputs_and_gradients(partial(OPS[op], kernel=kernel), inputs, **settings) for kernel in ("triton", "torch")]
    for actual, expected in zip(*both, strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * expected.abs().max().item())


@pytest.mark.parametrize("op", OPS)
def test_a_row_may_be_longer_than_registers_hold(op):
    assert_as_torch(op, draw(op, 3, LONG))


@pytest.mark.parametrize("sum", SUMS)
@pytest.mark.parametrize("op", ["add_rms_norm", "add_layer_norm"])
def test_a_long_row_reads_the_sum_that_was_asked_for(op, sum):
    inputs = draw(op, 2, LONG, dtype=torch.bfloat16)
    if sum == "float32":
        inputs["residual"] = torch.randn(2, LONG, requires_grad=True)
    made = [OPS[op](**inputs, sum=sum, order="cast_then_scale", kernel=kernel) for kernel in ("triton", "torch")]
    for actual, expected in zip(*made, strict=True):
        assert (actual != expected).float().mean() < 1e-3  # sums in another order


@pytest.mark.parametrize("width", [1, 2, 5, 128, 2048, 2049])
@pytest.mark.parametrize("op", OPS)
def test_a_row_may_have_any_width(op, width):
    offset = {"weight_offset": 1.0} if op in NORMS else {}
    assert_as_torch(op, draw(op, 3, 3, width), eps=EPS, **offset)


@pytest.mark.parametrize("group_size", [1, 5])
@pytest.mark.parametrize("op", ["rms_norm", "layer_norm", *GATES])
def test_a_row_may_have_groups(op, group_size):
    """Rows that lie apart too."""
    inputs = draw(op, 130, 27)
    inputs = {name: tensor.detach()[..., 4:24].requires_grad_() for name, tensor in inputs.items()}
    assert_as_torch(op, inputs, eps=EPS, group_size=group_size)


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
def test_a_group_may_be_longer_than_registers_hold(op):
    assert_as_torch(op, draw(op, 2, 2 * LONG), group_size=LONG)


@pytest.mark.parametrize("op", OPS)
def test_rows_may_lie_anywhere(op):
    """Apart, the same one again, in another order, before others in a buffer; dy too."""
    base = {name: tensor.detach() for name, tensor in draw(op, 6, 4, 40).items()}
    for view in (
        lambda t: t[..., 3:20],
        lambda t: t[:1, :, :17].expand(5, 4, 17),
        lambda t: t.transpose(0, 1)[..., :17],
        lambda t: t[..., 5:39:2],
        lambda t: t[2:, 1:, 23:],
    ):
        inputs = {name: (view(t) if t.ndim > 1 else t[5:39:2]).requires_grad_() for name, t in base.items()}
        assert_as_torch(op, inputs, eps=EPS)
        y, *_ = made if isinstance(made := OPS[op](**inputs, kernel="triton"), tuple) else (made,)
        expected, *_ = made if isinstance(made := OPS[op](**inputs), tuple) else (made,)
        gradients = (torch.autograd.grad(each.sum(), list(inputs.values())) for each in (y, expected))
        for actual, each in zip(*gradients, strict=True):
            torch.testing.assert_close(actual, each)


@pytest.mark.parametrize("op", OPS)
def test_a_row_has_the_same_bits_in_every_batch(op):
    inputs = draw(op, 37, 129, dtype=torch.float32)
    whole = outputs_and_gradients(partial(OPS[op], kernel="triton"), inputs)
    again = outputs_and_gradients(partial(OPS[op], kernel="triton"), inputs)
    assert all(map(torch.equal, whole, again))
    of_rows = [0, *([1] if "add" in op else []), 1 + ("add" in op)]  # y, the sum, dx
    for row in (0, 17, 36):
        alone = {name: t[row : row + 1] if t.ndim > 1 else t for name, t in inputs.items()}
        made = OPS[op](**alone, kernel="triton")
        for place, each in zip(of_rows, made if isinstance(made, tuple) else (made,), strict=False):
            assert torch.equal(each[0], whole[place][row])


@pytest.mark.parametrize("op", [*NORMS, next(iter(GATES))])
def test_first_and_second_derivatives_are_those_of_finite_differences(op):
    inputs = draw(op, 2, 6)

    how = {"weight_offset": 1.0} if op in NORMS else {"group_size": 3}

    def function(*tensors: Tensor) -> Tensor:
        return OPS[op](**dict(zip(inputs, tensors, strict=True)), eps=EPS, **how, kernel="triton")

    assert gradcheck(function, tuple(inputs.values()))
    assert gradgradcheck(function, tuple(inputs.values()))


@pytest.mark.parametrize("sum", SUMS)
def test_second_derivatives_go_through_the_sum_in_half_precision(sum):
    inputs = draw("add_rms_norm", 3, 9, dtype=torch.bfloat16)
    if sum == "float32":
        inputs["residual"] = torch.randn(3, 9, requires_grad=True)

    def second(kernel: str) -> tuple[Tensor, ...]:
        y, residual_out = add_rms_norm(**inputs, eps=EPS, sum=sum, kernel=kernel)
        loss = y.float().pow(3).sum() + residual_out.float().pow(2).sum()
        first = torch.autograd.grad(loss, list(inputs.values()), create_graph=True)
        return torch.autograd.grad([each.float().square().sum() for each in first], list(inputs.values()))

    for actual, expected in zip(second("triton"), second("torch"), strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


@pytest.mark.parametrize("alone", ["x", "residual", "weight", "bias"])
def test_one_gradient_may_be_asked_for_alone(alone):
    inputs = draw("add_layer_norm", 5, 9)
    y, residual_out = add_layer_norm(**inputs, kernel="triton")
    expected = torch.autograd.grad(add_layer_norm(**inputs)[0].sin().sum(), inputs[alone])
    torch.testing.assert_close(torch.autograd.grad(y.sin().sum(), inputs[alone], retain_graph=True), expected)
    for name, tensor in inputs.items():
        tensor.requires_grad_(name == alone)
    y, residual_out = add_layer_norm(**inputs, kernel="triton")
    torch.testing.assert_close(torch.autograd.grad(y.sin().sum(), inputs[alone], retain_graph=True), expected)
    [passed_on] = torch.autograd.grad(residual_out.sum(), inputs[alone], allow_unused=True)
    assert passed_on is None if alone in ("weight", "bias") else torch.equal(passed_on, torch.ones(5, 9))


@pytest.mark.parametrize("op", OPS)
def test_an_empty_batch_has_gradients_of_zero(op):
    inputs = draw(op, 0, 9)
    outputs = outputs_and_gradients(partial(OPS[op], kernel="triton"), inputs)
    for tensor, gradient in zip(inputs.values(), outputs[-len(inputs) :], strict=True):
        assert torch.equal(gradient, torch.zeros_like(tensor))


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(("op", "dynamic"), [("layer_norm", False), ("add_rms_norm", True), (next(iter(GATES)), True)])
def test_compiles_whole(op, dynamic):
    """Twice in one graph, with another eps; with dynamic shapes it serves every width."""

    def twice(**inputs: Tensor) -> Tensor:
        made = OPS[op](**inputs, eps=EPS, kernel="triton")
        y, *others = made if isinstance(made, tuple) else (made,)
        again = dict(zip(("x", "residual"), (y.sin(), *others), strict=False))
        return OPS[op](**inputs | again, eps=1.0, kernel="triton")

    compiled = torch.compile(twice, fullgraph=True, dynamic=dynamic)
    for rows, width in ((5, 24), (7, 33)) if dynamic else ((5, 24),):
        inputs = draw(op, rows, width, dtype=torch.float32)
        both = (outputs_and_gradients(function, inputs) for function in (compiled, twice))
        for actual, expected in zip(*both, strict=True):
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("op", NORMS)
def test_the_ops_are_what_they_say_they_are(op):
    """torch's own checks: the schema, the outputs' shapes and dtypes without a kernel, gradients, the compiler."""
    given = draw(op, 3, 9, dtype=torch.bfloat16)
    tensors = [given.get(name) for name in ("x", "residual", "weight", "bias")]
    settings = (EPS, 0.0, "layer" in op, False, torch.bfloat16, torch.bfloat16, 3)
    torch.library.opcheck(launch.forward, (*tensors, *settings))


def test_so_are_those_of_the_gated_and_the_quantised_norm():
    x, other = torch.randn(2, 3, 8).bfloat16()
    tensors = [each.requires_grad_() for each in (x, other, torch.randn(8, requires_grad=True))]
    for first in (True, False):
        torch.library.opcheck(gated_norms.forward, (*tensors, EPS, first, "silu", "cast_then_scale", 2))
    for group, scale in ((4, None), (None, None), (None, torch.ones(1))):
        settings = (torch.int8, 127.0, None, 1e-6, None, group, True, torch.bfloat16, torch.float32)
        looked_at = ("test_schema", "test_faketensor", "test_autograd_registration")  # the others take means of outputs
        torch.library.opcheck(quantised_norms.forward, (*tensors, scale, EPS, 0.0, *settings), test_utils=looked_at)


QUANTISED = [
    {"scaling": "per_row", "quantised_dtype": "float8_e4m3fn"},
    {"scaling": "per_row", "quantised_dtype": "int8", "scale_ub": 2.0},
    {"scaling": "per_group_128", "quantised_dtype": "float8_e5m2", "y": "unrounded"},
    {"scaling": "mx", "quantised_dtype": "float8_e4m3fn"},
    {"scaling": "static", "quantised_dtype": "int8"},
]


@pytest.mark.parametrize("sum", SUMS)
@pytest.mark.parametrize("how", QUANTISED, ids=lambda how: f"{how['scaling']}-{how['quantised_dtype']}")
def test_a_long_row_is_quantised_as_torch_does(how, sum):
    """And what the sum passes on is its gradient."""
    width = 128 * (LONG // 128)
    x, residual = torch.randn(2, 2, width).bfloat16()
    residual = residual.float() if sum == "float32" else residual
    weight = torch.randn(width)
    scale = torch.full([1], 0.05) if how["scaling"] == "static" else None
    made = []
    for kernel in ("triton", "torch"):
        leaves = [each.detach().requires_grad_() for each in (x, residual)]
        *quantised, residual_out = quantised_add_rms_norm(*leaves, weight, scale, **how, sum=sum, kernel=kernel)
        gradients = torch.autograd.grad(residual_out, leaves, torch.arange(2.0)[:, None].expand(2, width).to(residual.dtype))
        made.append([*quantised, residual_out, *gradients])
    for actual, expected in zip(*made, strict=True):
        assert actual.dtype == expected.dtype
        assert actual.shape == expected.shape
        assert (actual.float() != expected.float()).float().mean() < 2e-3  # sums in another order


@pytest.mark.usefixtures("_fresh_compiler")
def test_what_is_quantised_compiles_whole():
    compiled = torch.compile(partial(quantised_rms_norm, kernel="triton"), fullgraph=True, dynamic=True)
    for width in (24, 40):
        x = torch.randn(3, width)
        for actual, expected in zip(compiled(x), quantised_rms_norm(x, kernel="triton"), strict=True):
            assert torch.equal(actual.view(torch.int8), expected.view(torch.int8))


def test_an_empty_batch_is_quantised():
    q, scale = quantised_rms_norm(torch.ones(0, 128), scaling="per_group_128", kernel="triton")
    assert (q.shape, scale.shape) == ((0, 128), (0, 1))


def test_a_kernel_is_chosen_where_it_can_run():
    x = torch.ones(2, 3)
    assert not in_triton(None, x)
    assert not in_triton("torch", x)
    assert in_triton("triton", x)
    for op in NORMS.values():
        with pytest.raises(ValueError, match="kernel is 'cuda'; it must be 'triton', 'torch' or None"):
            op(x, x, kernel="cuda") if "add" in op.__name__ else op(x, kernel="cuda")


@pytest.mark.parametrize("op", NORMS)
def test_what_is_refused_is_refused_by_kernels_too(op):
    x, *residual = torch.ones(1 + ("add" in op), 3, 8)
    with pytest.raises(ValueError, match=r"weight has shape \[1\]; with x of shape \[3, 8\] it must be \[8\]"):
        OPS[op](x, *residual, torch.ones(1), kernel="triton")
    with pytest.raises(ValueError, match="order is 'sideways'"):
        OPS[op](x, *residual, order="sideways", kernel="triton")
