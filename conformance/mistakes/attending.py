"""Attention: who sees what, how scores become probabilities, and which heads belong together."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from conformance.block.anatomy import Composite
from conformance.block.machine import Machine, compute_dtype
from conformance.block.ops import Linear, Mix, Softmax
from conformance.block.wrappers import After, Before, Fused, Map, Measured, swapped
from conformance.case import Op
from conformance.mistakes.mistake import Mistake
from conformance.rounding import largest, round_to
from reference.attention import visible_keys

Array = np.ndarray

ATTENTION: tuple[Op, ...] = ("attention", "pre_ln_block", "pre_ln_stack")
MASKED: tuple[Op, ...] = ("attention", "pre_ln_block")  # a stack is asked for without cache or padding, and with grouped heads
BLOCKS: tuple[Op, ...] = ("pre_ln_block", "pre_ln_stack")
WINDOW = 4


def _sees(
    visible: Callable[[Composite, Array, Array, Array], Array], only: Callable[[Composite], bool] = lambda composite: True
) -> Callable[[Composite], Composite]:
    """Other keys are visible: a function of the visible ones, of the queries' positions [s, 1] and of the keys' [t]."""

    def alter(composite: Composite) -> Composite:
        case = composite.case
        t = case.past + case.s
        query, key = np.arange(case.past, t)[:, None], np.arange(t)
        change: Callable[[Softmax], Softmax] = lambda op: replace(op, visible=visible(composite, op.visible, query, key))  # noqa: E731
        return composite.with_op("probs", change) if only(composite) else composite

    return alter


def _is_causal(composite: Composite) -> bool:
    return composite.config.causal


def _has_mask(composite: Composite) -> bool:
    return composite.case.key_mask != "absent"


def _all(visible: Array) -> Array:
    """The keys that padding leaves, which the last query sees all of."""
    return np.broadcast_to(visible[..., -1:, :], visible.shape)


def _without_mask(composite: Composite) -> Array:
    case = composite.case
    return visible_keys(case.s, case.past + case.s, causal=composite.config.causal)


def _inverted(composite: Composite, visible: Array, query: Array, key: Array) -> Array:
    return _without_mask(composite) & ~_all(visible)


def _of_queries(composite: Composite, visible: Array, query: Array, key: Array) -> Array:
    rows = _all(visible)[..., -1, composite.case.past :]  # batch 1 s
    return _without_mask(composite) & rows[..., None]


def _of_first_sequence(composite: Composite, visible: Array, query: Array, key: Array) -> Array:
    return np.broadcast_to(visible[:1], visible.shape)


def _masked(value: Callable[[str], float]) -> Callable[[Composite], Composite]:
    """So much is added to the scores of hidden keys, in the compute dtype."""

    def alter(composite: Composite) -> Composite:
        dtype = compute_dtype(composite.case.dtype)

        def masked(op: Softmax) -> Before:
            lowered = Map(lambda scores: np.where(op.visible, scores, round_to(scores + value(dtype), dtype)))
            return Before(replace(op, visible=np.ones_like(op.visible)), lowered)

        return composite.with_op("probs", masked)

    return alter


def _softmax(make: Callable[[Softmax], object]) -> Callable[[Composite], Composite]:
    return lambda composite: composite.with_op("probs", make)


def _mask_multiplies(op: Softmax) -> object:
    zeroed = Map(lambda scores: scores * op.visible, lambda dy, scores: dy * op.visible)
    return Before(replace(op, visible=np.ones_like(op.visible)), zeroed)


def _mask_after_softmax(op: Softmax) -> object:
    zeroed = Map(lambda probs: probs * op.visible, lambda dy, probs: dy * op.visible)
    return After(replace(op, visible=np.ones_like(op.visible)), zeroed)


def _zero_by_zero(op: Softmax) -> object:
    sees = np.any(op.visible, axis=-1, keepdims=True)
    return After(op, Map(lambda probs: np.where(sees, probs, np.nan), lambda dy, probs: np.where(sees, dy, np.nan)))


@dataclass(frozen=True)
class _OffByOne(Measured):
    """A softmax with one key more, whose score is zero and whose value nobody reads."""

    op: Softmax

    def forward(self, m: Machine, scores: Array) -> Array:
        return self._wider().forward(m, self._with_zero(scores))[..., :-1]

    def vjp(self, m: Machine, dy: Array, scores: Array) -> tuple[Array, ...]:
        (dscores,) = self._wider().vjp(m, self._with_zero(dy), self._with_zero(scores))
        return (dscores[..., :-1],)

    def _wider(self) -> Softmax:
        return replace(self.op, visible=np.concatenate([self.op.visible, np.ones_like(self.op.visible[..., :1])], axis=-1))

    def _with_zero(self, a: Array) -> Array:
        return np.concatenate([a, np.zeros_like(a[..., :1])], axis=-1)


@dataclass(frozen=True)
class _Unshifted(Softmax):
    """Without the row's maximum subtracted: exponentials overflow in float32, whose largest logarithm is 88.7."""

    def forward(self, m: Machine, scores: Array) -> Array:
        exponentials = np.exp(np.where(self.visible, scores, -np.inf))
        exponentials = np.where(exponentials > largest("float32"), np.inf, exponentials)
        total = np.sum(exponentials, axis=-1, keepdims=True)
        return exponentials / np.where(total == 0, 1.0, total)


