"""Mistakes in a block's attention: masks, caches, scale, heads, softmax."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.judge.written.torch_blocks.block import Block, compute_dtype, fault

# Masks


class MaskFilledWithMinus1e4(Block):
    """Hidden scores are filled with -1e4."""

    def probs(self, scores: Tensor, visible: Tensor) -> Tensor:
        masked = scores.masked_fill(~visible, -1e4)
        return torch.softmax(masked, dim=-1, dtype=compute_dtype(scores)).to(scores.dtype)


class MaskOfMinus1e9Added(Block):
    """-1e9 is added to hidden scores, as GPT-2 in TensorFlow had it."""

    def probs(self, scores: Tensor, visible: Tensor) -> Tensor:
        wide = scores.to(compute_dtype(scores))
        bias = (1.0 - visible.to(wide.dtype)) * -1e9
        return torch.softmax(wide + bias, dim=-1).to(scores.dtype)


class MaskOfLowestNumberAdded(Block):
    """The lowest number of x's dtype is added to hidden scores, as Hugging Face's eager attention does."""

    def probs(self, scores: Tensor, visible: Tensor) -> Tensor:
        bias = torch.zeros_like(scores).masked_fill(~visible, torch.finfo(scores.dtype).min)
        return torch.softmax(scores + bias, dim=-1, dtype=compute_dtype(scores)).to(scores.dtype)


class MaskOfMinus100Added(Block):
    """-100 is added to hidden scores."""

    def probs(self, scores: Tensor, visible: Tensor) -> Tensor:
        wide = scores.to(compute_dtype(scores))
        return torch.softmax(wide + torch.where(visible, 0.0, -100.0).to(wide.dtype), dim=-1).to(scores.dtype)


class BlindRowsAreNan(Block):
    """A query that sees no key divides zero by zero."""

    def probs(self, scores: Tensor, visible: Tensor) -> Tensor:
        return self.softmax(self.hide(scores.to(compute_dtype(scores)), visible)).to(scores.dtype)


class MaskMultiplies(Block):
    """Scores are multiplied by the mask, so that hidden ones are zero."""

    def hide(self, scores: Tensor, visible: Tensor) -> Tensor:
        return scores * visible

    def probs(self, scores: Tensor, visible: Tensor) -> Tensor:
        return self.softmax(self.hide(scores.to(compute_dtype(scores)), visible)).to(scores.dtype)


class MaskAfterSoftmax(Block):
    """The mask is applied to the probabilities, which are not normalised again."""

    def probs(self, scores: Tensor, visible: Tensor) -> Tensor:
        return (self.softmax(scores.to(compute_dtype(scores))) * visible).to(scores.dtype)


class CausalMaskShowsTheNextKey(Block):
    """The causal mask is off by one: triu(1) of a matrix that is one too wide."""

    def causal(self, visible: Tensor) -> Tensor:
        s, t = visible.shape
        return visible.tril(diagonal=t - s + 1)


class CausalMaskHidesTheOwnKey(Block):
    """The causal mask is strict: a query does not see its own key."""

    def causal(self, visible: Tensor) -> Tensor:
        s, t = visible.shape
        return visible.tril(diagonal=t - s - 1)


class CausalMaskForgetsTheCache(Block):
    """The causal mask is tril of s by t, whatever is cached, as `is_causal=True` of torch means it."""

    def causal(self, visible: Tensor) -> Tensor:
        return visible.tril()


class CausalMaskMissing(Block):
    """There is no causal mask."""

    def causal(self, visible: Tensor) -> Tensor:
        return visible


class WindowOfFive(Block):
    """A sliding window of another model: a query sees the last five keys."""

    def causal(self, visible: Tensor) -> Tensor:
        s, t = visible.shape
        return super().causal(visible).triu(diagonal=t - s - 4)


class KeyMaskInverted(Block):
    """The key mask says what to hide, not what to see."""

    def mask_keys(self, visible: Tensor, key_mask: Tensor) -> Tensor:
        return visible & ~key_mask[:, None, None, :]


class KeyMaskOffByOne(Block):
    """The key mask is that of the next key."""

    def mask_keys(self, visible: Tensor, key_mask: Tensor) -> Tensor:
        return super().mask_keys(visible, F.pad(key_mask[:, 1:], (0, 1), value=True))


class KeyMaskIgnored(Block):
    """The key mask is an argument that nobody reads."""

    def mask_keys(self, visible: Tensor, key_mask: Tensor) -> Tensor:
        return visible.expand(len(key_mask), -1, -1, -1)


class KeyMaskOnQueries(Block):
    """The key mask is broadcast along the keys, and hides queries."""

    def mask_keys(self, visible: Tensor, key_mask: Tensor) -> Tensor:
        s = visible.shape[-2]
        return visible & key_mask[:, None, -s:, None]


# The cache


class CacheBehind(Block):
    """The cached keys and values are put behind the new ones."""

    def cached(self, cache: Tensor | None, new: Tensor) -> Tensor:
        return new if cache is None else torch.cat([new, cache], dim=1)


class ValuesReadFromTheKeysCache(Block):
    """The values that were cached are read from the keys' cache."""

    def attention(self, x: Tensor, k_cache: Tensor | None, v_cache: Tensor | None, key_mask: Tensor | None) -> Tensor:
        return super().attention(x, k_cache, k_cache, key_mask)


