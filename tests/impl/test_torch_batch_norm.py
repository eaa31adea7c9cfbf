"""impl_torch.BatchNorm beside torch.nn.BatchNorm1d, step after step, and its function under autograd and the compiler."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from impl_torch import BatchNorm, batch_norm

EPS = 1e-3  # far from the default
ROWS, D = 6, 5
NOISE = {torch.float32: 64 * 2.0**-24, torch.float64: 64 * 2.0**-53}


@pytest.fixture(autouse=True)
def _the_same_draws_in_any_order():
    torch.manual_seed(0)


def twins(**arguments) -> tuple[BatchNorm, nn.BatchNorm1d]:
    """One of ours and torch's, with equal parameters and running statistics, which are neither zeros nor ones."""
    ours, torchs = BatchNorm(D, EPS, **arguments), nn.BatchNorm1d(D, EPS, **arguments)
    for tensor in (torchs.weight, torchs.bias, torchs.running_mean, torchs.running_var):
        nn.init.uniform_(tensor, 0.5, 2.0)
    ours.load_state_dict(torchs.state_dict(), strict=True)
    return ours, torchs


def turned(module: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """torch's module on an x whose features come last."""
    return module(x.movedim(-1, 1)).movedim(1, -1)


def assert_same(ours: nn.Module, torchs: nn.Module) -> None:
    """The running statistics, how many batches they are of, and the parameters."""
    a, b = ours.state_dict(), torchs.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        noise = NOISE.get(a[name].dtype, 0.0)
        torch.testing.assert_close(a[name], b[name], rtol=noise, atol=noise)


def test_state_dicts_load_both_ways():
    ours, torchs = twins()
    ours(torch.randn(ROWS, D))
    torchs.load_state_dict(ours.state_dict(), strict=True)
    assert_same(ours, torchs)
    assert torchs.num_batches_tracked == 1


@pytest.mark.parametrize("dtype", NOISE)
@pytest.mark.parametrize("momentum", [0.1, 0.7])
@pytest.mark.parametrize("shape", [(ROWS, D), (2, 3, D)], ids=str)
def test_it_trains_and_evaluates_as_torchs_does(shape, momentum, dtype):
    """Three steps of descent, then evaluation: outputs, gradients, and what is kept."""
    ours, torchs = twins(momentum=momentum, dtype=dtype)
    for step in range(4):
        for module in (ours, torchs):
            module.train(step < 3)
        x, dy = (torch.randn(shape, dtype=dtype) for _ in range(2))
        results = []
        for module, y_of in ((ours, ours), (torchs, lambda x: turned(torchs, x))):
            leaf = x.clone().requires_grad_()
            y = y_of(leaf)
            gradients = torch.autograd.grad(y, [leaf, *module.parameters()], dy)
            with torch.no_grad():
                for parameter, gradient in zip(module.parameters(), gradients[1:], strict=True):
                    parameter -= 0.1 * gradient
            results.append([y, *gradients])
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=NOISE[dtype] * expected.abs().max().item())
        assert_same(ours, torchs)
    assert ours.get_buffer("num_batches_tracked") == 3


def test_evaluation_moves_nothing_and_has_no_batch():
    """A row's answer is the same whatever else is in the batch; one row is enough."""
    ours, _ = twins()
    ours.eval()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    x = torch.randn(ROWS, D)
    torch.testing.assert_close(ours(x)[:1], ours(x[:1]), rtol=0, atol=0)
    torch.testing.assert_close(ours.state_dict(), before, rtol=0, atol=0)


def test_the_biased_variance_runs_if_it_is_asked_for():
    x, old = torch.randn(ROWS, D), (torch.zeros(D), torch.ones(D))
    kept = {unbiased: batch_norm(x, None, None, *old, training=True, momentum=1.0, unbiased=unbiased) for unbiased in (0, 1)}
    for unbiased, (_, mean, var) in kept.items():
        torch.testing.assert_close(mean, x.mean(0))
        torch.testing.assert_close(var, x.var(0, correction=unbiased))
    assert torch.equal(kept[0][0], kept[1][0])  # y is of the biased one either way


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("names", [[], ["weight"], ["bias"], ["weight", "bias"]], ids="+".join)
def test_first_and_second_derivatives_are_those_of_finite_differences(names, training):
    x = torch.randn(2, 3, D, dtype=torch.float64, requires_grad=True)
    parameters = {name: torch.randn(D, dtype=torch.float64, requires_grad=True) for name in names}
    running = torch.randn(D, dtype=torch.float64), torch.rand(D, dtype=torch.float64) + 0.5

    def function(x: Tensor, *given: Tensor) -> Tensor:
        present = dict(zip(names, given, strict=True))
        made = batch_norm(x, present.get("weight"), present.get("bias"), *running, eps=EPS, training=training)
        return made[0] if isinstance(made, tuple) else made

    assert gradcheck(function, (x, *parameters.values()))
    assert gradgradcheck(function, (x, *parameters.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_given_is_not_written_to_and_what_runs_is_no_function_of_x(dtype):
    x = torch.randn(ROWS, D).to(dtype).requires_grad_()
    given = [torch.rand(D) + 0.5 for _ in range(4)]
    y, mean, var = batch_norm(x, *given, training=True)
    assert (y.dtype, mean.dtype, var.dtype) == (dtype, torch.float32, torch.float32)
    assert y.requires_grad
    assert not any(each.requires_grad for each in (mean, var))
    assert all(tensor._version == 0 for tensor in (x, *given))


def test_compiled_it_trains_as_it_does_in_eager_mode():
    """One graph, that writes the module's own buffers."""
    torch.compiler.reset()
    ours, torchs = twins()
    compiled = torch.compile(ours, fullgraph=True)
    for step in range(3):
        for module in (ours, torchs):
            module.train(step < 2)
        x = torch.randn(ROWS, D)
        torch.testing.assert_close(compiled(x), torchs(x))
        assert_same(ours, torchs)
    torch.compiler.reset()


@pytest.mark.parametrize(("rows", "unbiased"), [(1, True), (0, True), (0, False)])
def test_too_few_rows_to_train_on_are_refused(rows, unbiased):
    with pytest.raises(ValueError, match=f"{rows} rows are too few to train on with unbiased={unbiased}"):
        BatchNorm(D, unbiased=unbiased)(torch.randn(rows, D))


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_what_would_broadcast_or_truncate_is_refused(name):
    given = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), torch.ones(D)) | {name: torch.ones(1)}
    with pytest.raises(ValueError, match=rf"{name} has shape \[1\]"):
        batch_norm(torch.ones(ROWS, D), **given)
    with pytest.raises(TypeError, match=r"x is torch\.int64"):
        batch_norm(torch.ones(ROWS, D).long(), **given)
