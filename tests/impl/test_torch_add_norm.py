"""impl_torch's norms that first add a residual: the sum is rounded where `sum` says, under the compiler too, and both
outputs may have a gradient.

What the numbers are worth is asked elsewhere, by the kit itself: see test_ports_conform.
"""

import copy
import inspect
import re

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from conformance.ops.cases import select
from impl_torch import AddLayerNorm, AddRMSNorm, LayerNorm, RMSNorm, add_layer_norm, add_rms_norm, layer_norm, rms_norm
from tests.judge.written.fault import judged
from tests.judge.written.torch_blocks.block import Block, fault

OPS = {"add_rms_norm": add_rms_norm, "add_layer_norm": add_layer_norm}
NORMS = {"add_rms_norm": rms_norm, "add_layer_norm": layer_norm}
PARAMETERS = {"add_rms_norm": [[], ["weight"]], "add_layer_norm": [[], ["weight"], ["bias"], ["weight", "bias"]]}
CALLS = [(op, names) for op, choices in PARAMETERS.items() for names in choices]

CLASSES = {AddRMSNorm: (RMSNorm, nn.RMSNorm), AddLayerNorm: (LayerNorm, nn.LayerNorm)}
SUMS = ["rounded", "unrounded", "float32"]
HALF = [torch.bfloat16, torch.float16]
EPS = 1e-3  # far from every default

# Two implementations in float32, over rows of 24 values near one: some dozens of roundings apart, of the largest value.
NOISE = 64 * 2.0**-24


@pytest.fixture(autouse=True)
def _the_same_draws_in_any_order():
    torch.manual_seed(0)


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def randomise(module: nn.Module) -> nn.Module:
    """Draw every parameter: ones and zeros hide mistakes."""
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def draw(names: list[str], *shape: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Draw x, the residual and the parameters named, all to be differentiated."""
    shapes = {"x": shape, "residual": shape} | {name: shape[-1:] for name in names}
    return {name: torch.randn(shape, dtype=dtype, requires_grad=True) for name, shape in shapes.items()}


def draw_half(dtype: torch.dtype, sum: str, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw x, a residual of the dtype that the sum asks for, so large that rounding shows, and a weight no power of two."""
    residual = 8 * torch.randn(shape)
    weight = 17 / 16 + 14 / 16 * torch.rand(shape[-1:])
    return torch.randn(shape).to(dtype), residual if sum == "float32" else residual.to(dtype), weight.to(dtype)


def assert_close(actual: Tensor, expected: Tensor, noise: float = NOISE) -> None:
    """Compare dtypes and shapes, then values, to a share of the largest."""
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=noise * scale)


def outputs_and_gradients(op, inputs: dict[str, Tensor], cotangents: tuple[Tensor, ...], **constants) -> list[Tensor]:
    outputs = op(**inputs, **constants)
    return [*outputs, *torch.autograd.grad(outputs, list(inputs.values()), cotangents)]


@pytest.mark.parametrize("cls", CLASSES)
def test_the_constructor_takes_what_the_plain_norms_takes_but_groups_and_sum(cls):
    ours, plain = (dict(inspect.signature(norm).parameters) for norm in (cls, CLASSES[cls][0]))
    added = ours.pop("sum")
    del plain["group_size"]
    assert list(ours.values()) == list(plain.values())
    assert (added.kind, added.default) == (added.KEYWORD_ONLY, "rounded")


@pytest.mark.parametrize("shape", [24, (4, 6)], ids=str)
@pytest.mark.parametrize("cls", CLASSES)
def test_outputs_and_gradients_are_those_of_torchs_norm_after_a_sum(cls, shape):
    """With torch's state_dict; both outputs have a cotangent."""
    torchs = randomise(CLASSES[cls][1](shape, EPS))
    ours = cls(shape, EPS)
    ours.load_state_dict(torchs.state_dict(), strict=True)
    x, residual, dy, dresidual_out = torch.randn(4, 5, 2, *torchs.normalized_shape)
    leaves = [x.requires_grad_(), residual.requires_grad_()]

    def by_autograd(module: nn.Module, y: Tensor, residual_out: Tensor) -> list[Tensor]:
        outputs = (y, residual_out)
        return [*outputs, *torch.autograd.grad(outputs, [*leaves, *module.parameters()], (dy, dresidual_out))]

    expected = by_autograd(torchs, torchs(x + residual), x + residual)
    for actual, each in zip(by_autograd(ours, *ours(x, residual)), expected, strict=True):
        assert_close(actual, each)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("sum", SUMS)
