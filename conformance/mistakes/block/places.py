"""Where a block's norms stand, and what a mistake makes of them: left out, or moved to another place."""

from collections.abc import Callable
from functools import partial
from typing import Any

from conformance.mistakes.block.stages import Become, alters, in_placements, reads_also
from conformance.mistakes.mistake import BLOCK, Change, Mistake, Of, all_but
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.primitives import Add, Normalise
from conformance.ops.block.program import Stage, altered, found
from conformance.ops.block.wrappers import Fed, First, NormedAdd

BEFORE = ("attention_norm", "ffn_norm")
BEHIND = ("attn_out_norm", "ffn_out_norm")
OF_SUMS = ("h", "out")
NORMS = (*BEFORE, *BEHIND, *OF_SUMS)
"""The stages that are norms of the block's own in some placement; h and out are sums in the others."""

READERS = (("q", "k", "v"), ("gate", "up"))
SUMS = (("attn_sum", "h"), ("ffn_sum", "out"))
"""Of either branch: what reads the stream or its norm, and where it joins the stream: in Post-LN a stage of its own."""

IN_PARALLEL = in_placements("parallel")
ASKED = dict.fromkeys(all_but("float32", "bfloat16"), "a block of this placement is asked for in float32 and bfloat16")


def placed(where: Callable[[Any], bool], id: str, sentence: str, change: Change, effect: str, evidence: str) -> Mistake:
    """A mistake of a placement that is not Pre-LN's."""
    return Mistake(id, sentence, change, effect, evidence, BLOCK, ASKED, where=where)


def parameter_names(composite: Composite, norm: str) -> list[str]:
    """The weight of one of the block's norms, and its bias, if there is one."""
    return [name for name in composite.config.parameters() if name.startswith(f"{norm}.")]


def without(names: tuple[str, ...]) -> Change:
    """What these norms are given is left as it is."""
    return dict.fromkeys(names, alters(Normalise, lambda op: First()))


def normed(norms: tuple[str, str], owners: tuple[str, str], *, whole: bool) -> Change:
    """Each branch as it is added, or its sum with the stream, goes through a stage's norm, with the parameters of an owner."""

    def joined(composite: Composite, stage_of_norm: str, owner: str) -> Become:
        norm = composite.op(stage_of_norm, Normalise)

        def become(stage: Stage) -> Stage:
            if norm is None or found(stage.op, Add) is None:
                return stage
            op = altered(stage.op, Add, lambda op, norm=norm: NormedAdd(norm, whole))
            return reads_also(stage, op, *parameter_names(composite, owner))

        return become

    pairs = zip(SUMS, norms, owners, strict=True)
    return {
        name: Of(partial(joined, stage_of_norm=norm, owner=owner))
        for names, norm, owner in pairs
        for name in names
        if name != norm
    }


def normed_first(norms: tuple[str, str], owners: tuple[str, str]) -> Change:
    """What attention and the feed-forward layer read goes through a stage's norm, with the parameters of an owner."""

    def fed(composite: Composite, stage_of_norm: str, owner: str) -> Become:
        norm, names = composite.op(stage_of_norm, Normalise), parameter_names(composite, owner)
        return lambda stage: stage if norm is None else reads_also(stage, Fed(stage.op, norm, len(names)), *names)

    return {
        reader: Of(partial(fed, stage_of_norm=norm, owner=owner))
        for readers, norm, owner in zip(READERS, norms, owners, strict=True)
        for reader in readers
    }
