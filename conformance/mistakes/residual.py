"""The block's wiring: what joins the residual stream and where, which norm stands where, and a stack's layers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from conformance.block.anatomy import Composite
from conformance.block.machine import Machine
from conformance.block.ops import Norm
from conformance.block.program import Stage
from conformance.block.wrappers import After, First, Map, Measured, NormedAdd, Weighted
from conformance.case import Op
from conformance.mistakes.mistake import Mistake
from conformance.rounding import HALF
from reference.rows import sum_rows

Array = np.ndarray

BLOCKS: tuple[Op, ...] = ("pre_ln_block", "pre_ln_stack")
BLOCK: tuple[Op, ...] = ("pre_ln_block",)
STACK: tuple[Op, ...] = ("pre_ln_stack",)
NORMS = ("attention_norm", "ffn_norm")
HEAD_NORMS = ("q_norm", "k_norm")


@dataclass(frozen=True)
class _AllHeads(Measured):
    """A norm of all heads of a position together; its weight is that of one head, as often as there are heads."""

    norm: Norm

    def forward(self, m: Machine, x: Array, weight: Array) -> Array:
        return self.norm.forward(m, x.reshape(*x.shape[:-2], -1), np.tile(weight, x.shape[-2])).reshape(x.shape)

    def vjp(self, m: Machine, dy: Array, x: Array, weight: Array) -> tuple[Array, ...]:
        flat = x.reshape(*x.shape[:-2], -1)
        dx, dweight = self.norm.vjp(m, dy.reshape(flat.shape), flat, np.tile(weight, x.shape[-2]))
        return dx.reshape(x.shape), dweight.reshape(x.shape[-2:]).sum(axis=0)


@dataclass(frozen=True)
class _OverPositions(Measured):
    """A norm of columns: of every feature over the positions; weight and bias are the features' own."""

    norm: Norm

    def forward(self, m: Machine, x: Array, weight: Array, *bias: Array) -> Array:
        x_hat = np.swapaxes(self._normed(m, np.swapaxes(x, -1, -2)), -1, -2)
        return m.store(x_hat) * (weight + self.norm.weight_offset) + (bias[0] if bias else 0.0)

    def vjp(self, m: Machine, dy: Array, x: Array, weight: Array, *bias: Array) -> tuple[Array, ...]:
        columns = np.swapaxes(x, -1, -2)
        x_hat = np.swapaxes(self._normed(m, columns), -1, -2)
        g = np.swapaxes(dy * (weight + self.norm.weight_offset), -1, -2)
        dx, _ = replace(self.norm, weight_offset=0.0).vjp(m, g, columns, np.ones(columns.shape[-1]))
        gradients = (np.swapaxes(dx, -1, -2), sum_rows(dy * x_hat), sum_rows(dy))
        return gradients if bias else gradients[:2]

    def _normed(self, m: Machine, columns: Array) -> Array:
        return replace(self.norm, weight_offset=0.0).forward(m, columns, np.ones(columns.shape[-1]))


def _add(name: str, stream: float, branch: float) -> Callable[[Composite], Composite]:
    return lambda composite: composite.with_op(name, lambda op: Weighted(stream, branch))


def _reads(name: str, instead: dict[str, str]) -> Callable[[Composite], Composite]:
    return lambda composite: composite.reread(name, instead)


def _norms(alter: Callable[[Norm], Any], names: tuple[str, ...] = NORMS) -> Callable[[Composite], Composite]:
    def altered(composite: Composite) -> Composite:
        for name in names:
            composite = composite.with_op(name, alter)
        return composite

    return altered


def _as_it_is(op: Norm) -> After:
    """A norm that no case of the norms is about, and whose intervals are not theirs."""
    return After(op, Map(lambda y: y))


def _eps(value: float) -> Callable[[Composite], Composite]:
    return _norms(lambda op: replace(op, eps=value))


def _one_norm(composite: Composite) -> Composite:
    """gate and up read what the queries read."""
    for name in ("gate", "up"):
        composite = composite.reread(name, {"ffn_norm": "attention_norm"})
    return composite


def _weights_of(name: str, other: str) -> Callable[[Composite], Composite]:
    return _reads(name, {f"{name}.{kind}": f"{other}.{kind}" for kind in ("weight", "bias")})


def _weights_swapped(composite: Composite) -> Composite:
    first, second = NORMS
    return _weights_of(second, first)(_weights_of(first, second)(composite))


def _head_weights_swapped(composite: Composite) -> Composite:
    for name, other in (HEAD_NORMS, HEAD_NORMS[::-1]):
        composite = composite.reread(name, {f"attention.{name}.weight": f"attention.{other}.weight"})
    return composite


