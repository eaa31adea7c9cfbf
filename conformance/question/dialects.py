"""A dialect: the roundings that two correct implementations of one norm need not share."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from conformance.numbers import rounding
from conformance.numbers.rounding import DType

Order = Literal["either_order", "cast_then_scale", "scale_then_cast"]
Sum = Literal["", "rounded", "unrounded", "float32"]
QuantisedY = Literal["", "rounded", "unrounded"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """Where x_hat is cast, how the weight is stored, and so which dtype y has.

    order
        `cast_then_scale` rounds x_hat to x's dtype, then multiplies by the weight (Llama, T5, the first MiniMind, MLX);
        `scale_then_cast` multiplies in the compute dtype and rounds once (torch.nn, flax, Gemma, the later MiniMind);
        `either_order` where x_hat is not rounded, so that the two agree: the storage dtype is the compute dtype, or the
        op, such as BatchNorm, rounds at the end alone.
    weight_offset
        0, or 1 where the weight is stored as its distance from one (Gemma). The sum is never rounded to half precision.
    weight_dtype
        `storage` (x's dtype) or `float32`, of weight and bias, as mixed precision has it. Gemma is trained with both: an
        offset of 1 and float32 weights beside a half-precision x.
    sum
        What a norm reads that first adds a residual to x: the sum `rounded` to x's dtype, as it is returned (Hugging Face's
        blocks, vLLM's fused_add_rms_norm, Liger); `unrounded`, in the compute dtype, and rounded only where it is returned
        (FlashInfer, quack); or a sum with a `float32` residual, which is never rounded (Mamba, flash-attn). Empty where
        nothing is added, or where the storage dtype is the compute dtype.
    y
        What is quantised: y `rounded` to x's dtype, as it would be stored (vLLM, and whoever norms and then quantises), or
        `unrounded`, in the compute dtype (FlashInfer). Empty where nothing is quantised, or as for a sum.
    """

    order: Order
    weight_offset: Literal[0, 1] = 0
    weight_dtype: Literal["storage", "float32"] = "storage"
    sum: Sum = ""
    y: QuantisedY = ""

    @property
    def is_plain(self) -> bool:
        """Whether the weight is stored whole, in x's dtype."""
        return not self.weight_offset and self.weight_dtype == "storage"

    @property
    def name(self) -> str:
        """The dialect's part of a case id."""
        offset = "_offset_1" if self.weight_offset else ""
        weight = "_float32_weight" if self.weight_dtype == "float32" else ""
        sum_ = f"{self.sum}_sum_" if self.sum else ""
        y = f"{self.y}_y_" if self.y else ""
        return sum_ + y + self.order + offset + weight

    @property
    def fields(self) -> dict[str, Any]:
        """The dialect as an object in a file; `sum` only where something is added, `y` where it is quantised."""
        return {name: value for name, value in asdict(self).items() if name not in ("sum", "y") or value}

    @property
    def other_order(self) -> "Dialect":
        """The dialect with the cast on the other side of the weight; itself where there is no cast."""
        orders: dict[Order, Order] = {"cast_then_scale": "scale_then_cast", "scale_then_cast": "cast_then_scale"}
        return replace(self, order=orders.get(self.order, self.order))

    @property
    def sentence(self) -> str:
        """The dialect in words."""
        orders = {
            "either_order": "nothing is rounded before the end",
            "cast_then_scale": "x_hat is cast to x's dtype, then multiplied by the weight",
            "scale_then_cast": "x_hat is multiplied by the weight, then cast once",
        }
        offset = "; the weight is stored less one" if self.weight_offset else ""
        promotes = ", so y is float32" if self.order == "cast_then_scale" else ""
        weight = f"; the weight is float32{promotes}" if self.weight_dtype == "float32" else ""
        sums = {
            "": "",
            "rounded": "the sum is rounded to x's dtype before the norm reads it; ",
            "unrounded": "the norm reads the sum as it is before it is rounded; ",
            "float32": "the residual and the sum are float32; ",
        }
        ys = {
            "": "",
            "rounded": "; y is rounded to x's dtype before it is quantised",
            "unrounded": "; y is quantised as it was computed",
        }
        return sums[self.sum] + orders[self.order] + offset + weight + ys[self.y]

    def parameter_dtype(self, storage_dtype: str) -> str:
        """The dtype of weight and bias, and so of their gradients."""
        return storage_dtype if self.weight_dtype == "storage" else self.weight_dtype

    def residual_dtype(self, storage_dtype: DType) -> DType:
        """The dtype of a residual, and of the sum that is returned."""
        return "float32" if self.sum == "float32" else storage_dtype

    def output_dtype(self, storage_dtype: str) -> str:
        """The dtype of y: `cast_then_scale` multiplies last, so a float32 weight promotes it."""
        return self.parameter_dtype(storage_dtype) if self.order == "cast_then_scale" else storage_dtype


SINGLE = (Dialect("either_order"),)
SINGLE_VARIANTS = (Dialect("either_order", weight_offset=1),)
HALF = (Dialect("cast_then_scale"), Dialect("scale_then_cast"))
HALF_VARIANTS = (
    Dialect("cast_then_scale", weight_offset=1),
    Dialect("cast_then_scale", weight_dtype="float32"),
    Dialect("scale_then_cast", weight_offset=1),
    Dialect("scale_then_cast", weight_dtype="float32"),
    Dialect("cast_then_scale", weight_offset=1, weight_dtype="float32"),
    Dialect("scale_then_cast", weight_offset=1, weight_dtype="float32"),
)
SUMS: tuple[Sum, ...] = ("rounded", "unrounded", "float32")
SPOKEN_BY: dict[tuple[Sum, Order], str] = {
    ("rounded", "cast_then_scale"): "vLLM's fused_add_rms_norm",
    ("rounded", "scale_then_cast"): "Liger, as for Gemma",
    ("unrounded", "scale_then_cast"): "FlashInfer, quack",
    ("unrounded", "cast_then_scale"): "vLLM's layernorm_utils",
    ("float32", "scale_then_cast"): "Mamba, flash-attn",
}
"""Who has which of the functions that are called add and RMSNorm; docs/spec.md has the table, with their files."""
QUANTISED_BY: dict[tuple[Sum, QuantisedY, Order], str] = {
    ("", "rounded", "cast_then_scale"): "vLLM's rms_norm_static_fp8_quant",
    ("", "unrounded", "scale_then_cast"): "FlashInfer's rmsnorm_quant",
    ("rounded", "rounded", "cast_then_scale"): "vLLM's fused_add_rms_norm_static_fp8_quant",
    ("unrounded", "rounded", "cast_then_scale"): "vLLM's rms_norm_dynamic_per_token_quant",
    ("unrounded", "unrounded", "scale_then_cast"): "FlashInfer's fused_add_rmsnorm_quant",
}
"""The same of an RMSNorm whose output is quantised, with what is quantised of y."""
HALF_SUMS = (
    Dialect("cast_then_scale", sum="rounded"),
    Dialect("scale_then_cast", sum="rounded"),
    Dialect("scale_then_cast", sum="unrounded"),
    Dialect("cast_then_scale", sum="unrounded"),
    Dialect("scale_then_cast", sum="float32"),
)
HALF_SUM_VARIANTS = (
    Dialect("scale_then_cast", sum="rounded", weight_offset=1),
    Dialect("scale_then_cast", sum="rounded", weight_dtype="float32"),
)
GATED_BY: dict[tuple[bool, Order], str] = {
    (True, "cast_then_scale"): "Hugging Face's Qwen3-Next",
    (True, "scale_then_cast"): "fla, mamba_ssm",
    (False, "cast_then_scale"): "Hugging Face's Mamba2",
    (False, "scale_then_cast"): "mamba_ssm in Mamba2",
}
"""Who has which of the functions that are called gated RMSNorm, by whether the norm comes first, and the order."""
HALF_GATES = (*HALF, Dialect("scale_then_cast", weight_dtype="float32"))
HALF_YS = (
    Dialect("cast_then_scale", y="rounded"),
    Dialect("scale_then_cast", y="unrounded"),
    Dialect("scale_then_cast", y="rounded"),
)
HALF_SUM_YS = (
    Dialect("cast_then_scale", sum="unrounded", y="rounded"),
    Dialect("cast_then_scale", sum="rounded", y="rounded"),
    Dialect("scale_then_cast", sum="unrounded", y="unrounded"),
)
DIALECTS = SINGLE + SINGLE_VARIANTS + HALF + HALF_VARIANTS + HALF_SUMS + HALF_SUM_VARIANTS + HALF_YS + HALF_SUM_YS


def of(dtype: str, *, of_a_sum: bool = False, quantised: bool = False) -> tuple[Dialect, ...]:
    """The dialects that a storage dtype has, the plain ones first; `of_a_sum`: those of a norm that adds a residual.

    `quantised`: those of one whose y is quantised, which nobody does from float64.
    """
    if quantised:
        half = HALF_SUM_YS if of_a_sum else HALF_YS
        return half if dtype in rounding.HALF else SINGLE if dtype == "float32" else ()
    half = HALF_SUMS + HALF_SUM_VARIANTS if of_a_sum else HALF + HALF_VARIANTS
    return half if dtype in rounding.HALF else SINGLE + SINGLE_VARIANTS
