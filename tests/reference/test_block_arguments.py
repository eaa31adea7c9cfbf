"""What rope, attention, the nonlinearities and the block refuse, and how they say it."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import reference
from reference import PRESETS, small

Array = np.ndarray

Q, KV, SCORES = (2, 3, 4, 6), (2, 5, 2, 6), (2, 7)
OPS: dict[str, tuple[Callable, dict[str, tuple[int, ...]]]] = {
    "rope": (reference.rope, {"x": Q, "positions": Q[1:2]}),
    "rope_vjp": (reference.rope_vjp, {"dy": Q, "positions": Q[1:2]}),
    "attention": (reference.attention, {"q": Q, "k": KV, "v": KV}),
    "attention_vjp": (reference.attention_vjp, {"dy": Q, "q": Q, "k": KV, "v": KV}),
    "swiglu": (reference.swiglu, {"gate": SCORES, "up": SCORES}),
    "swiglu_vjp": (reference.swiglu_vjp, {"dy": SCORES, "gate": SCORES, "up": SCORES}),
    "geglu": (reference.geglu, {"gate": SCORES, "up": SCORES}),
    "geglu_vjp": (reference.geglu_vjp, {"dy": SCORES, "gate": SCORES, "up": SCORES}),
    "gelu": (reference.gelu, {"x": SCORES}),
    "gelu_vjp": (reference.gelu_vjp, {"dy": SCORES, "x": SCORES}),
}
ARGUMENTS = [(op, name) for op, (_, shapes) in OPS.items() for name in shapes]

CONFIG = small(PRESETS["minimind_2026"])
D, H_KV, D_HEAD = CONFIG.d_model, CONFIG.n_kv_heads, CONFIG.d_head
BLOCK = {"x": (2, 3, D), "k_cache": (2, 4, H_KV, D_HEAD), "v_cache": (2, 4, H_KV, D_HEAD)}
BLOCK_OPS = ["pre_ln_block", "pre_ln_block_vjp"]


def refuses(message: str) -> pytest.RaisesExc:
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def call(op: str, **changed: Array) -> object:
    function, shapes = OPS[op]
    return function(**{name: np.ones(shape) for name, shape in shapes.items()} | changed)


def call_block(op: str, *, parameters: dict[str, Array] | None = None, config=CONFIG, **changed: Array | None) -> object:
    """With every argument right but those that are given."""
    arguments = {name: np.ones(shape) for name, shape in BLOCK.items()} | changed
    if op == "pre_ln_block_vjp":
        arguments = {"dout": np.ones(BLOCK["x"])} | arguments
    return getattr(reference, op)(parameters=parameters or ones(), config=config, **arguments)


def ones() -> dict[str, Array]:
    return {name: np.ones(shape) for name, shape in CONFIG.parameters().items()}


@pytest.mark.parametrize(("op", "name"), ARGUMENTS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "int64", "bool"])
def test_any_dtype_but_float64_is_refused(op, name, dtype):
    with refuses(f"{op}: {name} is {dtype}; the golden computes in float64 only"):
        call(op, **{name: np.ones(OPS[op][1][name], dtype)})


@pytest.mark.parametrize(
    ("op", "name", "like"),
    [
        ("attention", "v", "k"),
        ("attention_vjp", "v", "k"),
        ("attention_vjp", "dy", "q"),
        ("swiglu", "up", "gate"),
        ("swiglu_vjp", "up", "gate"),
        ("swiglu_vjp", "dy", "gate"),
        ("gelu_vjp", "dy", "x"),
    ],
)
def test_what_must_be_alike_is(op, name, like):
    """Shapes that NumPy would broadcast are refused as well: they are never what was meant."""
    shape = OPS[op][1][like]
    for wrong in [(), shape[1:], (1, *shape[1:]), (*shape[:-1], 1)]:
        with refuses(f"{op}: {name} has shape {wrong}; with {like} of shape {shape} it must be {shape}"):
            call(op, **{name: np.ones(wrong)})


@pytest.mark.parametrize(("op", "name"), [("rope", "x"), ("rope_vjp", "dy")])
def test_rope_turns_pairs_of_heads_at_positions(op, name):
    with refuses(f"{op}: {name} has shape (3, 6); it must be [*batch, s, h, d_head]"):
        call(op, **{name: np.ones((3, 6))})
    with refuses(f"{op}: {name} has shape (3, 4, 5); its last axis must be even, for its features are turned in pairs"):
        call(op, **{name: np.ones((3, 4, 5))})
    for wrong in [(), (1,), (4,), (2, 3)]:
        with refuses(f"{op}: positions has shape {wrong}; with {name} of shape {Q} it must be (3,)"):
            call(op, positions=np.ones(wrong))


@pytest.mark.parametrize("op", ["attention", "attention_vjp"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"q": (4, 6)}, "q has shape (4, 6); it must be [*batch, s, h, d_head]"),
        ({"k": (6,)}, "k has shape (6,); it must be [*batch, s, h, d_head]"),
        ({"k": (5, 2, 6)}, f"k has shape (5, 2, 6); with q of shape {Q} it must be (2, 5, 2, 6)"),
        ({"k": (1, 5, 2, 6)}, f"k has shape (1, 5, 2, 6); with q of shape {Q} it must be (2, 5, 2, 6)"),
        ({"k": (2, 5, 2, 1)}, f"k has shape (2, 5, 2, 1); with q of shape {Q} it must be (2, 5, 2, 6)"),
        ({"k": (2, 5, 3, 6), "v": (2, 5, 3, 6)}, "4 query heads do not share 3 key heads evenly"),
        ({"k": (2, 5, 0, 6), "v": (2, 5, 0, 6)}, "4 query heads do not share 0 key heads evenly"),
        ({"k": (2, 2, 2, 6), "v": (2, 2, 2, 6)}, "3 queries are more than 2 keys, the last of which are their own"),
        ({"key_mask": (5,)}, f"key_mask has shape (5,); with k of shape {KV} it must be (2, 5)"),
        ({"key_mask": (2, 1)}, f"key_mask has shape (2, 1); with k of shape {KV} it must be (2, 5)"),
        ({"key_mask": (2, 5)}, "key_mask is float64; it must be bool"),
    ],
    ids=str,
)
def test_attention_asks_for_heads_that_fit(op, wrong, message):
    with refuses(f"{op}: {message}"):
        call(op, **{name: np.ones(shape) for name, shape in wrong.items()})


@pytest.mark.parametrize("op", BLOCK_OPS)
@pytest.mark.parametrize("shape", [(), (D,), (2, 3, D + 1), (2, 3, 1)], ids=str)
def test_the_block_asks_for_rows_of_d_model(op, shape):
    with refuses(f"{op}: x has shape {shape}; it must be [*batch, s, {D}], for that is d_model"):
        call_block(op, x=np.ones(shape))


def test_the_block_asks_for_a_cotangent_like_x():
    with refuses(f"pre_ln_block_vjp: dout has shape (3, {D}); with x of shape (2, 3, {D}) it must be (2, 3, {D})"):
        call_block("pre_ln_block_vjp", dout=np.ones((3, D)))
    with refuses("pre_ln_block_vjp: dout is float32; the golden computes in float64 only"):
        call_block("pre_ln_block_vjp", dout=np.ones((2, 3, D), np.float32))


@pytest.mark.parametrize("op", BLOCK_OPS)
@pytest.mark.parametrize("name", BLOCK)
def test_the_block_computes_in_float64_only(op, name):
    with refuses(f"{op}: {name} is float32; the golden computes in float64 only"):
        call_block(op, **{name: np.ones(BLOCK[name], np.float32)})


@pytest.mark.parametrize("op", BLOCK_OPS)
@pytest.mark.parametrize("name", CONFIG.parameters())
def test_the_block_asks_for_its_parameters(op, name):
    shape = CONFIG.parameters()[name]
    with refuses(f"{op}: parameter {name!r} is missing"):
        call_block(op, parameters={other: p for other, p in ones().items() if other != name})
    with refuses(f"{op}: {name} has shape {(1, *shape)}; it must be {shape}"):
        call_block(op, parameters=ones() | {name: np.ones((1, *shape))})
    with refuses(f"{op}: {name} is float32; the golden computes in float64 only"):
        call_block(op, parameters=ones() | {name: np.ones(shape, np.float32)})


@pytest.mark.parametrize("op", BLOCK_OPS)
def test_the_block_knows_no_other_parameters(op):
    """Not even a bias, which would otherwise be added, or make an RMSNorm a LayerNorm."""
    for name in ("attention.q.bias", "attention_norm.bias", "attention.q.wieght"):
        with refuses(f"{op}: parameter {name!r} is unknown; this config has {', '.join(CONFIG.parameters())}"):
            call_block(op, parameters=ones() | {name: np.ones(1)})


@pytest.mark.parametrize("op", BLOCK_OPS)
def test_the_block_asks_for_a_whole_cache(op):
    for name in ("k", "v"):
        with refuses(f"{op}: {name}_cache is missing; keys and values are cached together"):
            call_block(op, **{f"{name}_cache": None})
    for wrong in [(4, H_KV, D_HEAD), (1, 4, H_KV, D_HEAD), (2, 4, 1, D_HEAD), (2, 4, H_KV, 1)]:
        expected = (2, 4, H_KV, D_HEAD)
        with refuses(f"{op}: k_cache has shape {wrong}; with x of shape (2, 3, {D}) it must be {expected}"):
            call_block(op, k_cache=np.ones(wrong))
    shape = BLOCK["k_cache"]
    with refuses(f"{op}: v_cache has shape (2, 5, {H_KV}, {D_HEAD}); with k_cache of shape {shape} it must be {shape}"):
        call_block(op, v_cache=np.ones((2, 5, H_KV, D_HEAD)))


@pytest.mark.parametrize("op", BLOCK_OPS)
def test_the_block_asks_for_a_mask_of_cached_and_new_keys(op):
    with refuses(f"attention: key_mask has shape (2, 3); with k of shape (2, 7, {H_KV}, {D_HEAD}) it must be (2, 7)"):
        call_block(op, key_mask=np.ones((2, 3), bool))
    with refuses("attention: key_mask is float64; it must be bool"):
        call_block(op, key_mask=np.ones((2, 7)))


@pytest.mark.parametrize("op", BLOCK_OPS)
def test_the_block_asks_for_heads_that_share_evenly(op):
    with refuses(f"{op}: n_heads is {CONFIG.n_heads}, which n_kv_heads, 3, does not divide"):
        call_block(op, config=replace(CONFIG, n_kv_heads=3))


@pytest.mark.parametrize("op", [*OPS, *BLOCK_OPS])
def test_arguments_are_left_as_they_are(op):
    """Read-only arrays are as good as others."""
    shapes = OPS[op][1] if op in OPS else BLOCK
    arrays, parameters = {name: np.ones(shape) for name, shape in shapes.items()}, ones()
    for array in [*arrays.values(), *parameters.values()]:
        array.setflags(write=False)
    if op in OPS:
        call(op, **arrays)
    else:
        call_block(op, parameters=parameters, **arrays)