def _normed_later(*, whole: bool) -> Callable[[Composite], Composite]:
    """No norm before a branch, but one of it, or of its sum with the stream."""

    def alter(composite: Composite) -> Composite:
        program = composite.program
        for name, add in zip(NORMS, ("h", "out"), strict=True):
            norm = program.op(name)
            parameters = [read for read in composite.config.parameters() if read.startswith(f"{name}.")]

            def joined(stage: Stage, norm: Norm = norm, parameters: list[str] = parameters) -> Stage:
                reads = (*stage.reads, *(stage.layer + parameter for parameter in parameters))
                return replace(stage, op=NormedAdd(norm, whole), reads=reads)

            program = program.each(add, joined).with_op(name, lambda op: First())
        return replace(composite, program=program)

    return alter


def _sandwiched(composite: Composite) -> Composite:
    program = composite.program

    def joined(stage: Stage) -> Stage:
        name = NORMS[stage.local_name == "out"]
        parameters = [read for read in composite.config.parameters() if read.startswith(f"{name}.")]
        reads = (*stage.reads, *(stage.layer + parameter for parameter in parameters))
        return replace(stage, op=NormedAdd(program.op(name), whole=False), reads=reads)

    return replace(composite, program=program.each("h", joined).each("out", joined))


def _other_order(composite: Composite) -> Composite:
    if composite.case.dtype not in HALF:
        return composite
    order = "scale_then_cast" if composite.config.order == "cast_then_scale" else "cast_then_scale"
    return _norms(lambda op: replace(op, order=order))(composite)


def _parameters_of(layer: Callable[[int, int], int]) -> Callable[[Composite], Composite]:
    """Layer i of n takes the parameters of another."""

    def alter(composite: Composite) -> Composite:
        n, local = composite.case.n_layers, composite.config.parameters()

        def taken(stage: Stage) -> Stage:
            own = {stage.layer + name: f"{layer(int(stage.layer[:-1]), n)}.{name}" for name in local}
            return replace(stage, reads=tuple(own.get(name, name) for name in stage.reads))

        return replace(composite, program=replace(composite.program, stages=tuple(map(taken, composite.program.stages))))

    return alter


def _in_layer(layer: Callable[[int], int], names: tuple[str, ...], alter: Callable[[Stage], Stage]) -> Any:
    def altered(composite: Composite) -> Composite:
        prefix = f"{layer(composite.case.n_layers)}."
        stages = tuple(
            alter(stage) if stage.layer == prefix and stage.local_name in names else stage for stage in composite.program.stages
        )
        return replace(composite, program=replace(composite.program, stages=stages))

    return altered


def _without_branch(stage: Stage) -> Stage:
    return replace(stage, op=Weighted(1.0, 0.0))


def _unnormed(stage: Stage) -> Stage:
    return replace(stage, op=First())


def _reads_stack_input(composite: Composite) -> Composite:
    """Each layer's branch and residual begin at x again."""
    program = composite.program
    for layer in range(1, composite.case.n_layers):
        below = f"{layer - 1}.out"
        stages = tuple(
            replace(stage, reads=tuple("x" if name == below else name for name in stage.reads)) for stage in program.stages
        )
        program = replace(program, stages=stages)
    return replace(composite, program=program)