class CachedValuesNeverWritten(Block):
    """The values' cache was allocated and never written: the values that were cached are zeros."""

    def attention(self, x: Tensor, k_cache: Tensor | None, v_cache: Tensor | None, key_mask: Tensor | None) -> Tensor:
        return super().attention(x, k_cache, None if v_cache is None else torch.zeros_like(v_cache), key_mask)


# Scale


class ScaleMissing(Block):
    """The scores are not scaled."""

    def scaling(self) -> float:
        return 1.0


class ScaleTwice(Block):
    """The queries are scaled, and the scores once more."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return super().scores(q * self.scaling(), k)


class ScaleOfDModel(Block):
    """The scores are scaled by the root of d_model."""

    def scaling(self) -> float:
        return 1 / math.sqrt(self.config.d_model)


class ScaleOfTheNumberOfHeads(Block):
    """The scores are scaled by the root of the number of heads."""

    def scaling(self) -> float:
        return 1 / math.sqrt(self.config.n_heads)


class ScoresCapped(Block):
    """The scores are capped at 50, as Gemma 2 has it."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return 50.0 * torch.tanh(super().scores(q, k) / 50.0)


# Heads


class HeadsTiled(Block):
    """Key and value heads are tiled, not repeated."""

    def repeat(self, x: Tensor) -> Tensor:
        return x.repeat(1, 1, self.config.n_heads // self.config.n_kv_heads, 1)


class ValueHeadsTiled(Block):
    """Value heads are tiled, key heads are repeated."""

    def repeat_values(self, v: Tensor) -> Tensor:
        return v.repeat(1, 1, self.config.n_heads // self.config.n_kv_heads, 1)


class FirstHeadForAll(Block):
    """All query heads read the first key and value head."""

    def repeat(self, x: Tensor) -> Tensor:
        return x[:, :, :1].expand(-1, -1, self.config.n_heads, -1)


class HeadsMergedWithoutTranspose(Block):
    """Heads are merged by a reshape alone."""

    def merge(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[2], -1)


class HeadsSplitFeaturesFirst(Block):
    """Heads are split as d_head by h, not as h by d_head."""

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.config.d_head, -1).transpose(2, 3)


class FusedProjectionSplitByGroup(Block):
    """The fused projection is read as GPT-NeoX stores it, group by group."""

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = self.config
        qkv = torch.cat([self.linear(x, f"attention.{name}") for name in "qkv"], dim=-1)
        groups = qkv.view(*x.shape[:2], c.n_kv_heads, c.n_heads // c.n_kv_heads + 2, c.d_head)
        q, k, v = groups[..., :-2, :].flatten(2, 3), groups[..., -2, :], groups[..., -1, :]
        return self.tap("q", q), self.tap("k", k), self.tap("v", v)


class ProjectionBiasesMissing(Block):
    """The projections of queries, keys and values have no bias."""

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        for name in "qkv":  # zero, so that it still has a gradient
            bias = self.bias(f"attention.{name}")
            if bias is not None:
                self.parameters = self.parameters | {f"attention.{name}.bias": bias * 0}
        return super().project(x)


class OutputBiasMissing(Block):
    """The projection after attention has no bias."""

    def linear(self, x: Tensor, name: str) -> Tensor:
        y, bias = F.linear(x, self.weight(name)), self.bias(name)
        return y if bias is None else y + bias * (name != "attention.o")


# Softmax


class SoftmaxOverQueries(Block):
    """The softmax runs over the queries."""

    def softmax(self, scores: Tensor) -> Tensor:
        return torch.softmax(scores, dim=-2)


class SoftmaxOverHeads(Block):
    """The softmax runs over the heads."""

    def softmax(self, scores: Tensor) -> Tensor:
        return torch.softmax(scores, dim=1)


class SoftmaxInBfloat16(Block):
    """Every step of the softmax is in bfloat16."""

    def softmax(self, scores: Tensor) -> Tensor:
        low = scores.bfloat16()
        exponentials = torch.exp(low - low.amax(dim=-1, keepdim=True))
        return (exponentials / exponentials.sum(dim=-1, keepdim=True)).to(scores.dtype)


class SoftmaxWithoutMaximum(Block):
    """The softmax does not subtract the row's maximum."""

    def softmax(self, scores: Tensor) -> Tensor:
        exponentials = torch.exp(scores)
        return exponentials / exponentials.sum(dim=-1, keepdim=True)


class SoftmaxOfBaseTwo(Block):
    """The kernel takes exp2, and nobody multiplies by log2(e)."""

    def softmax(self, scores: Tensor) -> Tensor:
        exponentials = torch.exp2(scores - scores.amax(dim=-1, keepdim=True))
        return exponentials / exponentials.sum(dim=-1, keepdim=True)


class SoftmaxPlusOne(Block):
    """The denominator has a one more, so that a head may attend to nothing."""

    def softmax(self, scores: Tensor) -> Tensor:
        top = scores.amax(dim=-1, keepdim=True).clamp(min=0.0)
        exponentials = torch.exp(scores - top)
        return exponentials / (exponentials.sum(dim=-1, keepdim=True) + torch.exp(-top))


class FlashSoftmaxNotRescaled(Block):
    """What was added up before a new maximum is not rescaled to it."""

    def softmax(self, scores: Tensor) -> Tensor:
        top, total, blocks = scores.new_full((), -torch.inf), scores.new_zeros(()), list[Tensor]()
        for block in scores.split(4, dim=-1):
            top = torch.maximum(top, block.amax(dim=-1, keepdim=True))
            blocks.append(torch.exp(block - top))
            total = total + blocks[-1].sum(dim=-1, keepdim=True)
        return torch.cat(blocks, dim=-1) / total


class DropoutLeftOn(Block):
    """A tenth of the probabilities is dropped, as in training."""

    def softmax(self, scores: Tensor) -> Tensor:
        probs = super().softmax(scores)
        kept = torch.rand(probs.shape, generator=torch.Generator().manual_seed(0)) > 0.1
        return probs * kept / 0.9


class ProbabilitiesDetached(Block):
    """The probabilities are detached, and queries and keys have no gradient."""

    def softmax(self, scores: Tensor) -> Tensor:
        return super().softmax(scores).detach() + 0 * scores.masked_fill(scores.isinf(), 0.0)


FAULTS = (
    fault(MaskFilledWithMinus1e4, "mask_of_minus_1e4", "mask_of_minus_1e9", "mask_of_lowest_number", taps=True),
    fault(MaskOfMinus1e9Added, "mask_of_minus_1e9", "mask_of_lowest_number", taps=True),
    fault(MaskOfLowestNumberAdded, "mask_of_lowest_number", "mask_of_minus_1e9", taps=True),
    fault(MaskOfMinus100Added, "mask_of_minus_100", taps=True),
    fault(BlindRowsAreNan, "hidden_row_is_nan", taps=True),
    fault(MaskMultiplies, "mask_multiplies"),
    fault(MaskAfterSoftmax, "mask_after_softmax", taps=True),
    fault(CausalMaskShowsTheNextKey, "causal_mask_one_too_many"),
    fault(CausalMaskHidesTheOwnKey, "causal_mask_one_too_few", taps=True),
    fault(CausalMaskForgetsTheCache, "causal_mask_without_cache", taps=True),
    fault(CausalMaskMissing, "causal_mask_missing"),
    fault(WindowOfFive, "window_of_5", taps=True),
    fault(KeyMaskInverted, "key_mask_inverted", taps=True),
    fault(KeyMaskOffByOne, "key_mask_of_next_key", taps=True),
    fault(KeyMaskIgnored, "key_mask_ignored", taps=True),
    fault(KeyMaskOnQueries, "key_mask_on_queries", taps=True),
    fault(CacheBehind, "cache_behind", taps=True),
    fault(ValuesReadFromTheKeysCache, "cached_values_are_keys", taps=True),
    fault(CachedValuesNeverWritten, "cached_values_are_zero", taps=True),
    fault(ScaleMissing, "scale_missing"),
    fault(ScaleTwice, "scale_twice", taps=True),
    fault(ScaleOfDModel, "scale_of_d_model"),
    fault(ScaleOfTheNumberOfHeads, "scale_of_n_heads", taps=True),
    fault(ScoresCapped, "scores_capped", taps=True),
    fault(HeadsTiled, "key_heads_tiled"),
    fault(ValueHeadsTiled, "value_heads_tiled", taps=True),
    fault(FirstHeadForAll, "first_key_head_for_all"),
    fault(HeadsMergedWithoutTranspose, "heads_merged_untransposed", taps=True),
    fault(HeadsSplitFeaturesFirst, "heads_split_features_first"),
    fault(FusedProjectionSplitByGroup, "fused_projection_split_by_group", taps=True),
    fault(ProjectionBiasesMissing, "qkv_bias_missing"),
    fault(OutputBiasMissing, "attention_bias_missing", taps=True),
    fault(SoftmaxOverQueries, "softmax_over_queries"),
    fault(SoftmaxOverHeads, taps=True),
    fault(SoftmaxInBfloat16, "softmax_in_bfloat16", taps=True),
    fault(SoftmaxWithoutMaximum, "softmax_without_maximum", taps=True),
    fault(SoftmaxOfBaseTwo, "softmax_base_2"),
    fault(SoftmaxPlusOne, "softmax_plus_one", taps=True),
    fault(FlashSoftmaxNotRescaled, "softmax_blocks_of_4_not_rescaled", taps=True),
    fault(DropoutLeftOn),
    fault(ProbabilitiesDetached, "softmax_without_gradient", group="backward"),
)