def _unshifted(composite: Composite) -> Composite:
    if composite.case.dtype == "float64":
        return composite
    return composite.with_op("probs", lambda op: _Unshifted(op.visible, op.inner))


def _over_queries(op: Softmax) -> object:
    return swapped(replace(op, visible=np.swapaxes(op.visible, -1, -2)), -1, -2)


def _capped(scores: Array) -> Array:
    return CAP * np.tanh(scores / CAP)


CAP = 50.0
CAPS = Map(_capped, lambda dy, scores: dy / np.cosh(scores / CAP) ** 2)
BASE_2 = Map(lambda scores: scores * math.log(2), lambda dy, scores: dy * math.log(2))


def _scaled(scale: Callable[[Composite], float]) -> Callable[[Composite], Composite]:
    """The scores times so much more."""
    return lambda composite: composite.with_op("scores", lambda op: replace(op, scale=op.scale * scale(composite)))


def _grouped(group: Callable[[int, int, int], int], *names: str) -> Callable[[Composite], Composite]:
    """Query head i of n reads the key or value head group(i, n, n_kv)."""

    def alter(composite: Composite) -> Composite:
        n, n_kv = composite.config.n_heads, composite.config.n_kv_heads
        for name in names or ("scores", "attn"):
            composite = composite.change(name, groups=tuple(group(head, n, n_kv) for head in range(n)))
        return composite

    return alter


def _merged_as_they_lie(op: Mix) -> object:
    """[batch, h, s, d] read as [batch, s, h·d]."""
    heads = len(op.groups)

    def split(a: Array) -> Array:
        return a.reshape(*a.shape[:2], heads, -1)

    return After(
        op,
        Map(
            lambda y: np.swapaxes(split(y), 1, 2).reshape(y.shape),
            lambda dy, y: np.swapaxes(dy.reshape(len(y), heads, y.shape[1], -1), 1, 2).reshape(y.shape),
        ),
    )


def _features_before_heads(op: Linear) -> object:
    """A projection's rows read as [d_head, h] instead of [h, d_head]."""

    def split(y: Array) -> Array:
        return np.swapaxes(y.reshape(*y.shape[:-2], y.shape[-1], y.shape[-2]), -1, -2)

    return After(op, Map(split, lambda dy, y: np.swapaxes(dy, -1, -2).reshape(y.shape)))


def _split_features_first(composite: Composite) -> Composite:
    for name in ("q", "k", "v"):
        composite = composite.with_op(name, _features_before_heads)
    return composite


