"""impl_torch as PyTorch code: modules that can stand in for torch.nn's, functions at home under every transform.

What the numbers are worth is asked elsewhere, by the kit itself: see test_ports_conform.
"""

import copy
import inspect
import pickle
import re
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from impl_torch import LayerNorm, RMSNorm, layer_norm, rms_norm

OPS = {"rms_norm": rms_norm, "layer_norm": layer_norm}
PARAMETERS = {"rms_norm": [[], ["weight"]], "layer_norm": [[], ["weight"], ["bias"], ["weight", "bias"]]}
CALLS = [(op, names) for op, choices in PARAMETERS.items() for names in choices]

TWINS = {RMSNorm: nn.RMSNorm, LayerNorm: nn.LayerNorm}
MODULES = [
    (RMSNorm, {}),
    (RMSNorm, {"elementwise_affine": False}),
    (LayerNorm, {}),
    (LayerNorm, {"bias": False}),
    (LayerNorm, {"elementwise_affine": False}),
]
EPS = 1e-3  # far from every default

# Two implementations in float32, over rows of 24 values near one: some dozens of roundings apart, of the largest value.
NOISE = 64 * 2.0**-24

LAYOUTS = {
    "contiguous": lambda x: x,
    "permuted": lambda x: x.transpose(-1, 0).contiguous().transpose(-1, 0),
    "sliced": lambda x: nn.functional.pad(x, (3, 4))[..., 3:-4],
    "strided": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "expanded": lambda x: x[:1].expand(x.shape),
}


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


def twins(cls: type[nn.Module], *args, **kwargs) -> tuple[nn.Module, nn.Module]:
    """Build one of ours and torch's, with equal parameters."""
    ours, torchs = cls(*args, **kwargs), randomise(TWINS[cls](*args, **kwargs))
    ours.load_state_dict(torchs.state_dict())
    return ours, torchs


