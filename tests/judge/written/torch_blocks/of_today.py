"""Mistakes in what today's models add to a block, and in where its norms stand."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.judge.written.torch_blocks.block import fault
from tests.judge.written.torch_blocks.modern import ModernBlock

SINGLE = ("float32",)  # what is asked in float32 alone
BOTH = ("float32", "bfloat16")


class WindowOneWider(ModernBlock):
    """The mask of a window leaves one key more, for a query's own is not counted."""

    def windowed(self, visible: Tensor, window: int) -> Tensor:
        return super().windowed(visible, window + 1)


class WindowOneNarrower(ModernBlock):
    """Keys are compared by "less than the window" where "at most" is meant, and a query sees one key fewer."""

    def windowed(self, visible: Tensor, window: int) -> Tensor:
        return super().windowed(visible, window - 1)


class WindowWithoutCache(ModernBlock):
    """The window is counted from the query's number among the new ones."""

    def windowed(self, visible: Tensor, window: int) -> Tensor:
        return visible.triu(diagonal=-window + 1)


class SinkAfterTheSoftmax(ModernBlock):
    """The probabilities of the keys alone are divided by one plus the sink's exponential."""

    def softmax_with_sink(self, scores: Tensor, sink: Tensor) -> Tensor:
        return torch.softmax(scores, dim=-1) / (1 + sink.exp())


class SinkOfTheFirstHead(ModernBlock):
    """One sink is shared by all heads."""

    def sink(self, scores: Tensor) -> Tensor:
        return super().sink(scores)[:, :1].expand(*scores.shape[:-1], 1)


class SinkScaled(ModernBlock):
    """The sink is put beside the scores before they are scaled."""

    def sink(self, scores: Tensor) -> Tensor:
        return super().sink(scores) * self.scaling()


class SinkLeftOutOfTheMaximum(ModernBlock):
    """The maximum is that of the keys' scores."""

    def softmax_with_sink(self, scores: Tensor, sink: Tensor) -> Tensor:
        top = scores.amax(dim=-1, keepdim=True).detach()
        exponentials = (scores - top).exp()
        return exponentials / (exponentials.sum(dim=-1, keepdim=True) + (sink - top).exp())


class SoftcapAfterTheMask(ModernBlock):
    """Hidden scores are capped too: they are minus the cap."""

    def probs(self, scores: Tensor, visible: Tensor) -> Tensor:
        cap = self.config.softcap
        if cap is None:
            return super().probs(scores, visible)
        masked = self.hide(scores.to(torch.promote_types(scores.dtype, torch.float32)), visible)
        return self.softmax(self.tap("capped", self.capped(masked, cap))).to(scores.dtype)


class SoftcapBeforeTheScale(ModernBlock):
    """Products are capped, then scaled."""

    def capped(self, scores: Tensor, cap: float) -> Tensor:
        return super().capped(scores / self.scaling(), cap) * self.scaling()


class SoftcapNotMultipliedBack(ModernBlock):
    """The tanh is left between minus one and one."""

    def capped(self, scores: Tensor, cap: float) -> Tensor:
        return torch.tanh(scores / cap)


class ScaleOfTheHead(ModernBlock):
    """The scale is the default of the attention function: the config's is not passed on."""

    def scaling(self) -> float:
        return self.config.d_head**-0.5


class LastFeaturesTurned(ModernBlock):
    """The part that is turned is cut off at the wrong end."""

    def rope(self, x: Tensor) -> Tensor:
        return super().rope(x.roll(self.rotary_features, dims=-1)).roll(-self.rotary_features, dims=-1)


