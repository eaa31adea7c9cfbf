"""Mistakes in a block's residual stream."""

from torch import Tensor

from tests.judge.written.torch_blocks.block import Block, fault


class ResidualFromTheNormedX(Block):
    """x is overwritten by its norm, and attention's output is added to that."""

    def add_attention(self, x: Tensor, normed: Tensor, attn_out: Tensor) -> Tensor:
        return normed + attn_out


class ResidualFromTheNormedH(Block):
    """h is overwritten by its norm, and the feed-forward layer's output is added to that."""

    def add_feed_forward(self, x: Tensor, h: Tensor, normed: Tensor, ffn_out: Tensor) -> Tensor:
        return normed + ffn_out


class SecondResidualFromX(Block):
    """The residual is not updated between the branches."""

    def add_feed_forward(self, x: Tensor, h: Tensor, normed: Tensor, ffn_out: Tensor) -> Tensor:
        return x + ffn_out


class FirstResidualMissing(Block):
    """x is not added to attention's output."""

    def add_attention(self, x: Tensor, normed: Tensor, attn_out: Tensor) -> Tensor:
        return attn_out


class SecondResidualTwice(Block):
    """h is added twice."""

    def add_feed_forward(self, x: Tensor, h: Tensor, normed: Tensor, ffn_out: Tensor) -> Tensor:
        return h + (h + ffn_out)


class FeedForwardOutputOverwritesH(Block):
    """The second sum is missing: the feed-forward layer's output is returned."""

    def add_feed_forward(self, x: Tensor, h: Tensor, normed: Tensor, ffn_out: Tensor) -> Tensor:
        return ffn_out


class ResidualMultiplied(Block):
    """Both branches are multiplied by 0.22, as Granite has it."""

    def add_attention(self, x: Tensor, normed: Tensor, attn_out: Tensor) -> Tensor:
        return x + 0.22 * attn_out

    def add_feed_forward(self, x: Tensor, h: Tensor, normed: Tensor, ffn_out: Tensor) -> Tensor:
        return h + 0.22 * ffn_out


class ResidualInBfloat16(Block):
    """The stream is stored in bfloat16 between the branches."""

    def add_attention(self, x: Tensor, normed: Tensor, attn_out: Tensor) -> Tensor:
        return (x + attn_out).bfloat16().to(x.dtype)

    def add_feed_forward(self, x: Tensor, h: Tensor, normed: Tensor, ffn_out: Tensor) -> Tensor:
        return (h + ffn_out).bfloat16().to(x.dtype)


class ParallelBranches(Block):
    """Both branches read x, each by its own norm, as GPT-NeoX has it."""

    def __call__(self, x: Tensor, k_cache: Tensor | None, v_cache: Tensor | None, key_mask: Tensor | None) -> Tensor:
        attn_out = self.attention(self.attention_norm(x), k_cache, v_cache, key_mask)
        return x + attn_out + self.feed_forward(self.ffn_norm(x))


class ParallelBranchesOfOneNorm(Block):
    """Both branches read the same norm of x, as GPT-J has it."""

    def __call__(self, x: Tensor, k_cache: Tensor | None, v_cache: Tensor | None, key_mask: Tensor | None) -> Tensor:
        normed = self.attention_norm(x)
        unused = 0 * self.ffn_norm(x.detach())
        return x + self.attention(normed, k_cache, v_cache, key_mask) + self.feed_forward(normed) + unused


class PostLn(Block):
    """The norms stand after the sums, as in the first transformer."""

    def __call__(self, x: Tensor, k_cache: Tensor | None, v_cache: Tensor | None, key_mask: Tensor | None) -> Tensor:
        h = self.attention_norm(x + self.attention(x, k_cache, v_cache, key_mask))
        return self.ffn_norm(h + self.feed_forward(h))


class BranchesNormedLater(Block):
    """The norms stand after the branches, as OLMo 2 has it."""

    def __call__(self, x: Tensor, k_cache: Tensor | None, v_cache: Tensor | None, key_mask: Tensor | None) -> Tensor:
        h = x + self.attention_norm(self.attention(x, k_cache, v_cache, key_mask))
        return h + self.ffn_norm(self.feed_forward(h))


FAULTS = (
    fault(ResidualFromTheNormedX, "residual_from_normed_x"),
    fault(ResidualFromTheNormedH, "residual_from_normed_h", taps=True),
    fault(SecondResidualFromX, "second_residual_from_x"),
    fault(FirstResidualMissing, "attention_residual_missing", taps=True),
    fault(SecondResidualTwice, "feed_forward_residual_twice"),
    fault(FeedForwardOutputOverwritesH, "feed_forward_residual_missing", taps=True),
    fault(ResidualMultiplied, taps=True),
    fault(ResidualInBfloat16, "residual_in_bfloat16", taps=True),
    fault(ParallelBranches, "parallel_branches"),
    fault(ParallelBranchesOfOneNorm, "parallel_branches_of_one_norm"),
    fault(PostLn, "post_ln"),
    fault(BranchesNormedLater, "branches_normed_later"),
)
