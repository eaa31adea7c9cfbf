"""A case of a composite op as the program that computes it: what a mistake alters."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conformance.ops.block.cases import BlockCase
from conformance.ops.block.ops import Add, Concatenate, DotProducts, Gelu, Linear, Mix, Norm, Rotate, Softmax, SwiGLU
from conformance.ops.block.program import Kind, Kinds, Program, Pull, Stage, found
from reference import BlockConfig
from reference.attention import visible_keys
from reference.rope import rope_angles

Array = np.ndarray
Gradients = dict[str, Array]


@dataclass(frozen=True)
class Composite:
    """A composite op laid open for alteration: its program, and what becomes of the gradients in the end."""

    case: BlockCase
    program: Program
    finish: Callable[[Gradients], Gradients] = lambda outputs: outputs

    @property
    def config(self) -> BlockConfig:
        """What it is made of."""
        return self.case.config

    def has(self, local_name: str) -> bool:
        """Whether it has a stage of this name."""
        return self.program.op(local_name) is not None

    def op(self, local_name: str, kind: Kinds[Kind]) -> Kind | None:
        """A stage's op of a kind, whatever is wrapped around it; None where there is none."""
        return found(self.program.op(local_name), kind)

    def alter(self, local_name: str, kind: Kinds[Kind], make: Callable[[Kind], Any]) -> "Composite":
        """With a stage's op of a kind made another, in every layer, and what is wrapped around it as it was."""
        return replace(self, program=self.program.alter(local_name, kind, make))

    def with_op(self, local_name: str, make: Callable[[Any], Any]) -> "Composite":
        """With another op in a stage, made of the one that is there, whatever it is."""
        return replace(self, program=self.program.with_op(local_name, make))

    def reread(self, local_name: str, instead: dict[str, str]) -> "Composite":
        """With a stage that reads other values."""
        return replace(self, program=self.program.reread(local_name, instead))

    def pull(self, local_name: str, pull: Pull) -> "Composite":
        """With a stage that passes other cotangents back."""
        return replace(self, program=self.program.pull(local_name, pull))


def true_program(case: BlockCase, given: dict[str, Array]) -> Program:
    """The program of a case, with nothing altered; `given` are its exact inputs, of which it needs the mask."""
    c = case.config
    match case.op:
        case "rope":
            return Program((Stage("q_rope", _rotate(case), ("x",)),))
        case "attention":
            return Program(_attention(case, given, ("q", "k", "v"), merged=False))
        case "swiglu":
            return Program((Stage("act", SwiGLU(), ("gate", "up")),))
        case "gelu":
            return Program((Stage("act", _gelu(c), ("x",)),))
        case "pre_ln_block":
            return Program(_block(case, given))
        case "pre_ln_stack":
            stages: list[Stage] = []
            for layer in range(case.n_layers):
                x = f"{layer - 1}.out" if layer else "x"
                stages += [_in_layer(stage, f"{layer}.", x) for stage in _block(case, given)]
            return Program(tuple(stages))


def _block(case: BlockCase, given: dict[str, Array]) -> tuple[Stage, ...]:
    c = case.config
    norm = Norm(c.eps, c.weight_offset, c.norm == "layer_norm", c.order)
    q, k = "q", "k"
    stages = [Stage("attention_norm", norm, ("x", *_parameters(c, "attention_norm")))]
    stages += [
        Stage(name, Linear(c.d_head), ("attention_norm", *_parameters(c, f"attention.{name}"))) for name in ("q", "k", "v")
    ]
    if c.qk_norm:
        head_norm = replace(norm, centred=False)
        stages += [Stage(f"{name}_norm", head_norm, (name, f"attention.{name}_norm.weight")) for name in ("q", "k")]
        q, k = "q_norm", "k_norm"
    if c.rope != "none":
        stages += [Stage("q_rope", _rotate(case), (q,)), Stage("k_rope", _rotate(case), (k,))]
        q, k = "q_rope", "k_rope"
    keys, values = k, "v"
    if case.past:
        stages += [Stage("keys", Concatenate(), ("k_cache", k)), Stage("values", Concatenate(), ("v_cache", "v"))]
        keys, values = "keys", "values"
    stages += _attention(case, given, (q, keys, values), merged=True)
    stages += [
        Stage("attn_out", Linear(), ("attn", *_parameters(c, "attention.o"))),
        Stage("h", Add(), ("x", "attn_out")),
        Stage("ffn_norm", norm, ("h", *_parameters(c, "ffn_norm"))),
    ]
    if c.feed_forward == "swiglu":
        stages += [
            Stage("gate", Linear(), ("ffn_norm", *_parameters(c, "feed_forward.gate"))),
            Stage("up", Linear(), ("ffn_norm", *_parameters(c, "feed_forward.up"))),
            Stage("act", SwiGLU(), ("gate", "up")),
        ]
    else:
        stages += [Stage("up", Linear(), ("ffn_norm", *_parameters(c, "feed_forward.up"))), Stage("act", _gelu(c), ("up",))]
    stages += [
        Stage("ffn_out", Linear(), ("act", *_parameters(c, "feed_forward.down"))),
        Stage("out", Add(), ("h", "ffn_out")),
    ]
    return tuple(stages)


def _attention(case: BlockCase, given: dict[str, Array], reads: tuple[str, str, str], *, merged: bool) -> tuple[Stage, ...]:
    c, (q, k, v) = case.config, reads
    groups = tuple(head * c.n_kv_heads // c.n_heads for head in range(c.n_heads))
    mask = given["key_mask"] != 0 if "key_mask" in given else None
    visible = visible_keys(case.s, case.past + case.s, causal=c.causal, key_mask=mask)
    return (
        Stage("scores", DotProducts(1 / math.sqrt(c.d_head), groups), (q, k)),
        Stage("probs", Softmax(visible), ("scores",)),
        Stage("attn", Mix(groups, merged), ("probs", v)),
    )


def _rotate(case: BlockCase) -> Rotate:
    c, first = case.config, case.settings["position"]
    angles = rope_angles(np.arange(first, first + case.s, dtype=np.float64), c.d_head, base=c.rope_base)
    # base ** -exponent magnifies the exponent's rounding by log(base); the product with the position adds its own.
    return Rotate(angles, c.rope == "interleaved", growth=4.0 + math.log(c.rope_base))


def _gelu(c: BlockConfig) -> Gelu:
    return Gelu(approximate=c.feed_forward == "gelu_tanh")


def _parameters(c: BlockConfig, name: str) -> tuple[str, ...]:
    return tuple(known for known in c.parameters() if known.rpartition(".")[0] == name)


def _in_layer(stage: Stage, layer: str, x: str) -> Stage:
    """A block's stage as one of a stack's; the block's x is what the layer below gives, and a cache is nobody's."""
    return Stage(stage.local_name, stage.op, tuple(x if name == "x" else layer + name for name in stage.reads), layer)
