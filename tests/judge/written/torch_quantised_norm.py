"""RMSNorm whose output is quantised, with one fault each, as people write it in PyTorch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from impl_torch.quantised_norm import FORMATS, GROUPS, Format
from tests.judge.written.fault import Fault
from tests.judge.written.torch_gated_norm import normed
from tests.judge.written.torch_steps import HALF, Run, Written, honest

fault = Written("quantised_rms_norm")
NARROW = ("float32", *HALF)


def scaled(groups: Tensor, format_: Format, scaling: str, scale_ub: float | None) -> Tensor:
    """The scale of every group: [*batch, groups, 1]."""
    largest = groups.abs().amax(-1, keepdim=True)
    if scaling == "mx":
        exponent = torch.floor(torch.log2(largest)).clamp(min=-126 + format_.emax) - format_.emax
        return torch.where(largest == 0, 1.0, torch.exp2(exponent))
    bounded = largest if scale_ub is None else largest.clamp(max=scale_ub)
    return (bounded / format_.qmax).clamp(min=format_.floor)


def rounded(z: Tensor, format_: Format) -> Tensor:
    """The quotient, saturated and rounded."""
    z = z.clamp(-format_.qmax, format_.qmax)
    return (z if format_.dtype.is_floating_point else z.round()).to(format_.dtype)


def of_y(norm: Tensor, dtype: torch.dtype, y: str) -> Tensor:
    """What is quantised of the norm's output, in float32."""
    return (norm.to(dtype) if y == "rounded" else norm).float()


def quantised(
    make: Callable[..., Tensor] = of_y,
    scale_of: Callable[..., Tensor] = scaled,
    quantise: Callable[..., Tensor] = rounded,
) -> Run:
    """The whole of it, with steps of one's own."""

    def run(
        x: Tensor,
        weight: Tensor | None,
        scale: Tensor | None,
        *,
        quantised_dtype: str,
        scaling: str,
        eps: float,
        scale_ub: float | None = None,
        order: str = "",
        y: str = "",
    ) -> Any:
        format_ = FORMATS[quantised_dtype]
        wide = None if weight is None or y == "rounded" else weight.float()
        made = make(normed(x, wide if wide is not None else weight, eps=eps, order=order, dtype=x.dtype), x.dtype, y)
        groups = made.unflatten(-1, (-1, GROUPS.get(scaling, x.shape[-1])))
        divisor = scale_of(groups, format_, scaling, scale_ub) if scale is None else scale
        q = quantise(groups / divisor, format_).flatten(-2)
        return q if scale is not None else (q, divisor.squeeze(-1).float())

    return run


def written_out(x: Tensor, weight: Tensor | None, scale: Tensor | None, **asked: Any) -> Any:
    """Step by step."""
    return quantised()(x, weight, scale, **asked)


HONEST = (honest("quantised_rms_norm", written_out),)


@fault("scale_over_another_qmax", dtypes=NARROW)
def quantised_by_finfo(x: Tensor, weight: Tensor | None, scale: Tensor | None, **asked: Any) -> Any:
    """qmax of int8 is 128, the smallest number's magnitude."""

    def scale_of(groups: Tensor, format_: Format, scaling: str, scale_ub: float | None) -> Tensor:
        qmax = 128.0 if format_.dtype == torch.int8 else format_.qmax
        return scaled(groups, format_._replace(qmax=qmax) if scaling != "mx" else format_, scaling, scale_ub)

    return quantised(scale_of=scale_of)(x, weight, scale, **asked)


@fault("q_not_saturated", dtypes=NARROW)
def quantised_without_a_clamp(x: Tensor, weight: Tensor | None, scale: Tensor | None, **asked: Any) -> Any:
    """A cast, which does not saturate."""

    def quantise(z: Tensor, format_: Format) -> Tensor:
        return z.to(format_.dtype) if format_.dtype.is_floating_point else z.round().to(torch.int32).to(torch.int8)

    return quantised(quantise=quantise)(x, weight, scale, **asked)


@fault("q_truncated", dtypes=NARROW)
def int8_without_round(x: Tensor, weight: Tensor | None, scale: Tensor | None, **asked: Any) -> Any:
    """A cast to an integer, which cuts off."""
    cut = quantised(quantise=lambda z, format_: z.clamp(-format_.qmax, format_.qmax).to(format_.dtype))
    return cut(x, weight, scale, **asked)


@fault("y_not_rounded_before_quantised", dtypes=HALF)
def quantised_from_float32(x: Tensor, weight: Tensor | None, scale: Tensor | None, **asked: Any) -> Any:
    """The norm's float32 goes straight on."""
    return quantised(make=lambda norm, dtype, y: norm.float())(x, weight, scale, **asked)