def _fused_by_group(composite: Composite) -> Composite:
    """The fused rows stand as all queries, all keys, all values; they are read group by group."""
    c = composite.config
    queries = c.n_heads // c.n_kv_heads
    rows = np.arange((c.n_heads + 2 * c.n_kv_heads) * c.d_head).reshape(c.n_kv_heads, queries + 2, c.d_head)
    takes = {"q": rows[:, :queries], "k": rows[:, queries], "v": rows[:, queries + 1]}
    parameters = [name for name in c.parameters() if name.split(".")[:2] in (["attention", part] for part in "qkv")]
    parameters.sort(key=lambda name: name.endswith("bias"))
    for name, take in takes.items():
        op = Fused(tuple(take.reshape(-1).tolist()), c.d_head)
        composite = replace(
            composite,
            program=composite.program.each(
                name,
                lambda stage, op=op: replace(
                    stage, op=op, reads=(stage.reads[0], *(stage.layer + parameter for parameter in parameters))
                ),
            ),
        )
    return composite


def _queries_and_keys_swapped(composite: Composite) -> Composite:
    if composite.case.op == "attention":
        same = composite.config.n_heads == composite.config.n_kv_heads and not composite.case.past
        return composite.reread("scores", {"q": "k", "k": "q"}) if same else composite
    return _weights_swapped(composite, "q", "k") if composite.config.n_heads == composite.config.n_kv_heads else composite


def _keys_and_values_swapped(composite: Composite) -> Composite:
    if composite.case.op == "attention":
        return composite.reread("scores", {"k": "v"}).reread("attn", {"v": "k"})
    return _weights_swapped(composite, "k", "v")


def _weights_swapped(composite: Composite, first: str, second: str) -> Composite:
    for one, other in ((first, second), (second, first)):
        swap = {f"attention.{one}.{kind}": f"attention.{other}.{kind}" for kind in ("weight", "bias")}
        composite = composite.reread(one, swap)
    return composite


def _prepended(composite: Composite) -> Composite:
    keys = next((stage.reads[1] for stage in composite.program.stages if stage.local_name == "keys"), "")
    swap = {"k_cache": keys, keys: "k_cache"}
    return composite.reread("keys", swap).reread("values", {"v_cache": "v", "v": "v_cache"})


def _lowest(dtype: str) -> float:
    return -largest(dtype)