class FrequenciesOfTheHead(ModernBlock):
    """The exponents are over d_head, though a part of the head is turned."""

    def frequencies(self, d_head: int, dtype: torch.dtype) -> Tensor:
        return super().frequencies(self.config.d_head, dtype)[: d_head // 2]


class NormBehindOfTheSum(ModernBlock):
    """The norms behind the branches are of the sums, as in the first transformer."""

    def join(self, stream: Tensor, given: Tensor, branch: str) -> Tensor:
        if not self.config.norms_branch:
            return super().join(stream, given, branch)
        return self.norm(stream + given, f"{branch}_out_norm")


class NormBehindAttentionOfLlama(ModernBlock):
    """post_attention_layernorm is taken for the norm before the feed-forward layer, as it is in Llama."""

    def weight(self, name: str) -> Tensor:
        if self.config.placement == "sandwich":
            name = {"attn_out_norm": "ffn_norm", "ffn_norm": "attn_out_norm"}.get(name, name)
        return super().weight(name)


class NormBehindTheFeedForwardMissing(ModernBlock):
    """The last norm is left out."""

    def join(self, stream: Tensor, given: Tensor, branch: str) -> Tensor:
        if self.config.norms_branch and branch == "ffn":
            return stream + given + 0 * self.norm(given.detach(), "ffn_out_norm")
        return super().join(stream, given, branch)


class ParallelReadsH(ModernBlock):
    """The feed-forward layer reads the norm of the stream that attention has been added to."""

    def read_in_parallel(self, x: Tensor, normed: Tensor, attn_out: Tensor) -> Tensor:
        return self.norm(x + attn_out, "attention_norm")


class ParallelStreamTwice(ModernBlock):
    """Each of the branches has a residual connection of its own."""

    def add_both(self, x: Tensor, attn_out: Tensor, ffn_out: Tensor) -> Tensor:
        return (x + attn_out) + (x + ffn_out)


class PostLnNormsBeforeTheSum(ModernBlock):
    """Branches are normalised, then added."""

    def join(self, stream: Tensor, given: Tensor, branch: str) -> Tensor:
        if self.config.placement != "post":
            return super().join(stream, given, branch)
        return stream + self.norm(given, "attention_norm" if branch == "attn" else "ffn_norm")


class PreLnForPostLn(ModernBlock):
    """norm_first is True where it should be False."""

    def before(self, x: Tensor, name: str) -> Tensor:
        return self.norm(x, name) if self.config.placement == "post" else super().before(x, name)

    def join(self, stream: Tensor, given: Tensor, branch: str) -> Tensor:
        return stream + given if self.config.placement == "post" else super().join(stream, given, branch)


class QkNormAfterRope(ModernBlock):
    """Queries and keys are turned, then normalised."""

    def prepare(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if not self.config.qk_norm or self.config.rope == "none":
            return super().prepare(q, k)
        return self.qk_norm(self.rope_of_queries(q), "q"), self.qk_norm(self.rope_of_keys(k), "k")


class QkNormOfEachHead(ModernBlock):
    """Statistics are a head's, where they should be those of all heads."""

    def qk_norm(self, x: Tensor, name: str) -> Tensor:
        if self.config.qk_norm_over == "head":
            return super().qk_norm(x, name)
        x_hat = self.normalise(x.to(torch.promote_types(x.dtype, torch.float32))).flatten(-2)
        return self.scale_and_shift(x_hat, f"attention.{name}_norm", x.dtype).view(x.shape)


class SiluForTheGatesGelu(ModernBlock):
    """The gate goes through SiLU, as Llama's does."""

    def geglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up


class ExactGeluOfTheGate(ModernBlock):
    """The gate's GELU is by the error function, torch's default."""

    def geglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.gelu(gate) * up


FAULTS = (
    fault(WindowOneWider, "window_one_wider", of_today=True, dtypes=BOTH),
    fault(WindowOneNarrower, "window_one_narrower", of_today=True, dtypes=BOTH),
    fault(WindowWithoutCache, "window_without_cache", of_today=True, dtypes=SINGLE),
    fault(SinkAfterTheSoftmax, "sink_after_softmax", of_today=True, dtypes=BOTH),
    fault(SinkOfTheFirstHead, "sink_of_first_head", of_today=True, dtypes=BOTH),
    fault(SinkScaled, "sink_scaled", of_today=True, dtypes=BOTH),
    fault(SinkLeftOutOfTheMaximum, "sink_left_out_of_maximum", of_today=True, dtypes=BOTH),
    fault(SoftcapAfterTheMask, "softcap_after_mask", of_today=True, dtypes=BOTH),
    fault(SoftcapBeforeTheScale, "softcap_before_scale", of_today=True, dtypes=BOTH),
    fault(SoftcapNotMultipliedBack, "softcap_not_multiplied_back", of_today=True, dtypes=BOTH),
    fault(ScaleOfTheHead, "scale_of_d_head", of_today=True, dtypes=SINGLE),
    fault(LastFeaturesTurned, "rotary_features_last", of_today=True, dtypes=SINGLE),
    fault(FrequenciesOfTheHead, "rotary_frequencies_of_the_head", of_today=True, dtypes=SINGLE),
    fault(NormBehindOfTheSum, "norms_behind_of_sums", of_today=True, dtypes=BOTH),
    fault(NormBehindAttentionOfLlama, "norm_behind_attention_named_as_in_llama", of_today=True, dtypes=BOTH),
    fault(NormBehindTheFeedForwardMissing, "ffn_out_norm_missing", of_today=True, dtypes=BOTH),
    fault(ParallelReadsH, "branches_in_sequence", of_today=True, dtypes=BOTH),
    fault(ParallelStreamTwice, "stream_twice", of_today=True, dtypes=BOTH),
    fault(PostLnNormsBeforeTheSum, "normed_before_the_sum", of_today=True, dtypes=BOTH),
    fault(PreLnForPostLn, "pre_ln", of_today=True, dtypes=BOTH),
    fault(QkNormAfterRope, "rope_before_qk_norm", of_today=True, dtypes=BOTH),
    fault(QkNormOfEachHead, "qk_norm_over_each_head", of_today=True, dtypes=BOTH),
    fault(SiluForTheGatesGelu, "silu_for_gelu_of_the_gate", of_today=True, dtypes=BOTH),
    fault(ExactGeluOfTheGate, "gelu_of_the_gate_by_erf", of_today=True, dtypes=SINGLE),
)