def test_a_module_is_its_function(cls, sum):
    settings = {"order": "scale_then_cast", "weight_offset": 1.0, "sum": sum}
    module = randomise(cls((2, 3), EPS, dtype=torch.bfloat16, **settings))
    x, residual, _ = draw_half(torch.bfloat16, sum, 4, 2, 3)
    y, residual_out = module(x, residual)
    parameters = {name: parameter.reshape(6) for name, parameter in module.named_parameters()}
    op = OPS["add_rms_norm" if cls is AddRMSNorm else "add_layer_norm"]
    of_rows = op(x.reshape(4, 6), residual.reshape(4, 6), **parameters, eps=EPS, **settings)
    assert torch.equal(y, of_rows[0].reshape(4, 2, 3))
    assert torch.equal(residual_out, of_rows[1].reshape(4, 2, 3))
    assert f"sum={sum!r}" in repr(module)
    assert repr(copy.deepcopy(module)) == repr(module)


@pytest.mark.parametrize("sum", SUMS)
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("order", ["cast_then_scale", "scale_then_cast"])
@pytest.mark.parametrize("op", OPS)
def test_the_norm_reads_the_sum_that_was_asked_for(op, order, dtype, sum):
    x, residual, weight = draw_half(dtype, sum, 64, 33)
    y, residual_out = OPS[op](x, residual, weight, eps=EPS, order=order, sum=sum)
    exact = x.float() + residual.float()
    assert torch.equal(residual_out, exact.to(residual.dtype))
    settings = {"eps": EPS, "order": order, "dtype": dtype}
    assert y.dtype == dtype
    assert torch.equal(y, NORMS[op](residual_out if sum == "rounded" else exact, weight, **settings))
    other = NORMS[op](exact.to(dtype) if sum != "rounded" else exact, weight, **settings)
    assert (y != other).float().mean() > 0.05


@pytest.mark.parametrize("op", OPS)
def test_an_output_that_nothing_reads_adds_nothing(op):
    """The gradients of one output alone; the sum passes its own on whole, and the weight has none of it."""
    inputs = draw(PARAMETERS[op][-1], 3, 9)
    dy, dresidual_out = torch.randn(2, 3, 9, dtype=torch.float64)
    leaves = list(inputs.values())

    y, residual_out = OPS[op](**inputs)
    dx, dresidual, *of_parameters = torch.autograd.grad(residual_out, leaves, dresidual_out, allow_unused=True)
    assert torch.equal(dx, dresidual_out)
    assert torch.equal(dresidual, dresidual_out)
    assert set(of_parameters) == {None}

    parameters = {name: inputs[name] for name in PARAMETERS[op][-1]}
    s = (inputs["x"] + inputs["residual"]).detach().requires_grad_()
    ds, *expected = torch.autograd.grad(NORMS[op](s, **parameters), [s, *parameters.values()], dy)
    dx, dresidual, *of_parameters = torch.autograd.grad(y, leaves, dy)
    for actual, each in zip([dx, dresidual, *of_parameters], [ds, ds, *expected], strict=True):
        assert torch.equal(actual, each)


@pytest.mark.parametrize("sum", SUMS)
@pytest.mark.parametrize("op", OPS)
def test_gradients_have_the_dtypes_of_their_inputs(op, sum):
    x, residual, weight = (tensor.requires_grad_() for tensor in draw_half(torch.bfloat16, sum, 3, 9))
    y, residual_out = OPS[op](x, residual, weight, sum=sum)
    (y.float().sum() + residual_out.float().sum()).backward()
    for tensor in (x, residual, weight):
        assert tensor.grad.dtype == tensor.dtype


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(("op", "names"), CALLS)
def test_first_and_second_derivatives_are_those_of_finite_differences(op, names, offset):
    inputs = draw(names, 2, 5)

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return OPS[op](**dict(zip(inputs, tensors, strict=True)), eps=EPS, weight_offset=offset)

    assert gradcheck(function, tuple(inputs.values()), check_batched_grad=True)
    assert gradgradcheck(function, tuple(inputs.values()))