@fault("maximum_of_all_rows", dtypes=NARROW)
def quantised_per_tensor(x: Tensor, weight: Tensor | None, scale: Tensor | None, **asked: Any) -> Any:
    """y.abs().max(), with no axis."""

    def scale_of(groups: Tensor, *how: Any) -> Tensor:
        largest = groups.abs().max()
        return scaled(largest.expand(groups.shape), *how)

    return quantised(scale_of=scale_of)(x, weight, scale, **asked)


@fault("maximum_of_signed_values", dtypes=NARROW)
def quantised_without_abs(x: Tensor, weight: Tensor | None, scale: Tensor | None, **asked: Any) -> Any:
    """y.amax(-1)."""
    return quantised(scale_of=lambda groups, *how: scaled(groups.clamp(min=0), *how))(x, weight, scale, **asked)


@fault("maximum_of_the_row", dtypes=NARROW)
def quantised_per_row_always(x: Tensor, weight: Tensor | None, scale: Tensor | None, **asked: Any) -> Any:
    """One maximum a row, where groups are asked for."""
    whole = quantised(scale_of=lambda g, *how: scaled(g.abs().amax((-2, -1), keepdim=True).expand(g.shape), *how))
    return whole(x, weight, scale, **asked)


@fault("scale_ub_left_out", dtypes=NARROW)
def quantised_without_bound(
    x: Tensor, weight: Tensor | None, scale: Tensor | None, *, scale_ub: Any = None, **asked: Any
) -> Any:
    """The bound is taken and not used."""
    return quantised()(x, weight, scale, **asked)


@fault("scale_in_storage_dtype", dtypes=HALF)
def quantised_with_scale_of_x(x: Tensor, weight: Tensor | None, scale: Tensor | None, **asked: Any) -> Any:
    """The scale is kept in x's dtype."""
    kept = quantised(scale_of=lambda groups, *how: scaled(groups, *how).to(x.dtype).float())
    return kept(x, weight, scale, **asked)


@fault("multiplied_by_scale", dtypes=NARROW)
def static_scale_multiplied(x: Tensor, weight: Tensor | None, scale: Tensor | None, **asked: Any) -> Any:
    """The static scale is taken for its reciprocal."""
    return quantised()(x, weight, scale if scale is None else 1 / scale, **asked)


@fault("mx_scale_of_quotient_rounded_up", dtypes=NARROW)
def mx_by_ceil(x: Tensor, weight: Tensor | None, scale: Tensor | None, **asked: Any) -> Any:
    """exp2(ceil(log2(max / qmax)))."""

    def scale_of(groups: Tensor, format_: Format, scaling: str, scale_ub: float | None) -> Tensor:
        if scaling != "mx":
            return scaled(groups, format_, scaling, scale_ub)
        largest = groups.abs().amax(-1, keepdim=True)
        return torch.where(largest == 0, 1.0, torch.exp2(torch.ceil(torch.log2(largest / format_.qmax))))

    return quantised(scale_of=scale_of)(x, weight, scale, **asked)


@fault("clamped_at_448", dtypes=NARROW)
def one_qmax_for_float8(x: Tensor, weight: Tensor | None, scale: Tensor | None, **asked: Any) -> Any:
    """q of e5m2 is clamped as e4m3fn is."""

    def quantise(z: Tensor, format_: Format) -> Tensor:
        return rounded(z, format_._replace(qmax=min(format_.qmax, 448.0)))

    return quantised(quantise=quantise)(x, weight, scale, **asked)


@fault("no_scale_floor", dtypes=NARROW)
def quantised_without_floor(x: Tensor, weight: Tensor | None, scale: Tensor | None, **asked: Any) -> Any:
    """max / qmax, and no more."""

    def scale_of(groups: Tensor, format_: Format, scaling: str, scale_ub: float | None) -> Tensor:
        return scaled(groups, format_ if scaling == "mx" else format_._replace(floor=0.0), scaling, scale_ub)

    return quantised(scale_of=scale_of)(x, weight, scale, **asked)


@fault("eps_1e-06", dtypes=NARROW)
def quantised_with_eps_of_its_own(x: Tensor, weight: Tensor | None, scale: Tensor | None, *, eps: float, **asked: Any) -> Any:
    """eps is what it is in the model at hand."""
    return quantised()(x, weight, scale, eps=1e-6, **asked)


@fault("weight_missing", dtypes=NARROW)
def quantised_without_weight(x: Tensor, weight: Tensor | None, scale: Tensor | None, **asked: Any) -> Any:
    """The weight belongs to the matrix after it."""
    return quantised()(x, None, scale, **asked)


FAULTS: tuple[Fault, ...] = tuple(fault.faults)
