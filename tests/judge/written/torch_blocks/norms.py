"""Mistakes in a block's norms."""

from dataclasses import replace

import torch
from torch import Tensor

from conformance.numbers.rounding import HALF
from reference import BlockConfig
from tests.judge.written.torch_blocks.block import Block, compute_dtype, fault


class EpsOutsideTheRoot(Block):
    """eps is added to the root."""

    def rescale(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(dim=-1, keepdim=True).sqrt() + self.config.eps)


class EpsMissing(Block):
    """The norms have no eps."""

    def rescale(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True))


class EpsOf1e6(Block):
    """eps is the default of the class, 1e-6: the config's is never passed on."""

    def rescale(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6)


class EpsClamps(Block):
    """eps is the least that the mean square may be."""

    def rescale(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True).clamp(min=self.config.eps))


class DividesByNMinusOne(Block):
    """The variance is that of a sample, as torch.var's is."""

    def rescale(self, x: Tensor) -> Tensor:
        mean_square = x.square().sum(dim=-1, keepdim=True) / (x.shape[-1] - 1)
        return x * torch.rsqrt(mean_square + self.config.eps)


class SumForMean(Block):
    """A row is divided by its length, not by its root mean square."""

    def rescale(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + self.config.eps)


class DividesByTheMeanSquare(Block):
    """The root is missing."""

    def rescale(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(dim=-1, keepdim=True) + self.config.eps)


class MeanOverPositions(Block):
    """The mean is over the positions: dim=1 for dim=-1."""

    def normalise(self, x: Tensor) -> Tensor:
        if self.config.norm == "layer_norm":
            x = x - x.mean(dim=1, keepdim=True)
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + self.config.eps)


class LayerNormForRmsNorm(Block):
    """The norms are centred where they should not be."""

    def normalise(self, x: Tensor) -> Tensor:
        return self.rescale(x - x.mean(dim=-1, keepdim=True))


class RmsNormForLayerNorm(Block):
    """The norms are not centred where they should be."""

    def normalise(self, x: Tensor) -> Tensor:
        return self.rescale(x)


class EveryStepInXDtype(Block):
    """The norms lack the cast to float32."""

    def norm(self, x: Tensor, name: str) -> Tensor:
        return self.scale_and_shift(self.normalise(x), name, x.dtype)


class RstdInBfloat16(Block):
    """rstd is stored in bfloat16."""

    def rescale(self, x: Tensor) -> Tensor:
        rstd = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.config.eps)
        return x * rstd.bfloat16().to(x.dtype)


class WeightsMissing(Block):
    """The norms' weights are ones: the checkpoint's names were not found."""

    def weight(self, name: str) -> Tensor:
        weight = super().weight(name)
        return torch.ones_like(weight) - self.config.weight_offset + 0 * weight if name.endswith("norm") else weight


class OneAddedToTheWeights(Block):
    """One is added to the norms' weights, as Gemma has it."""

    def __init__(self, parameters: dict[str, Tensor], config: BlockConfig, position: int) -> None:
        super().__init__(parameters, replace(config, weight_offset=1.0), position)


class OneNotAddedToTheWeights(Block):
    """One is not added to the norms' weights, which are stored without it."""

    def __init__(self, parameters: dict[str, Tensor], config: BlockConfig, position: int) -> None:
        super().__init__(parameters, replace(config, weight_offset=0.0), position)


class BiasesOfTheNormsMissing(Block):
    """The norms have no bias."""

    def bias(self, name: str) -> Tensor | None:
        bias = super().bias(name)
        return bias * 0 if bias is not None and name.endswith("norm") else bias


class OneNormForBoth(Block):
    """The second norm is the first: one module, used twice."""

    def ffn_norm(self, h: Tensor) -> Tensor:
        return self.norm(h, "attention_norm") + 0 * self.norm(h.detach(), "ffn_norm")


class SecondNormMissing(Block):
    """The feed-forward layer reads h as it is."""

    def ffn_norm(self, h: Tensor) -> Tensor:
        return h + 0 * self.norm(h.detach(), "ffn_norm")


class OtherOrder(Block):
    """The cast stands on the other side of the weight."""

    def __init__(self, parameters: dict[str, Tensor], config: BlockConfig, position: int) -> None:
        order = "cast_then_scale" if config.order == "scale_then_cast" else "scale_then_cast"
        super().__init__(parameters, replace(config, order=order), position)


class KeysNotNormed(Block):
    """Queries are normalised, keys are not."""

    def qk_norm(self, x: Tensor, name: str) -> Tensor:
        return x + 0 * super().qk_norm(x.detach(), name) if name == "k" else super().qk_norm(x, name)


class QueriesAndKeysNotNormed(Block):
    """Neither queries nor keys are normalised."""

    def qk_norm(self, x: Tensor, name: str) -> Tensor:
        return x + 0 * super().qk_norm(x.detach(), name)


class NormOverAllHeads(Block):
    """Queries and keys are normalised over all heads together, as OLMo 2 has it."""

    def qk_norm(self, x: Tensor, name: str) -> Tensor:
        x_hat = self.normalise(x.to(compute_dtype(x)).flatten(2)).view(x.shape)
        return self.scale_and_shift(x_hat, f"attention.{name}_norm", x.dtype)


class WeightsOfQueriesAndKeysSwapped(Block):
    """Queries have the norm of the keys, and keys that of the queries."""

    def qk_norm(self, x: Tensor, name: str) -> Tensor:
        return super().qk_norm(x, "k" if name == "q" else "q")


FAULTS = (
    fault(EpsOutsideTheRoot, "norm_eps_outside_root"),
    fault(EpsMissing, "norm_eps_missing", taps=True),
    fault(EpsOf1e6, "norm_eps_1e-6"),
    fault(EpsClamps, "norm_eps_clamps", taps=True),
    fault(DividesByNMinusOne, "norm_divides_by_n_minus_1"),
    fault(SumForMean, "norm_sum_for_mean", taps=True),
    fault(DividesByTheMeanSquare, "norm_without_root"),
    fault(MeanOverPositions, "norm_over_positions"),
    fault(LayerNormForRmsNorm, "norm_of_the_other_kind", taps=True),
    fault(RmsNormForLayerNorm, "norm_of_the_other_kind"),
    fault(EveryStepInXDtype, "norm_in_storage_dtype", taps=True, dtypes=HALF),
    fault(RstdInBfloat16, taps=True),
    fault(WeightsMissing, "norm_weight_missing"),
    fault(OneAddedToTheWeights, "norm_offset_unasked", taps=True),
    fault(OneNotAddedToTheWeights, "norm_offset_missing", taps=True),
    fault(BiasesOfTheNormsMissing, "norm_bias_missing"),
    fault(OneNormForBoth, "norm_weights_shared", taps=True),
    fault(SecondNormMissing, "ffn_norm_missing"),
    fault(OtherOrder, "norm_of_the_other_order", taps=True, dtypes=HALF),
    fault(KeysNotNormed, "qk_norm_of_keys_missing"),
    fault(QueriesAndKeysNotNormed, "qk_norm_missing"),
    fault(NormOverAllHeads, "qk_norm_over_all_heads", taps=True),
    fault(WeightsOfQueriesAndKeysSwapped, "qk_norm_weights_swapped"),
)