@pytest.mark.parametrize("sum", SUMS)
@pytest.mark.parametrize("mapped", [["x"], ["residual"], ["x", "residual"], ["weight"]], ids="+".join)
@pytest.mark.parametrize("op", OPS)
def test_vmap_is_a_loop(op, mapped, sum):
    """Values and gradients: no row's dweight may reach another's."""
    drawn = [draw_half(torch.bfloat16, sum, 2, 9) for _ in range(4)]
    stacked = dict(zip(("x", "residual", "weight"), map(torch.stack, zip(*drawn, strict=True)), strict=True))
    batch = {name: tensor if name in mapped else tensor[0] for name, tensor in stacked.items()}

    def loss(*tensors: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, residual_out = OPS[op](*tensors, sum=sum)
        return y.float().pow(3).sum() + residual_out.float().sin().sum(), (y, residual_out)

    function = torch.func.grad(loss, argnums=(0, 1, 2), has_aux=True)
    axes = tuple(0 if name in mapped else None for name in batch)
    gradients, outputs = torch.func.vmap(function, in_dims=axes)(*batch.values())
    rows = [function(*(tensor[i] if name in mapped else tensor for name, tensor in batch.items())) for i in range(4)]
    for actual, looped in zip((*gradients, *outputs), zip(*((*g, *o) for g, o in rows), strict=True), strict=True):
        assert torch.equal(actual, torch.stack(looped))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_inputs_are_neither_written_to_nor_returned(op, dtype):
    """Where x is zero the sum is the residual, but in a memory of its own."""
    x, residual, weight = torch.zeros(3, 9, dtype=dtype), torch.randn(3, 9).to(dtype), torch.randn(9).to(dtype)
    before = [tensor.clone() for tensor in (x, residual, weight)]
    y, residual_out = OPS[op](x, residual, weight)
    assert torch.equal(residual_out, residual)
    y.zero_()
    assert torch.equal(residual_out, residual)
    residual_out.zero_()
    for tensor, copied in zip((x, residual, weight), before, strict=True):
        assert torch.equal(tensor, copied)


@pytest.mark.parametrize(("op", "names"), CALLS)
def test_an_empty_batch_has_gradients_of_zero(op, names):
    inputs = draw(names, 0, 9)
    y, residual_out = OPS[op](**inputs)
    assert y.shape == residual_out.shape == (0, 9)
    gradients = torch.autograd.grad(y.sum() + residual_out.sum(), inputs.values())
    for tensor, gradient in zip(inputs.values(), gradients, strict=True):
        assert torch.equal(gradient, torch.zeros_like(tensor))


@pytest.mark.one_in(2)
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("op", OPS)
def test_compiles_whole_and_only_as_often_as_it_must(op, dynamic):
    """One graph without a break; with dynamic shapes it serves every width, eps and offset."""
    compiled = torch.compile(OPS[op], fullgraph=True, dynamic=dynamic)

    def check(rows: int, width: int, **constants: float) -> None:
        cotangents = tuple(torch.randn(2, rows, width))
        inputs = draw(PARAMETERS[op][-1], rows, width, dtype=torch.float32)
        both = (outputs_and_gradients(norm, inputs, cotangents, **constants) for norm in (compiled, OPS[op]))
        for actual, expected in zip(*both, strict=True):
            assert_close(actual, expected)

    check(5, 24, eps=EPS, weight_offset=0.0)
    with torch.compiler.set_stance("fail_on_recompile"):
        check(5, 24, eps=EPS, weight_offset=0.0)
        if dynamic:
            check(7, 33, eps=1e-5, weight_offset=1.0)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("op", OPS)
def test_a_graph_may_have_it_twice(op):
    """As between the layers of a model: the sum of the first is the residual of the second, with another eps."""

    def twice(x: Tensor, residual: Tensor, **parameters: Tensor) -> tuple[Tensor, Tensor]:
        y, residual = OPS[op](x, residual, **parameters, eps=EPS, weight_offset=1.0)
        return OPS[op](y.sin(), residual, **parameters, eps=1.0)

    inputs, cotangents = draw(PARAMETERS[op][-1], 5, 24, dtype=torch.float32), tuple(torch.randn(2, 5, 24))
    compiled = torch.compile(twice, fullgraph=True, dynamic=True)
    both = (outputs_and_gradients(function, inputs, cotangents) for function in (compiled, twice))
    for actual, expected in zip(*both, strict=True):
        assert_close(actual, expected)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_a_sum_that_nobody_stores_is_rounded_under_the_compiler(op, dtype):
    """The compiler would rather keep it in float32: the reason for `impl_torch.rows.as_stored`. Other bits come only from
    sums in another order: one in a thousand; the other sum would change one in twenty, see above."""

    def y_alone(*given: Tensor) -> Tensor:
        return OPS[op](*given)[0]

    given = draw_half(dtype, "rounded", 64, 1000)
    y = torch.compile(y_alone, fullgraph=True, dynamic=True)(*given)
    assert (y != y_alone(*given)).float().mean() < 1e-3


@pytest.mark.parametrize("cls", CLASSES)
def test_exports_with_a_dynamic_batch(cls):
    module = randomise(cls((4, 6), EPS, dtype=torch.bfloat16))
    x, residual, _ = draw_half(torch.bfloat16, "rounded", 5, 4, 6)
    batch = {0: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(module, (x[:3], residual[:3]), dynamic_shapes=(batch, batch))
    for actual, expected in zip(exported.module()(x, residual), module(x, residual), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("norm", [*OPS.values(), AddRMSNorm(8), AddLayerNorm(8)], ids=lambda norm: type(norm).__name__)
def test_a_residual_that_would_broadcast_or_promote_is_refused(norm):
    with pytest.raises(ValueError, match=r"residual has shape \[8\]; with x of shape \[3, 8\] it must be \[3, 8\]"):
        norm(torch.ones(3, 8), torch.ones(8))
    expected = "residual is torch.float32; with x of torch.bfloat16 and sum='rounded' it must be torch.bfloat16"
    with pytest.raises(TypeError, match=re.escape(expected)):
        norm(torch.ones(3, 8).bfloat16(), torch.ones(3, 8))
    with pytest.raises(TypeError, match=r"x is torch\.int64"):
        norm(torch.arange(8), torch.arange(8))


@pytest.mark.parametrize("op", OPS)
def test_a_float32_sum_has_a_float32_residual(op):
    expected = "residual is torch.float16; with x of torch.float16 and sum='float32' it must be torch.float32"
    with pytest.raises(TypeError, match=re.escape(expected)):
        OPS[op](torch.ones(3, 8).half(), torch.ones(3, 8).half(), sum="float32")
    x, residual, _ = draw(["weight"], 3, 8).values()  # float64, which has but one sum
    assert all(map(torch.equal, OPS[op](x, residual, sum="float32"), OPS[op](x, residual)))


@pytest.mark.parametrize(
    "norm",
    [
        *(lambda sum, op=op: op(torch.ones(3, 8), torch.ones(3, 8), sum=sum) for op in OPS.values()),
        *(lambda sum, cls=cls: cls(8, sum=sum) for cls in CLASSES),
    ],
)
def test_an_unknown_sum_is_refused(norm):
    with pytest.raises(ValueError, match="sum is 'whole'; it must be 'rounded', 'unrounded' or 'float32'"):
        norm(sum="whole")


@pytest.mark.parametrize("op", OPS)
def test_what_the_norm_refuses_is_refused(op):
    x, residual = torch.ones(2, 3, 8)
    with pytest.raises(ValueError, match=r"weight has shape \[1\]; with x of shape \[3, 8\] it must be \[8\]"):
        OPS[op](x, residual, torch.ones(1))
    with pytest.raises(ValueError, match="order is 'sideways'"):
        OPS[op](x, residual, order="sideways")
    cls = AddRMSNorm if op == "add_rms_norm" else AddLayerNorm
    with pytest.raises(ValueError, match=r"x has shape \[3, 8\]; it must end in the normalized shape \[3\]"):
        cls(3)(x, residual)


class Fused(Block):
    """A block whose first sum and second norm are one op."""

    def add_attention(self, x: Tensor, normed: Tensor, attn_out: Tensor) -> Tensor:
        norm, how = self.config.norm, {"eps": self.config.eps, "order": self.config.order}
        op = add_layer_norm if norm == "layer_norm" else add_rms_norm
        parameters = (self.weight("ffn_norm"), *([self.bias("ffn_norm")] if norm == "layer_norm" else []))
        self.normed, h = op(attn_out, x, *parameters, **how, weight_offset=float(self.config.weight_offset))
        return h

    def ffn_norm(self, h: Tensor) -> Tensor:
        return self.normed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_block_may_be_built_on_it(dtype):
    """The sum is rounded, as a block stores it; both kinds of norm, gradients and intermediates."""
    verdicts = judged(fault(Fused, taps=True), dtype, cases=select("pre_ln_block/*/random"))
    assert {verdict.case.id.split("/")[1] for verdict in verdicts} >= {"llama", "gpt2"}
    assert {verdict.status for verdict in verdicts} == {"pass"}
