"""RMSNorm whose output is quantised, with or without a residual that is added first, for PyTorch. Forward only."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from impl_torch.add_norm import added, check_residual
from impl_torch.kernels import in_triton, triton_quantised_norm
from impl_torch.rms_norm import RMSNorm, rms_norm
from impl_torch.rows import as_stored, compute_dtype, flatten_trailing

GROUPS = {"per_group_128": 128, "mx": 32}
LEAST_EXPONENT = -126  # of an MX scale that is a normal number of float32
BIAS, DIGITS = 127, 23  # of float32's exponent, and the bits below it


class Format(NamedTuple):
    """A dtype to quantise to: its largest number that is used, and the least dynamic scale."""

    dtype: torch.dtype
    qmax: float
    floor: float

    @property
    def emax(self) -> int:
        """The exponent of qmax."""
        return {448.0: 8, 57344.0: 15}[self.qmax]


FORMATS = {
    "float8_e4m3fn": Format(torch.float8_e4m3fn, 448.0, 1 / (512 * 448)),
    "float8_e5m2": Format(torch.float8_e5m2, 57344.0, 1 / (512 * 57344)),
    "int8": Format(torch.int8, 127.0, 2.0**-23),
}


def quantised_rms_norm(
    x: Float[Tensor, "*batch d"],
    weight: Float[Tensor, " d"] | None = None,
    scale: Float[Tensor, " 1"] | None = None,
    *,
    eps: float = 1e-5,
    quantised_dtype: str = "float8_e4m3fn",
    scaling: str = "per_row",
    scale_ub: float | None = None,
    order: str = "cast_then_scale",
    weight_offset: float = 0.0,
    y: str = "rounded",
    kernel: str | None = None,
) -> tuple[Tensor, Tensor] | Tensor:
    r"""RMSNorm, then quantise every row: q and its scale, whose product is y but for the rounding.

    $$ q = \mathrm{round}(\min(\max(y / \mathrm{scale}, -q_{max}), q_{max})), \qquad
       \mathrm{scale} = \max(\min(\max_j |y_j|, \mathrm{scale\_ub}) / q_{max}, \mathrm{floor}) $$

    x is [*batch, d], weight [d] or None; q is [*batch, d] in the quantised dtype: float8_e4m3fn, float8_e5m2 or int8. With
    `scaling="static"` the scale is given, float32 of shape [1], and q returned alone (vLLM's rms_norm_static_fp8_quant,
    FlashInfer's rmsnorm_quant). Else it is found, float32 of shape [*batch, groups]: `"per_row"` one for every row (vLLM's
    rms_norm_dynamic_per_token_quant), `"per_group_128"` one for every 128 features (its rms_norm_per_block_quant), `"mx"` a
    power of two for every 32, 2^(floor(log2 max) − emax), as OCP Microscaling Formats 1.0 has it.
    With `y="rounded"` y is rounded to x's dtype first, as it would be stored (vLLM); with `"unrounded"` it is not (FlashInfer).
    q has no gradient. `kernel` is as in `rms_norm`.

    Raises `ValueError`, which names the argument, for a `quantised_dtype`, `scaling` or `y` that is not known, for int8 with
    mx, for a d that groups do not divide, for a scale that is missing, given though it is found, or not one positive, finite
    float32 number (looked at on a CPU, where it costs nothing), for a `scale_ub` that is not positive, and as `rms_norm`
    does.
    """
    format_ = _check(x, scale, quantised_dtype, scaling, scale_ub, y)
    how: Any = {"eps": eps, "order": order, "weight_offset": weight_offset, "y": y}
    if in_triton(kernel, x):
        how |= {"format": format_, "scaling": scaling, "group": GROUPS.get(scaling), "scale_ub": scale_ub}
        q, found, _ = triton_quantised_norm(x, None, weight, scale, **how)
    else:
        made = _norm(x, x.dtype, weight, **how)
        q, found = _quantise(made, scale, format_, scaling, scale_ub)
    return (q, found) if scale is None else q


def quantised_add_rms_norm(
    x: Float[Tensor, "*batch d"],
    residual: Float[Tensor, "*batch d"],
    weight: Float[Tensor, " d"] | None = None,
    scale: Float[Tensor, " 1"] | None = None,
    *,
    eps: float = 1e-5,
    quantised_dtype: str = "float8_e4m3fn",
    scaling: str = "per_row",
    scale_ub: float | None = None,
    order: str = "cast_then_scale",
    weight_offset: float = 0.0,
    sum: str = "rounded",
    y: str = "rounded",
    kernel: str | None = None,
) -> tuple[Tensor, Tensor, Tensor] | tuple[Tensor, Tensor]:
    r"""Add the residual to x; return the quantised RMSNorm of the sum, its scale unless it is given, and the sum.

    `sum` is as in `add_rms_norm`, all else, and what is raised, as there and in `quantised_rms_norm`. vLLM's
    rms_norm_dynamic_per_token_quant with a residual has `sum="unrounded"`, its fused_add_rms_norm_static_fp8_quant `"rounded"`.
    """
    format_ = _check(x, scale, quantised_dtype, scaling, scale_ub, y)
    how: Any = {"eps": eps, "order": order, "weight_offset": weight_offset, "y": y}
    if in_triton(kernel, x):
        check_residual(x, residual, sum)
        how |= {"format": format_, "scaling": scaling, "group": GROUPS.get(scaling), "scale_ub": scale_ub, "sum": sum}
        q, found, residual_out = triton_quantised_norm(x, residual, weight, scale, **how)
    else:
        s, residual_out = added(x, residual, sum)
        made = _norm(s, x.dtype, weight, **how)
        q, found = _quantise(made, scale, format_, scaling, scale_ub)
    return (q, found, residual_out) if scale is None else (q, residual_out)


class QuantisedRMSNorm(RMSNorm):
    """`quantised_rms_norm` over the trailing axes `normalized_shape`, or with a residual `quantised_add_rms_norm`.

    It takes what `RMSNorm` takes but groups of features, and what the functions take; a static `scale` is a number, and becomes
    a buffer.
    """

    scale: Tensor | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        quantised_dtype: str = "float8_e4m3fn",
        scaling: str = "per_row",
        scale: float | None = None,
        scale_ub: float | None = None,
        order: str = "cast_then_scale",
        weight_offset: float = 0.0,
        sum: str = "rounded",
        y: str = "rounded",
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype, order=order, weight_offset=weight_offset)
        self.quantised_dtype = quantised_dtype
        self.scaling = scaling
        self.scale_ub = scale_ub
        self.sum = sum
        self.y = y
        number = None if scale is None else torch.tensor([scale], dtype=torch.float32, device=device)
        self.register_buffer("scale", number)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - it returns what the functions return
        self, x: Tensor, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """What the functions return, of x and the residual of shape [*batch, *normalized_shape]; a scale is of the rows.

        Raises as the functions do.
        """
        rows = flatten_trailing(x, self.normalized_shape)
        weight = None if self.weight is None else self.weight.reshape(-1)
        how: Any = {"eps": self.eps, "order": self.order, "weight_offset": self.weight_offset, "y": self.y}
        how |= {"quantised_dtype": self.quantised_dtype, "scaling": self.scaling, "scale_ub": self.scale_ub}
        if residual is None:
            made = quantised_rms_norm(rows, weight, self.scale, **how)
            return made.reshape(x.shape) if isinstance(made, Tensor) else (made[0].reshape(x.shape), made[1])
        others = flatten_trailing(residual, self.normalized_shape)
        q, *found, residual_out = quantised_add_rms_norm(rows, others, weight, self.scale, **how, sum=self.sum)
        return q.reshape(x.shape), *found, residual_out.reshape(x.shape)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, quantised_dtype={self.quantised_dtype!r}, scaling={self.scaling!r}"


def _norm(x: Tensor, dtype: torch.dtype, weight: Tensor | None, eps: float, order: str, weight_offset: float, y: str) -> Tensor:
    """RMSNorm, as it is quantised: rounded to the dtype that y would be stored in, or not."""
    settings: Any = {"eps": eps, "order": order, "weight_offset": weight_offset, "kernel": "torch"}
    if y == "rounded":
        return as_stored(rms_norm(x, weight, **settings, dtype=dtype))
    wide = compute_dtype(x)
    if order == "cast_then_scale":  # x_hat is still cast; a wide weight then promotes y
        weight = None if weight is None else weight.to(wide)
    else:
        dtype = wide
    return rms_norm(x, weight, **settings, dtype=dtype)


def _quantise(y: Tensor, scale: Tensor | None, format_: Format, scaling: str, scale_ub: float | None) -> tuple[Tensor, Tensor]:
    """q, [*batch, d], and its scale, [*batch, groups]."""
    size = GROUPS.get(scaling, y.shape[-1])
    groups = y.detach().to(torch.float32).unflatten(-1, (y.shape[-1] // size, size))  # *batch groups size
    divisor = _dynamic_scale(groups, format_, scaling, scale_ub) if scale is None else scale  # *batch groups 1
    z = (groups / divisor).clamp(-format_.qmax, format_.qmax).flatten(start_dim=-2)  # *batch d
    q = (z if format_.dtype.is_floating_point else z.round()).to(format_.dtype)
    return q, divisor.squeeze(-1)


def _dynamic_scale(groups: Tensor, format_: Format, scaling: str, scale_ub: float | None) -> Tensor:
    """What brings the largest number of every group to qmax, or near to it: [*batch, groups, 1]."""
    largest = groups.abs().amax(dim=-1, keepdim=True)  # *batch groups 1
    if scaling == "mx":
        exponent = (largest.view(torch.int32) >> DIGITS) - BIAS - format_.emax  # floor(log2(largest)) - emax
        powers = ((exponent.clamp(min=LEAST_EXPONENT) + BIAS) << DIGITS).view(torch.float32)
        return torch.where(largest == 0, 1.0, powers)  # the standard leaves a block of zeros open
    bounded = largest if scale_ub is None else largest.clamp(max=scale_ub)
    return (bounded / format_.qmax).clamp(min=format_.floor)


def _check(x: Tensor, scale: Tensor | None, quantised_dtype: str, scaling: str, scale_ub: float | None, y: str) -> Format:
    """The format that is quantised to. Raises `ValueError` unless y can be quantised so."""
    if quantised_dtype not in FORMATS:
        raise ValueError(f"quantised_dtype is {quantised_dtype!r}; it must be one of {', '.join(FORMATS)}")
    scalings = ("static", "per_row", *GROUPS)
    if scaling not in scalings:
        raise ValueError(f"scaling is {scaling!r}; it must be one of {', '.join(scalings)}")
    if scaling == "mx" and quantised_dtype == "int8":
        raise ValueError("scaling is 'mx'; with a quantised_dtype of int8 it must be another")
    if y not in ("rounded", "unrounded"):
        raise ValueError(f"y is {y!r}; it must be 'rounded' or 'unrounded'")
    if (scale is None) == (scaling == "static"):
        raise ValueError(f"scale is {'missing' if scale is None else 'given'}; with scaling={scaling!r} it must be otherwise")
    if scale is not None and (scale.shape != (1,) or scale.dtype != torch.float32):
        raise ValueError(f"scale is {scale.dtype} of shape {list(scale.shape)}; it must be torch.float32 of shape [1]")
    at_hand = scale if scale is not None and scale.is_cpu and not torch.compiler.is_compiling() else None
    if at_hand is not None and not 0 < at_hand.item() < float("inf"):
        raise ValueError(f"scale is {at_hand.item()}; it must be positive and finite")
    if scale_ub is not None and not (0 < scale_ub < float("inf") and scaling in ("per_row", "per_group_128")):
        raise ValueError(f"scale_ub is {scale_ub}; it must be positive, and scaling 'per_row' or 'per_group_128'")
    size = GROUPS.get(scaling, 1)
    if x.ndim and x.shape[-1] % size:
        raise ValueError(f"x has shape {list(x.shape)}; with scaling={scaling!r} its last axis must be a multiple of {size}")
    return FORMATS[quantised_dtype]
