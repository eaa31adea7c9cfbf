"""Norms behind attention and the feed-forward layer, before they are added: alone, or with those before in a sandwich."""

from conformance.mistakes.block.places import BEFORE, BEHIND, normed, normed_first, placed, without
from conformance.mistakes.block.stages import in_placements, parameters_of
from conformance.mistakes.mistake import Change


def _exchanged(*pairs: tuple[str, str]) -> Change:
    """Of each pair of norms one has the other's parameters."""
    both = (*pairs, *(pair[::-1] for pair in pairs))
    return {one: parameters_of(other, instead_of=one) for one, other in both}


IN_SANDWICH, IN_BRANCH = in_placements("sandwich"), in_placements("branch")
BEHIND_BRANCHES = in_placements("sandwich", "branch")
MISTAKES = (
    placed(
        BEHIND_BRANCHES,
        "norms_behind_of_sums",
        "the norms behind attention and the feed-forward layer are taken of the sums, not of the branches",
        {**normed(BEHIND, BEHIND, whole=True), **without(BEHIND)},
        "Everything from h on; out has the norm's scale.",
        "planted: Post-LN's norm in a sandwich",
    ),
    placed(
        BEHIND_BRANCHES,
        "attn_out_norm_missing",
        "the norm behind attention is left out",
        without(BEHIND[:1]),
        "h, and all that follows.",
        "planted: a block of Pre-LN, whose post_attention_layernorm is another",
    ),
    placed(
        BEHIND_BRANCHES,
        "ffn_out_norm_missing",
        "the norm behind the feed-forward layer is left out",
        without(BEHIND[1:]),
        "out alone, and all gradients.",
        "planted: one of two lines",
    ),
    placed(
        BEHIND_BRANCHES,
        "norms_behind_weights_swapped",
        "each of the norms behind attention and the feed-forward layer has the other's parameters",
        _exchanged(BEHIND),
        "Equal weights hide it.",
        "planted: a checkpoint's names",
    ),
    placed(
        BEHIND_BRANCHES,
        "norms_behind_weights_shared",
        "the norm behind the feed-forward layer has the parameters of the one behind attention",
        {"ffn_out_norm": parameters_of("attn_out_norm", instead_of="ffn_out_norm")},
        "Equal weights hide it; the second norm has no gradient.",
        "planted: one norm for both",
    ),
    placed(
        IN_SANDWICH,
        "norms_behind_missing",
        "only the norms before attention and the feed-forward layer are there, not those behind",
        without(BEHIND),
        "Everything from h on; the norms behind have no gradient.",
        "planted: Pre-LN for a sandwich",
    ),
    placed(
        IN_SANDWICH,
        "norms_before_missing",
        "only the norms behind attention and the feed-forward layer are there, not those before",
        without(BEFORE),
        "Everything; the norms before have no gradient.",
        "planted: OLMo2's block for Gemma's",
    ),
    placed(
        IN_SANDWICH,
        "norm_before_swapped_with_norm_behind",
        "the norms before attention and the feed-forward layer have the parameters of those behind, and the reverse",
        _exchanged(*zip(BEFORE, BEHIND, strict=True)),
        "Equal weights hide it.",
        "planted: a checkpoint's names",
    ),
    placed(
        IN_SANDWICH,
        "norm_behind_attention_named_as_in_llama",
        "the norm behind attention and the one before the feed-forward layer have each other's parameters",
        _exchanged((BEHIND[0], BEFORE[1])),
        "Equal weights hide it.",
        "planted: Hugging Face's post_attention_layernorm stands behind attention in Gemma 2, before the feed-forward in Llama",
    ),
    placed(
        IN_BRANCH,
        "norms_before_for_behind",
        "the norms stand before attention and the feed-forward layer, not behind",
        {**normed_first(BEHIND, BEHIND), **without(BEHIND)},
        "Everything.",
        "planted: Pre-LN for OLMo2's block",
    ),
)
