"""The ops `pre_ln_block` and `pre_ln_stack`: a transformer block, wherever its norms stand, and several one after another."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import reference
from conformance.ops.block.anatomy import Composite
from conformance.ops.block.attention import attention_stages
from conformance.ops.block.block_cases import BLOCK_CASES, OUT, STACK_CASES, BlockCase
from conformance.ops.block.feed_forward import GEGLU, gelu_of
from conformance.ops.block.golden import Values, composite_golden, exact_inputs
from conformance.ops.block.primitives import Add, AddBoth, Concatenate, Linear, Normalise, OverHeads, SwiGLU
from conformance.ops.block.program import Program, Stage
from conformance.ops.block.rope import rotate
from conformance.ops.op import Constant, Golden, Op, Tensor
from reference import BlockConfig
from reference.pre_ln_block import SUM_NORMS


def _anatomy(case: BlockCase, seed: int) -> Composite:
    given, _ = exact_inputs(case, seed)
    stages: list[Stage] = []
    for layer in case.layers:
        x = stages[-1].name if stages else "x"
        stages += [_in_layer(stage, layer, x) if layer else stage for stage in _stages(case, given)]
    return Composite(case, Program(tuple(stages)), seed)


def _stages(case: BlockCase, given: Values) -> Iterator[Stage]:
    c = case.config
    norm = Normalise(c.eps, c.weight_offset, c.norm == "layer_norm", c.order)
    q, k, read = "q", "k", "x"
    if c.norms_before:
        yield Stage("attention_norm", norm, ("x", *_parameters(c, "attention_norm")))
        read = "attention_norm"
    for name in ("q", "k", "v"):
        yield Stage(name, Linear(c.d_head), (read, *_parameters(c, f"attention.{name}")))
    if c.qk_norm:
        offset = c.weight_offset if c.qk_norm_offset else 0.0
        of_head = replace(norm, centred=False, weight_offset=offset)
        for name in (q, k):
            of_all = OverHeads(of_head) if c.qk_norm_over == "all_heads" else of_head
            yield Stage(f"{name}_norm", of_all, (name, f"attention.{name}_norm.weight"))
        q, k = "q_norm", "k_norm"
    if c.rope != "none":
        turn = rotate(case, case.settings["position"])
        yield Stage("q_rope", turn, (q,))
        yield Stage("k_rope", turn, (k,))
        q, k = "q_rope", "k_rope"
    keys, values = k, "v"
    if case.past:
        yield Stage("keys", Concatenate(), ("k_cache", k))
        yield Stage("values", Concatenate(), ("v_cache", "v"))
        keys, values = "keys", "values"
    yield from attention_stages(case, given, (q, keys, values), merged=True)
    yield Stage("attn_out", Linear(), ("attn", *_parameters(c, "attention.o")))
    if c.placement != "parallel":
        yield from _joined(c, norm, "attn", "x", "h")
        read = "h"
        if c.norms_before:
            yield Stage("ffn_norm", norm, ("h", *_parameters(c, "ffn_norm")))
            read = "ffn_norm"
    for name in ("gate", "up") if c.gated else ("up",):
        yield Stage(name, Linear(), (read, *_parameters(c, f"feed_forward.{name}")))
    if c.gated:
        yield Stage("act", SwiGLU() if c.feed_forward == "swiglu" else GEGLU, ("gate", "up"))
    else:
        yield Stage("act", gelu_of(c), ("up",))
    yield Stage("ffn_out", Linear(), ("act", *_parameters(c, "feed_forward.down")))
    if c.placement == "parallel":
        yield Stage("out", AddBoth(), ("x", "attn_out", "ffn_out"))
    else:
        yield from _joined(c, norm, "ffn", "h", "out")


def _joined(c: BlockConfig, norm: Normalise, branch: str, stream: str, joined: str) -> Iterator[Stage]:
    """The stream and what `branch`, attn or ffn, gives to it, with the norms that stand behind."""
    given = f"{branch}_out"
    multiplies = not (c.norm == "layer_norm" and c.norm_bias)  # a norm's last step, if it does not add a bias
    add = Add((c.placement == "post" and stream == "h" and multiplies, c.norms_branch and multiplies))
    if c.norms_branch:
        yield Stage(f"{given}_norm", norm, (given, *_parameters(c, f"{given}_norm")))
        given = f"{given}_norm"
    if c.placement == "post":
        yield Stage(f"{branch}_sum", add, (stream, given))
        yield Stage(joined, norm, (f"{branch}_sum", *_parameters(c, SUM_NORMS[branch])))
    else:
        yield Stage(joined, add, (stream, given))


def _parameters(c: BlockConfig, name: str) -> tuple[str, ...]:
    return tuple(known for known in c.parameters() if known.rpartition(".")[0] == name)


def _in_layer(stage: Stage, layer: str, x: str) -> Stage:
    """A block's stage as one of a stack's; the block's x is what the layer below gives, and a cache is nobody's."""
    return Stage(stage.local_name, stage.op, tuple(x if name == "x" else layer + name for name in stage.reads), layer)


def _golden(case: BlockCase, seed: int) -> Golden:
    """The block, or the blocks of a stack one after another, and then back."""
    tensors, cotangent = exact_inputs(case, seed)
    constants: dict[str, Any] = {name: tensors[name] for name in case.constants if name != "key_mask"}
    constants |= {"position": case.settings["position"]}
    constants |= {"key_mask": tensors["key_mask"] != 0} if "key_mask" in tensors else {}
    parameters = {layer: {name: tensors[layer + name] for name in case.config.parameters()} for layer in case.layers}
    x, taps, given_to = tensors["x"], Values(), Values()
    for layer in case.layers:
        given_to[layer] = x
        x, intermediates = reference.pre_ln_block(x, parameters[layer], case.config, **constants)
        taps |= {layer + name: value for name, value in intermediates.items()}
    gradients: Values = {}
    for layer in reversed(case.layers):
        of_layer = reference.pre_ln_block_vjp(cotangent, given_to[layer], parameters[layer], case.config, **constants)
        cotangent = of_layer.pop("dx")
        gradients |= {f"d{layer}{name[1:]}": gradient for name, gradient in of_layer.items()}
    return composite_golden(_anatomy(case, seed), taps, {"out": x, "dx": cotangent} | gradients)


PRE_LN_BLOCK = Op(
    name="pre_ln_block",
    formula="What spec.md says of the block.",
    tensors=(
        Tensor("x"),
        Tensor("parameters"),
        *(Tensor(name, differentiable=False) for name in ("k_cache", "v_cache", "key_mask")),
    ),
    outputs=(OUT,),
    constants=(Constant("config"), Constant("position")),
    taps=True,
    cases=BLOCK_CASES,
    golden=_golden,
    anatomy=_anatomy,
    costly=True,
)
PRE_LN_STACK = Op(
    name="pre_ln_stack",
    formula="Blocks whose parameters are named 0.…, 1.….",
    tensors=(Tensor("x"), Tensor("parameters"), Tensor("key_mask", differentiable=False)),
    outputs=(OUT,),
    constants=(Constant("config"), Constant("position"), Constant("n_layers")),
    taps=True,
    cases=STACK_CASES,
    golden=_golden,
    anatomy=_anatomy,
    costly=True,
)