def draw(names: list[str], *shape: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Draw x and the parameters named, all to be differentiated."""
    shapes = {"x": shape} | {name: shape[-1:] for name in names}
    return {name: torch.randn(shape, dtype=dtype, requires_grad=True) for name, shape in shapes.items()}


def plain(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, centre: bool, weight_offset=0.0) -> Tensor:
    """The definition, its derivatives left to autograd."""
    x = x - x.mean(dim=-1, keepdim=True) if centre else x
    y = x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + EPS)
    y = y if weight is None else y * (weight + weight_offset)
    return y if bias is None else y + bias


def assert_close(actual: Tensor, expected: Tensor, noise: float = NOISE) -> None:
    """Compare dtypes and shapes, then values, to a share of the largest."""
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=noise * scale)


def outputs_and_gradients(module: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    leaves = [x.requires_grad_(), *module.parameters()]
    y = module(x)
    return [y, *torch.autograd.grad(y, leaves, dy)]


@pytest.mark.parametrize("cls", TWINS)
def test_the_constructor_takes_what_torchs_takes_in_the_same_places(cls):
    ours, torchs = (list(inspect.signature(norm).parameters.values()) for norm in (cls, TWINS[cls]))
    extra = ours[len(torchs) :]
    assert [p.name for p in ours[: len(torchs)]] == [p.name for p in torchs]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in extra)


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (RMSNorm, (8, EPS, True, "meta", torch.bfloat16)),
        (RMSNorm, ((2, 3), EPS, False, "cpu", torch.float64)),
        (LayerNorm, (8, EPS, True, True, "meta", torch.bfloat16)),
        (LayerNorm, ([2, 3], EPS, True, False, "cpu", torch.float64)),
        (LayerNorm, (torch.Size([2, 3]), EPS, False, True)),
    ],
    ids=str,
)
def test_positional_arguments_mean_what_they_mean_to_torch(cls, arguments):
    ours, torchs = cls(*arguments), TWINS[cls](*arguments)
    for name in ("normalized_shape", "eps", "elementwise_affine"):
        assert getattr(ours, name) == getattr(torchs, name)
    for name in ("weight", "bias"):
        a, b = getattr(ours, name, None), getattr(torchs, name, None)
        assert (a is None) == (b is None)
        assert a is None or (a.shape, a.dtype, a.device, a.requires_grad) == (b.shape, b.dtype, b.device, b.requires_grad)


@pytest.mark.parametrize(("cls", "kwargs"), MODULES)
@pytest.mark.parametrize("shape", [8, (2, 3)], ids=str)
def test_state_dicts_load_both_ways(cls, kwargs, shape):
    ours, torchs = cls(shape, **kwargs), TWINS[cls](shape, **kwargs)
    for source, target in [(torchs, ours), (ours, torchs)]:
        target.load_state_dict(randomise(source).state_dict(), strict=True)
        torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("cls", "kwargs"), MODULES)
@pytest.mark.parametrize("shape", [24, (24,), (4, 6), (3, 4, 2)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_and_gradients_are_torchs(cls, kwargs, shape, layout):
    ours, torchs = twins(cls, shape, EPS, **kwargs)
    x, dy = (LAYOUTS[layout](torch.randn(5, 2, *ours.normalized_shape)) for _ in range(2))
    for actual, expected in zip(outputs_and_gradients(ours, x, dy), outputs_and_gradients(torchs, x, dy), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("cls", TWINS)
def test_weight_offset_is_added_to_the_stored_weight(cls):
    """Equal only if it joins forward and backward: dx depends on the effective weight, dweight does not."""
    ours, torchs = twins(cls, 24, EPS)
    stored_less_one = cls(24, EPS, weight_offset=1.0)
    stored_less_one.load_state_dict(ours.state_dict() | {"weight": ours.weight - 1})
    x, dy = torch.randn(2, 5, 24)
    pairs = zip(outputs_and_gradients(stored_less_one, x, dy), outputs_and_gradients(torchs, x, dy), strict=True)
    for actual, expected in pairs:
        assert_close(actual, expected)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("cls", TWINS)
def test_reset_parameters_makes_the_effective_weight_one(cls, offset):
    module = cls((2, 3), weight_offset=offset)
    fresh = copy.deepcopy(module.state_dict())
    randomise(module).reset_parameters()
    torch.testing.assert_close(module.state_dict(), fresh, rtol=0, atol=0)
    assert torch.all(module.weight + offset == 1)
    assert cls is RMSNorm or not module.bias.any()


@pytest.mark.parametrize("cls", TWINS)
def test_repr_names_what_sets_it_apart(cls):
    text = repr(cls((2, 3), EPS, False, order="scale_then_cast"))
    for fact in (f"{cls.__name__}((2, 3)", "eps=0.001", "elementwise_affine=False", "order='scale_then_cast'"):
        assert fact in text


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
@pytest.mark.parametrize("cls", TWINS)
def test_a_copy_is_equal_and_independent(cls, copied):
    module = randomise(cls((2, 3), EPS, order="scale_then_cast", weight_offset=1.0))
    twin, x = copied(module), torch.randn(4, 2, 3).bfloat16()
    assert repr(twin) == repr(module)
    y = module(x)
    assert torch.equal(twin(x), y)
    randomise(module)
    assert torch.equal(twin(x), y)


@pytest.mark.parametrize("norm", [*OPS.values(), *(lambda x, order, cls=cls: cls(8, order=order)(x) for cls in TWINS)])
def test_an_unknown_order_is_refused(norm):
    with pytest.raises(ValueError, match="order is 'cast'; it must be 'cast_then_scale' or 'scale_then_cast'"):
        norm(torch.randn(3, 8), order="cast")


@pytest.mark.parametrize("shape", [(4, 3), (3, 2), (3,), (2, 3, 1)], ids=str)
@pytest.mark.parametrize("cls", TWINS)
def test_a_wrong_trailing_shape_is_refused(cls, shape):
    """Those that broadcasting would let through among them."""
    message = f"x has shape {list(shape)}; it must end in the normalized shape [2, 3]"
    with pytest.raises(ValueError, match=re.escape(message)):
        cls((2, 3))(torch.randn(shape))


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(7,), (2, 3, 5)], ids=str)
@pytest.mark.parametrize(("op", "names"), CALLS)
def test_first_and_second_derivatives_are_those_of_finite_differences(op, names, shape, offset):
    inputs = draw(names, *shape)

    def function(*tensors: Tensor) -> Tensor:
        return OPS[op](**dict(zip(inputs, tensors, strict=True)), eps=EPS, weight_offset=offset)

    assert gradcheck(function, tuple(inputs.values()), check_batched_grad=True)
    assert gradgradcheck(function, tuple(inputs.values()))


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(("op", "names"), CALLS)
def test_a_double_backward_is_that_of_the_plain_formula(op, names, offset):
    inputs = draw(names, 2, 3, 9)

    def second(y: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(y.pow(3).sum(), inputs.values(), create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), inputs.values())

    ours = second(OPS[op](**inputs, eps=EPS, weight_offset=offset))
    autograds = second(plain(**inputs, centre=op == "layer_norm", weight_offset=offset))
    for actual, expected in zip(ours, autograds, strict=True):
        assert_close(actual, expected, noise=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mapped", [["x"], ["weight"], ["x", "weight"]], ids="+".join)
@pytest.mark.parametrize("op", OPS)
def test_vmap_is_a_loop(op, mapped, dtype):
    tensors = {"x": torch.randn(4, 2, 9).to(dtype), "weight": torch.randn(4, 9).to(dtype)}
    rows = [{name: tensor[i if name in mapped else 0] for name, tensor in tensors.items()} for i in range(4)]
    batch = {name: tensor if name in mapped else tensor[0] for name, tensor in tensors.items()}
    axes = tuple(0 if name in mapped else None for name in batch)
    looped = torch.stack([OPS[op](**row) for row in rows])
    assert torch.equal(torch.func.vmap(OPS[op], in_dims=axes)(*batch.values()), looped)


@pytest.mark.parametrize("op", OPS)
def test_per_sample_gradients_are_a_loop(op):
    """torch.func.vmap over torch.func.grad, with the weight shared: no row's dweight may reach another's."""
    x, weight = torch.randn(4, 3, 9), torch.randn(9)
    gradients = torch.func.grad(lambda weight, x: OPS[op](x, weight).pow(3).sum(), argnums=(0, 1))
    together = torch.func.vmap(gradients, in_dims=(None, 0))(weight, x)
    looped = [torch.stack(gradient) for gradient in zip(*(gradients(weight, row) for row in x), strict=True)]
    for actual, expected in zip(together, looped, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("order", ["cast_then_scale", "scale_then_cast"])
@pytest.mark.parametrize("cls", TWINS)
def test_autocast_changes_nothing(cls, order):
    """The dtypes of x and the weight decide, as everywhere: a float32 weight, as autocast leaves it, promotes the y of
    cast_then_scale to float32, while scale_then_cast returns the bfloat16 that torch.nn's norms return."""
    module = randomise(cls(24, order=order))
    x = torch.randn(5, 24).bfloat16()
    dy = torch.randn(5, 24).to(torch.float32 if order == "cast_then_scale" else torch.bfloat16)
    outside = outputs_and_gradients(module, x, dy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = outputs_and_gradients(module, x, dy)
    assert [tensor.dtype for tensor in inside[:3]] == [dy.dtype, torch.bfloat16, torch.float32]
    for actual, expected in zip(inside, outside, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize(("op", "names"), CALLS)
def test_an_empty_batch_has_gradients_of_zero(op, names):
    inputs = draw(names, 0, 9)
    y = OPS[op](**inputs)
    assert y.shape == (0, 9)
    for tensor, gradient in zip(inputs.values(), torch.autograd.grad(y.sum(), inputs.values()), strict=True):
        assert torch.equal(gradient, torch.zeros_like(tensor))


@pytest.mark.parametrize("op", OPS)
def test_gradients_do_not_depend_on_which_are_asked(op):
    tensors = {name: tensor.detach() for name, tensor in draw(PARAMETERS[op][-1], 3, 9).items()}

    def gradients(asked: tuple[str, ...]) -> dict[str, Tensor]:
        inputs = {name: tensor.clone().requires_grad_(name in asked) for name, tensor in tensors.items()}
        OPS[op](**inputs).pow(3).sum().backward()
        return {name: tensor.grad for name, tensor in inputs.items() if tensor.grad is not None}

    full = gradients(tuple(tensors))
    for asked in (asked for count in range(1, len(tensors)) for asked in combinations(tensors, count)):
        assert gradients(asked).keys() == set(asked)
        torch.testing.assert_close(gradients(asked), {name: full[name] for name in asked}, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_no_input_is_written_to(op, dtype):
    """In these dtypes `.to(compute)` is the tensor itself."""
    inputs, dy = draw(PARAMETERS[op][-1], 3, 9, dtype=dtype), torch.randn(3, 9, dtype=dtype)
    given = [*inputs.values(), dy]
    before = [tensor.detach().clone() for tensor in given]
    torch.autograd.grad(OPS[op](**inputs, weight_offset=1.0), inputs.values(), dy)
    for tensor, copied in zip(given, before, strict=True):
        assert torch.equal(tensor, copied)
        assert tensor._version == 0


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("op", OPS)
def test_compiles_whole_and_only_as_often_as_it_must(op, dynamic):
    """One graph without a break; with dynamic shapes it serves every width, eps and offset."""
    compiled = torch.compile(OPS[op], fullgraph=True, dynamic=dynamic)

    def check(rows: int, width: int, **constants: float) -> None:
        dy = torch.randn(rows, width)
        inputs = draw(PARAMETERS[op][-1], rows, width, dtype=torch.float32)
        both = [norm(**inputs, **constants) for norm in (compiled, OPS[op])]
        actual, expected = ([y, *torch.autograd.grad(y, inputs.values(), dy)] for y in both)
        for a, b in zip(actual, expected, strict=True):
            assert_close(a, b)

    check(5, 24, eps=EPS, weight_offset=0.0)
    with torch.compiler.set_stance("fail_on_recompile"):
        check(5, 24, eps=EPS, weight_offset=0.0)
        if dynamic:
            check(7, 33, eps=1e-5, weight_offset=1.0)


@pytest.mark.parametrize("cls", TWINS)
def test_exports_with_a_dynamic_batch(cls):
    module = randomise(cls((4, 6), EPS, dtype=torch.bfloat16))
    exported = torch.export.export(module, (torch.randn(3, 4, 6).bfloat16(),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    x = torch.randn(5, 4, 6).bfloat16()
    assert torch.equal(exported.module()(x), module(x))


@pytest.mark.parametrize("function", [rms_norm, layer_norm], ids=lambda function: function.__name__)
def test_what_would_broadcast_or_truncate_is_refused(function):
    with pytest.raises(ValueError, match=r"weight has shape \[1\]; with x of shape \[3, 8\] it must be \[8\]"):
        function(torch.ones(3, 8), torch.ones(1))
    with pytest.raises(TypeError, match=r"x is torch\.int64"):
        function(torch.arange(8))


def test_a_module_refuses_an_unknown_order_when_it_is_made():
    with pytest.raises(ValueError, match="order is 'sideways'"):
        RMSNorm(8, order="sideways")