FLOAT64 = "a block in float64 is asked for without a cache and without padding; attention itself shows it"
FLOAT32 = {
    f"pre_ln_block/{dtype}": "a block that is not causal is asked for in float32"
    for dtype in ("float64", "bfloat16", "float16")
}
PLAIN = {"pre_ln_block/float64": FLOAT64}
VISIBLE = (
    Mistake(
        "causal_mask_missing",
        "queries see the keys that come after them",
        _sees(lambda composite, visible, query, key: _all(visible), _is_causal),
        "All rows but the last; a single query hides it.",
        ops=ATTENTION,
    ),
    Mistake(
        "causal_mask_one_too_few",
        "a query does not see its own key",
        _sees(lambda composite, visible, query, key: visible & (key < query), _is_causal),
        "Every row; the first sees nothing at all.",
        "minimind#631",
        ATTENTION,
    ),
    Mistake(
        "causal_mask_one_too_many",
        "a query sees the key after its own",
        _sees(lambda composite, visible, query, key: _all(visible) & (key <= query + 1), _is_causal),
        "All rows but the last.",
        "flashinfer#348",
        ATTENTION,
    ),
    Mistake(
        "causal_mask_without_cache",
        "query i sees the first i + 1 keys, however many are cached",
        _sees(lambda composite, visible, query, key: visible & (key <= query - composite.case.past), _is_causal),
        "Without cached keys nothing.",
        "flashinfer#348, llama#900",
        MASKED,
        PLAIN,
    ),
    Mistake(
        "causal_mask_unasked",
        "queries do not see what comes after them, though they should",
        _sees(lambda composite, visible, query, key: visible & (key <= query), lambda composite: not _is_causal(composite)),
        "All rows but the last.",
        "planted: a default of the wrong kind of model",
        MASKED,
        FLOAT32,
    ),
    Mistake(
        "window_unasked",
        f"a query sees the last {WINDOW} keys only",
        _sees(lambda composite, visible, query, key: visible & (key > query - WINDOW)),
        "Sequences that fit into the window hide it.",
        "planted: the sliding window of another model",
        ATTENTION,
    ),
    Mistake(
        "cache_not_seen",
        "cached keys are not attended to",
        _sees(lambda composite, visible, query, key: visible & (key >= composite.case.past)),
        "Without cached keys nothing.",
        "planted: a mask of the new keys' size",
        MASKED,
        PLAIN,
    ),
    Mistake(
        "cache_behind",
        "new keys and values stand before the cached ones",
        _prepended,
        "The mask then hides the wrong keys; where all of them are visible nothing is wrong.",
        "planted: the order of two arguments",
        ("pre_ln_block",),
        {"float64": FLOAT64},
    ),
    Mistake(
        "key_mask_ignored",
        "padding is attended to",
        _sees(lambda composite, visible, query, key: _without_mask(composite), _has_mask),
        "Rows that see padding.",
        "planted: an argument that is never passed on",
        MASKED,
        PLAIN,
    ),
    Mistake(
        "key_mask_inverted",
        "only padding is attended to",
        _sees(_inverted, _has_mask),
        "All rows.",
        "planted: a mask of what to hide taken for one of what to see",
        MASKED,
        PLAIN,
    ),
    Mistake(
        "key_mask_on_queries",
        "the key mask hides queries instead of keys",
        _sees(_of_queries, _has_mask),
        "Rows of padding are zero, and padding is attended to.",
        "planted: a mask broadcast along the other axis",
        MASKED,
        PLAIN,
    ),
    Mistake(
        "key_mask_of_first_sequence",
        "the first sequence's key mask holds for all",
        _sees(_of_first_sequence, _has_mask),
        "Sequences of one length hide it.",
        "planted: a mask without its batch",
        MASKED,
        PLAIN,
    ),
    Mistake(
        "mask_multiplies",
        "hidden scores are made zero, not minus infinity",
        _softmax(_mask_multiplies),
        "A zero is a score like any other: hidden keys take their share.",
        "planted: a product for a sum",
        ATTENTION,
    ),
    Mistake(
        "mask_after_softmax",
        "hidden keys are taken out after the softmax",
        _softmax(_mask_after_softmax),
        "Rows do not sum to one.",
        "planted: the order of two lines",
        ATTENTION,
    ),
    Mistake(
        "mask_of_minus_100",
        "-100 is added to hidden scores",
        _masked(lambda dtype: -100.0),
        "Hidden keys that score 100 more than visible ones come back; a query that sees no key sees all of them.",
        "transformers#17306",
        MASKED,
        PLAIN,
    ),
    Mistake(
        "mask_of_minus_1e4",
        "-10000 is added to hidden scores",
        _masked(lambda dtype: -1e4),
        "A query that sees no key averages them all.",
        "transformers#17306",
        MASKED,
        PLAIN,
    ),
    Mistake(
        "mask_of_minus_1e9",
        "-1e9 is added to hidden scores",
        _masked(lambda dtype: -1e9),
        "A query that sees no key averages them all.",
        "flashinfer#4401",
        MASKED,
        PLAIN,
    ),
    Mistake(
        "mask_of_lowest_number",
        "the lowest number is added to hidden scores",
        _masked(_lowest),
        "A query that sees no key averages them all.",
        "transformers#17306",
        MASKED,
        PLAIN,
    ),
    Mistake(
        "hidden_row_is_nan",
        "a query that sees no key is zero by zero",
        _softmax(_zero_by_zero),
        "NaN in that row, and in every gradient.",
        "transformers#17306, flashinfer#4401",
        MASKED,
        PLAIN,
    ),
)
SOFTMAX = (
    Mistake(
        "scale_missing",
        "scores are not scaled",
        _scaled(lambda composite: math.sqrt(composite.config.d_head)),
        "Probabilities are too sharp.",
        "mlc-llm#3426",
        ATTENTION,
    ),
    Mistake(
        "scale_twice",
        "scores are scaled by 1/d_head",
        _scaled(lambda composite: 1 / math.sqrt(composite.config.d_head)),
        "Probabilities are too even.",
        "mlc-llm#3426: in the queries and in the kernel",
        ATTENTION,
    ),
    Mistake(
        "scale_of_d_model",
        "scores are scaled by the root of d_model instead of d_head",
        _scaled(lambda composite: math.sqrt(composite.config.d_head / composite.config.d_model)),
        "Probabilities are too even; a single head hides it.",
        "mlc-llm#3426",
        BLOCKS,
    ),
    Mistake(
        "scores_capped",
        f"scores are capped softly at {CAP:g}",
        lambda composite: composite.with_op("scores", lambda op: After(op, CAPS)),
        "Large scores are too small; small ones nearly hide it.",
        "planted: the capping of another model",
        MASKED,
    ),
    Mistake(
        "softmax_over_queries",
        "the softmax runs over the queries",
        _softmax(_over_queries),
        "Columns sum to one instead of rows.",
        "planted: the wrong axis",
        ATTENTION,
    ),
    Mistake(
        "softmax_base_2",
        "powers of two for powers of e",
        _softmax(lambda op: Before(op, BASE_2)),
        "Probabilities are too even.",
        "planted: exp2 without its factor",
        ATTENTION,
    ),
    Mistake(
        "softmax_plus_one",
        "the denominator has an extra one",
        _softmax(_OffByOne),
        "Rows sum to less than one.",
        "planted: the softmax of another model",
        ATTENTION,
    ),
    Mistake(
        "softmax_without_maximum",
        "the row's maximum is not subtracted before the exponential",
        _unshifted,
        "Scores beyond 88 overflow; without them nothing.",
        "planted: the formula as it stands in a book",
        MASKED,
        {"float64": "an exponential of float64 overflows at 709, far beyond any score that is asked for"},
    ),
)
HEADS = (
    Mistake(
        "key_heads_tiled",
        "key and value heads are tiled, not repeated: query head i reads head i mod n_kv",
        _grouped(lambda head, n, n_kv: head % n_kv),
        "As many key heads as query heads, or one, hide it.",
        "onnx#7274, axlearn#842",
        ATTENTION,
    ),
    Mistake(
        "value_heads_tiled",
        "value heads are tiled, not repeated",
        _grouped(lambda head, n, n_kv: head % n_kv, "attn"),
        "As many value heads as query heads, or one, hide it.",
        "onnx#7274",
        ATTENTION,
    ),
    Mistake(
        "first_key_head_for_all",
        "every query head reads the first key and value head",
        _grouped(lambda head, n, n_kv: 0),
        "A single key head hides it.",
        "planted: a head read as a broadcast axis",
        ATTENTION,
    ),
    Mistake(
        "key_heads_reversed",
        "key and value heads are read from the last to the first",
        _grouped(lambda head, n, n_kv: n_kv - 1 - head * n_kv // n),
        "A single key head hides it.",
        ops=ATTENTION,
    ),
    Mistake(
        "heads_merged_untransposed",
        "heads are merged without being brought next to each other",
        lambda composite: composite.with_op("attn", _merged_as_they_lie),
        "Rows and heads are mixed up; a single query hides it.",
        "planted: a reshape without its transpose",
        ATTENTION,
    ),
    Mistake(
        "heads_split_features_first",
        "projections are split into d_head parts of n_heads features",
        _split_features_first,
        "Every head has features of all.",
        "planted: two sizes in the wrong order",
        BLOCKS,
    ),
    Mistake(
        "fused_projection_split_by_group",
        "one projection for q, k and v is read group by group, though it is stored one after the other",
        _fused_by_group,
        "Heads get each other's weights.",
        "planted: a checkpoint of another layout",
        BLOCKS,
    ),
    Mistake(
        "queries_and_keys_swapped",
        "queries and keys are exchanged",
        _queries_and_keys_swapped,
        "Scores are transposed before the mask; grouped queries do not allow it.",
        "planted: the order of two arguments",
        MASKED,
    ),
    Mistake(
        "keys_and_values_swapped",
        "keys and values are exchanged",
        _keys_and_values_swapped,
        "Everything.",
        "planted: the order of two arguments",
        ATTENTION,
    ),
)
MISTAKES = (*VISIBLE, *SOFTMAX, *HEADS)
