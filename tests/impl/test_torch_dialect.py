"""What impl_torch must hold where torch itself does not: its dialect under torch.compile, float32 sums in half precision."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from conformance.judging.compare import error_ratio
from conformance.ops.cases import select
from conformance.ops.golden import golden
from impl_torch import layer_norm, rms_norm

HALF = [torch.bfloat16, torch.float16]
WIDTHS = (33, 256, 1000, 4096)  # with and without a remainder after whole vectors
EPS = 1e-5


def plain_cast(x: Tensor, weight: Tensor) -> Tensor:
    """Hugging Face's LlamaRMSNorm: cast_then_scale by a cast in the source."""
    x_hat = x.float()
    x_hat = x_hat * torch.rsqrt(x_hat.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * x_hat.to(x.dtype)


def our_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return rms_norm(x, weight, eps=EPS)


def our_layer_norm(x: Tensor, weight: Tensor) -> Tensor:
    return layer_norm(x, weight, weight, eps=EPS, order="cast_then_scale")


def inputs(dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw x and a weight of every width; no weight is a power of two, which would hide the cast order."""
    random = torch.Generator().manual_seed(0)
    for width in WIDTHS:
        x, weight = torch.randn(64, width, generator=random), torch.rand(width, generator=random)
        yield x.to(dtype), (17 / 16 + 14 / 16 * weight).to(dtype)


def shares_changed_by_the_compiler(norm: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> list[float]:
    """The share of elements, for every width, that torch.compile with its default options gives other bits."""
    torch.compiler.reset()
    compiled = torch.compile(norm, dynamic=True)
    shares = [(compiled(x, weight) != norm(x, weight)).float().mean().item() for x, weight in inputs(dtype)]
    torch.compiler.reset()
    return shares


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_in_eager_mode_cast_then_scale_is_a_plain_cast(dtype):
    assert all(torch.equal(our_rms_norm(x, weight), plain_cast(x, weight)) for x, weight in inputs(dtype))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("norm", [our_rms_norm, our_layer_norm])
def test_cast_then_scale_holds_under_the_compiler(norm, dtype):
    """Other bits come only from sums in another order, which move x_hat by a few of its 2⁻²⁴, now and then over the
    middle between two numbers of the dtype. In float16 those are 2⁻¹¹ of x_hat apart or more: one in a thousand."""
    assert max(shares_changed_by_the_compiler(norm, dtype)) < 1e-3


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_plain_cast_does_not(dtype):
    """The reason for `impl_torch.rows.round_to`."""
    share = min(shares_changed_by_the_compiler(plain_cast, dtype))
    assert share > 0.1, (
        f"torch {torch.__version__} compiles a cast to {dtype} as it stands, but for {share:.2%} of the elements. "
        "If that is its default from now on, round_to has served its time: `x.to(dtype)` is enough."
    )


def test_parameter_gradients_are_summed_in_float32():
    """On the CPU torch's own LayerNorm sums them in bfloat16: over 8192 rows, hundreds of times too far off."""
    [case] = select("layer_norm/scale_then_cast/bfloat16/rows_8192")
    expected = golden(case)
    given = {name: torch.from_numpy(array.astype(np.float32)).bfloat16() for name, array in expected.inputs.items()}

    def ratios(norm: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[float]:
        parameters = [given[name].clone().requires_grad_() for name in ("weight", "bias")]
        gradients = torch.autograd.grad(norm(given["x"], *parameters), parameters, given["dy"])
        named = zip(("dweight", "dbias"), gradients, strict=True)
        return [error_ratio(expected.outputs[name], gradient.double().numpy()) for name, gradient in named]

    ours = ratios(lambda x, weight, bias: layer_norm(x, weight, bias, eps=case.eps))
    torchs = ratios(lambda x, weight, bias: torch.nn.functional.layer_norm(x, weight.shape, weight, bias, case.eps))
    assert max(ours) <= 0.9
    assert min(torchs) > 10, f"torch {torch.__version__} has learned to sum in float32: ratios {torchs}"