ORDER: dict[str, str] = dict.fromkeys(("float64", "float32"), "nothing is cast where the storage dtype is the compute dtype")
CAST = (
    "the norms' order of casting moves every third element by one ulp, which matmuls average out: it is within a block's noise"
)
OFFSET: dict[str, str] = dict.fromkeys(
    ("float64", "bfloat16", "float16"), "a block whose norms have an offset is asked for in float32"
)
RESIDUAL = (
    Mistake(
        "attention_residual_missing",
        "x is not added to attention's output",
        _add("h", 0.0, 1.0),
        "h is attention's output alone.",
        ops=BLOCKS,
    ),
    Mistake(
        "feed_forward_residual_missing",
        "h is not added to the feed-forward layer's output",
        _add("out", 0.0, 1.0),
        "out is the feed-forward layer's output alone.",
        ops=BLOCKS,
    ),
    Mistake(
        "attention_residual_twice",
        "x is added to attention's output twice",
        _add("h", 2.0, 1.0),
        "The norm that follows hides some of it.",
        "planted: by the block and by the attention",
        BLOCKS,
    ),
    Mistake(
        "feed_forward_residual_twice",
        "h is added to the feed-forward layer's output twice",
        _add("out", 2.0, 1.0),
        "out is too large by h.",
        "planted: by the block and by the layer",
        BLOCKS,
    ),
    Mistake(
        "sums_halved",
        "both sums are halved",
        lambda composite: _add("out", 0.5, 0.5)(_add("h", 0.5, 0.5)(composite)),
        "h and out are too small.",
        "planted: a mean for a sum",
        BLOCKS,
    ),
    Mistake(
        "attention_left_out",
        "attention's output is not added to x",
        _add("h", 1.0, 0.0),
        "h is x, and attention has no gradient.",
        ops=BLOCKS,
    ),
    Mistake(
        "feed_forward_left_out",
        "the feed-forward layer's output is not added to h",
        _add("out", 1.0, 0.0),
        "out is h, and the layer has no gradient.",
        ops=BLOCKS,
    ),
    Mistake(
        "residual_from_normed_x",
        "attention's output is added to the normalised x",
        _reads("h", {"x": "attention_norm"}),
        "h has x normalised; out keeps the scale of one layer.",
        "pytorch#61165, OLMo#680",
        BLOCKS,
    ),
    Mistake(
        "residual_from_normed_h",
        "the feed-forward layer's output is added to the normalised h",
        _reads("out", {"h": "ffn_norm"}),
        "out has h normalised.",
        "pytorch#61165, OLMo#680",
        BLOCKS,
    ),
    Mistake(
        "second_residual_from_x",
        "the feed-forward layer's output is added to x instead of h",
        _reads("out", {"h": "x"}),
        "out lacks attention's output.",
        "planted: a variable that is not overwritten",
        BLOCKS,
    ),
    Mistake(
        "parallel_branches",
        "attention and the feed-forward layer both read x",
        _reads("ffn_norm", {"h": "x"}),
        "The feed-forward layer does not see what attention found.",
        "OLMo#222",
        BLOCKS,
    ),
    Mistake(
        "parallel_branches_of_one_norm",
        "attention and the feed-forward layer read the same normalised x",
        _one_norm,
        "The feed-forward layer does not see what attention found, and its norm has no gradient.",
        "OLMo#222",
        BLOCKS,
    ),
    Mistake(
        "post_ln",
        "the sums are normalised, not what the branches read",
        _normed_later(whole=True),
        "Everything; out has the norm's scale.",
        "planted: the transformer of 2017",
        BLOCKS,
    ),
    Mistake(
        "branches_normed_later",
        "the norms stand after attention and the feed-forward layer, not before",
        _normed_later(whole=False),
        "Everything.",
        "planted: x + norm(f(x)) for x + f(norm(x))",
        BLOCKS,
    ),
    Mistake(
        "branches_normed_twice",
        "what attention and the feed-forward layer give is normalised once more",
        _sandwiched,
        "Both branches have the scale of the norms' weights.",
        "planted: the sandwich of another model",
        BLOCKS,
    ),
)
NORM = (
    Mistake(
        "attention_norm_missing",
        "attention reads x as it is",
        _norms(lambda op: First(), NORMS[:1]),
        "Scores and values have the scale of x.",
        ops=BLOCKS,
    ),
    Mistake(
        "ffn_norm_missing",
        "the feed-forward layer reads h as it is",
        _norms(lambda op: First(), NORMS[1:]),
        "gate and up have the scale of h.",
        ops=BLOCKS,
    ),
    Mistake(
        "norm_weights_swapped",
        "each of the two norms has the other's parameters",
        _weights_swapped,
        "Equal weights hide it.",
        "planted: a checkpoint's names",
        BLOCKS,
    ),
    Mistake(
        "norm_weights_shared",
        "the second norm has the parameters of the first",
        _weights_of("ffn_norm", "attention_norm"),
        "Equal weights hide it; the second norm has no gradient.",
        "OLMo#222",
        BLOCKS,
    ),
    Mistake(
        "norm_eps_missing",
        "the norms have no eps",
        _eps(0.0),
        "Rows near eps are too large.",
        "apache/tvm#15856",
        BLOCK,
    ),
    Mistake(
        "norm_eps_1e-3",
        "the norms' eps is 1e-3, whatever is asked for",
        _eps(1e-3),
        "Rows near eps are too small.",
        "keras-hub#642",
        BLOCK,
    ),
    Mistake(
        "norm_eps_1e-6",
        "the norms' eps is 1e-6, whatever is asked for",
        _eps(1e-6),
        "Rows near eps are too large.",
        "meta-llama/llama#771, torchtitan#4395",
        BLOCK,
    ),
    Mistake(
        "norm_eps_1e-12",
        "the norms' eps is 1e-12, whatever is asked for",
        _eps(1e-12),
        "Rows near eps are too large.",
        "keras-hub#642",
        BLOCK,
    ),
    Mistake(
        "norm_of_the_other_kind",
        "LayerNorm stands for RMSNorm, or RMSNorm for LayerNorm",
        _norms(lambda op: _as_it_is(replace(op, centred=not op.centred))),
        "Rows without a mean hide it.",
        "keras#22393",
        BLOCKS,
    ),
    Mistake(
        "norm_of_the_other_order",
        "the norms cast on the other side of the weight",
        _other_order,
        "A third of the elements is off by one ulp.",
        "TransformerEngine#1132, transformers#38131",
        BLOCKS,
        ORDER,
        needs_taps=dict.fromkeys(HALF, CAST),
    ),
    Mistake(
        "norm_offset_missing",
        "one is not added to the norms' weights",
        _norms(lambda op: replace(op, weight_offset=0.0)),
        "A weight stored whole hides it.",
        "llama.cpp#5631",
        BLOCK,
        OFFSET,
    ),
    Mistake(
        "norm_offset_twice",
        "one is added to the norms' weights twice",
        _norms(lambda op: _as_it_is(replace(op, weight_offset=2 * op.weight_offset))),
        "A weight stored whole hides it.",
        "llama.cpp#5631: by the converter of the checkpoint and by the model",
        BLOCK,
        OFFSET,
    ),
    Mistake(
        "norm_offset_unasked",
        "one is added to the norms' weights, which are stored whole",
        _norms(lambda op: replace(op, weight_offset=1.0)),
        "What branches read is too large by x_hat.",
        "llama.cpp#5631",
        BLOCKS,
    ),
    Mistake(
        "norm_over_positions",
        "the norms' statistics are those of a feature over all positions",
        _norms(_OverPositions),
        "Every row.",
        "planted: the wrong axis",
        BLOCKS,
    ),
    Mistake(
        "qk_norm_missing",
        "queries and keys are not normalised",
        _norms(lambda op: First(), HEAD_NORMS),
        "Scores have the scale of queries and keys.",
        "vllm#16311",
        BLOCK,
    ),
    Mistake(
        "qk_norm_of_keys_missing",
        "queries are normalised, keys are not",
        _norms(lambda op: First(), HEAD_NORMS[1:]),
        "Scores have the scale of the keys.",
        "planted: one of two lines",
        BLOCK,
    ),
    Mistake(
        "qk_norm_over_all_heads",
        "queries and keys are normalised over all heads together",
        _norms(_AllHeads, HEAD_NORMS),
        "Heads keep their scale relative to each other; a single head hides it.",
        "vllm#16311",
        BLOCK,
    ),
    Mistake(
        "qk_norm_weights_swapped",
        "queries have the norm's weight of the keys, and keys that of the queries",
        _head_weights_swapped,
        "Without a rotation between them nothing: a score has the product of both.",
        "planted: a checkpoint's names",
        BLOCK,
    ),
)
LAYERS = (
    Mistake(
        "layers_reversed",
        "the layers' parameters are taken from the last to the first",
        _parameters_of(lambda layer, n: n - 1 - layer),
        "Everything; a single layer hides it.",
        ops=STACK,
    ),
    Mistake(
        "layers_share_parameters",
        "every layer has the first one's parameters",
        _parameters_of(lambda layer, n: 0),
        "Everything from the second layer on, and no other layer has a gradient.",
        "planted: a closure over the loop's variable",
        STACK,
    ),
    Mistake(
        "layers_shifted",
        "each layer has the next one's parameters, the last the first's",
        _parameters_of(lambda layer, n: (layer + 1) % n),
        "Everything.",
        "planted: an index off by one",
        STACK,
    ),
    Mistake(
        "first_layer_missing",
        "the first layer is skipped",
        _in_layer(lambda n: 0, ("h", "out"), _without_branch),
        "Everything; the first layer has no gradient.",
        "planted: a range that begins at one",
        STACK,
    ),
    Mistake(
        "last_layer_missing",
        "the last layer is skipped",
        _in_layer(lambda n: n - 1, ("h", "out"), _without_branch),
        "out is the layer before's; the last layer has no gradient.",
        "planted: a range that ends too early",
        STACK,
    ),
    Mistake(
        "first_norm_of_last_layer_missing",
        "the last layer's attention reads its x as it is",
        _in_layer(lambda n: n - 1, ("attention_norm",), _unnormed),
        "The last layer alone.",
        "planted: one layer that is made otherwise",
        STACK,
    ),
    Mistake(
        "layers_read_first_x",
        "every layer reads the stack's x",
        _reads_stack_input,
        "Only the last layer is left.",
        "planted: a variable that is not overwritten",
        STACK,
    ),
)
MISTAKES = (*RESIDUAL, *NORM, *LAYERS)
