"""impl_torch's norms with a quantised output: what they refuse, the gradient of the sum, and the same bits under the compiler.

What the numbers are worth is asked elsewhere, by the kit itself: see test_ports_conform.
"""

import re

import pytest
import torch

from impl_torch import QuantisedRMSNorm, add_rms_norm, quantised_add_rms_norm, quantised_rms_norm

DTYPES = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2, "int8": torch.int8}
SCALE = torch.ones(1)


@pytest.fixture(autouse=True)
def _the_same_draws_in_any_order():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("scaling", "groups"), [("per_row", 1), ("per_group_128", 2)])
def test_q_times_its_scale_is_y(dtype, scaling, groups):
    x, residual, weight = torch.randn(2, 3, 256), torch.randn(2, 3, 256), torch.rand(256)
    q, scale, s = quantised_add_rms_norm(x, residual, weight, quantised_dtype=dtype, scaling=scaling)
    y, residual_out = add_rms_norm(x, residual, weight)
    assert (q.dtype, scale.dtype, tuple(scale.shape)) == (DTYPES[dtype], torch.float32, (2, 3, groups))
    torch.testing.assert_close(s, residual_out)
    restored = q.float().unflatten(-1, (groups, -1)) * scale[..., None]
    torch.testing.assert_close(restored.flatten(start_dim=-2), y, rtol=0.13, atol=scale.max().item())


def test_a_static_scale_is_not_returned():
    q = quantised_rms_norm(torch.randn(3, 4), None, SCALE, scaling="static", quantised_dtype="int8")
    assert q.dtype == torch.int8
    assert len(quantised_add_rms_norm(torch.randn(3, 4), torch.randn(3, 4), None, SCALE, scaling="static")) == 2


@pytest.mark.parametrize(
    "how", [{"scaling": "mx"}, {"scaling": "static", "scale": 0.25, "quantised_dtype": "int8", "y": "unrounded"}]
)
def test_the_module_is_the_functions(how):
    x, residual = torch.randn(2, 3, 8, 8).bfloat16(), torch.randn(2, 3, 8, 8).bfloat16()
    norm = QuantisedRMSNorm((8, 8), dtype=torch.bfloat16, sum="unrounded", **how)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(8, 8))
    settings = {name: value for name, value in how.items() if name != "scale"}
    given = x.flatten(-2), norm.weight.flatten(), norm.scale
    expected = quantised_rms_norm(*given, **settings)
    for mine, theirs in zip(tuple_of(norm(x)), tuple_of(expected), strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine.reshape(theirs.shape).float(), theirs.float(), rtol=0, atol=0)
    expected = quantised_add_rms_norm(given[0], residual.flatten(-2), *given[1:], **settings, sum="unrounded")
    for mine, theirs in zip(norm(x, residual), expected, strict=True):
        torch.testing.assert_close(mine.reshape(theirs.shape).float(), theirs.float(), rtol=0, atol=0)
    assert set(norm.state_dict()) == {"weight", *(["scale"] if "scale" in how else [])}


def tuple_of(made):
    return made if isinstance(made, tuple) else (made,)


def test_the_sum_alone_has_a_gradient():
    x, residual = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    q, scale, residual_out = quantised_add_rms_norm(x, residual)
    assert (q.requires_grad, scale.requires_grad) == (False, False)
    [dx] = torch.autograd.grad(residual_out, x, torch.full((3, 4), 2.0))
    assert dx.tolist() == [[2.0] * 4] * 3


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"quantised_dtype": "float8"}, "quantised_dtype is 'float8'; it must be one of float8_e4m3fn,"),
        ({"scaling": "per_tensor"}, "scaling is 'per_tensor'; it must be one of static,"),
        ({"scaling": "mx", "quantised_dtype": "int8"}, "scaling is 'mx'; with a quantised_dtype of int8"),
        ({"y": "exact"}, "y is 'exact'; it must be 'rounded' or 'unrounded'"),
        ({"scaling": "static"}, "scale is missing; with scaling='static'"),
        ({"scale": SCALE}, "scale is given; with scaling='per_row'"),
        ({"scaling": "static", "scale": 0 * SCALE}, "scale is 0.0; it must be positive and finite"),
        ({"scaling": "static", "scale": -SCALE}, "scale is -1.0; it must be positive and finite"),
        ({"scaling": "static", "scale": SCALE / 0 * 0}, "scale is nan; it must be positive and finite"),
        ({"scaling": "static", "scale": SCALE.double()}, "scale is torch.float64 of shape [1]; it must be torch.float32"),
        ({"scale_ub": -1.0}, "scale_ub is -1.0; it must be positive"),
        (
            {"scaling": "per_group_128"},
            "x has shape [3, 40]; with scaling='per_group_128' its last axis must be a multiple of 128",
        ),
    ],
)
def test_what_cannot_be_quantised_is_refused(changed, words):
    arguments = {"x": torch.randn(3, 40)} | changed
    with pytest.raises(ValueError, match=re.escape(words)):
        quantised_rms_norm(**arguments)
    with pytest.raises(ValueError, match=re.escape(words)):
        quantised_add_rms_norm(residual=torch.randn(3, 40), **arguments)


@pytest.mark.parametrize(("dtype", "scaling"), [("float8_e4m3fn", "mx"), ("int8", "per_row")])
def test_compiled_it_rounds_y_where_it_is_asked_to(dtype, scaling):
    """In half precision the compiler would rather go on with float32. A power of two as a scale leaves no room for noise."""
    torch.compiler.reset()
    x, residual, weight = (8 * torch.randn(64, 64)).bfloat16(), torch.randn(64, 64).bfloat16(), torch.rand(64).bfloat16()
    how = {"quantised_dtype": dtype, "scaling": scaling}
    eager = quantised_add_rms_norm(x, residual, weight, **how)
    compiled = torch.compile(quantised_add_rms_norm, fullgraph=True)(x, residual, weight, **how)
    assert [torch.equal(*(each.float() for each in pair)) for pair in zip(eager, compiled, strict=True)][::2] == [True, True]
    torch.testing.assert_close(eager[1], compiled[1], rtol=2.0**-22, atol=0)
