"""Rope, attention and the nonlinearities against the cases that ONNX gives its own backends for them."""

import math

import numpy as np
import pytest
from onnx.backend.test.case.node import attention, gelu, rotaryembedding, softmax, swiglu, swish
from onnx_cases import Case, cases_of

import reference
from reference.attention import dot_products, mix, soft_cap, visible_keys
from reference.attention import softmax as golden_softmax
from reference.feed_forward import silu

Array = np.ndarray

MODULES = [attention, gelu, rotaryembedding, softmax, swiglu, swish]  # what makes the cases

# ONNX computes what it expects in float32, with sums of at most 18 terms and values below 2: no more than one ulp of 1 is seen.
TOLERANCE = 3 * np.finfo(np.float32).eps

KNOWN = {"is_causal", "q_num_heads", "kv_num_heads", "qk_matmul_output_mode", "scale", "softcap"}


def in_float32(op_type: str) -> list[Case]:
    return [case for case in cases_of(op_type) if all(array.dtype == np.float32 for array in case.outputs.values())]


ATTENTION = [
    case for case in in_float32("Attention") if case.attributes.keys() <= KNOWN and "nonpad_kv_seqlen" not in case.inputs
]
ALL = {
    "Attention": ATTENTION,  # but for windows, which end elsewhere there, and caches of a fixed size
    "Gelu": in_float32("Gelu"),
    "RotaryEmbedding": in_float32("RotaryEmbedding"),
    "Softmax": in_float32("Softmax"),
    "SwiGLU": [case for case in in_float32("SwiGLU") if not case.attributes],
    "Swish": in_float32("Swish"),
}


def assert_close(golden: Array, expected: Array) -> None:
    np.testing.assert_allclose(golden, expected.astype(np.float64), rtol=TOLERANCE, atol=TOLERANCE)


def features_last(array: Array, heads: int | None) -> Array:
    """Bring [batch, heads, s, d_head], or heads merged, to the golden's [batch, s, heads, d_head]."""
    array = array.astype(np.float64)
    return array.swapaxes(1, 2) if array.ndim == 4 else array.reshape(*array.shape[:2], heads, -1)


def test_all_cases_are_here():
    counts = {"Attention": 66, "Gelu": 4, "RotaryEmbedding": 8, "Softmax": 7, "SwiGLU": 1, "Swish": 1}
    assert {op_type: len(cases) for op_type, cases in ALL.items()} == counts


@pytest.mark.parametrize("case", ALL["Attention"], ids=lambda case: case.name)
def test_attention_agrees(case):
    """ONNX's masks are [s, t] or more, and its values may have other features: then the golden's steps are taken alone."""
    q = features_last(case.inputs["Q"], case.attributes.get("q_num_heads"))
    k, v = (features_last(case.inputs[name], case.attributes.get("kv_num_heads")) for name in "KV")
    if "past_key" in case.inputs:
        pasts = (features_last(case.inputs[f"past_{name}"], None) for name in ("key", "value"))
        k, v = (np.concatenate(both, axis=1) for both in zip(pasts, (k, v), strict=True))
    s, t, causal = q.shape[1], k.shape[1], bool(case.attributes.get("is_causal"))
    if causal:  # ONNX's queries stand right after the past, and nobody sees what is behind them; the golden's are the last
        t = s + (t - case.inputs["K"].shape[-2] if "past_key" in case.inputs else 0)
        k, v = k[:, :t], v[:, :t]

    scale, softcap = case.attributes.get("scale", 1 / math.sqrt(q.shape[-1])), case.attributes.get("softcap")
    if "attn_mask" not in case.inputs and k.shape == v.shape:
        y, scores, _, probs = reference.attention(q, k, v, causal=causal, softcap=softcap, attention_scale=scale)
    else:
        mask = case.inputs.get("attn_mask", np.zeros((s, t)))[..., :t]
        added = np.where(mask, 0.0, -np.inf) if mask.dtype == np.bool else mask.astype(np.float64)
        scores = dot_products(q, k) * scale
        capped = soft_cap(scores, softcap) if softcap else scores
        probs = golden_softmax(capped + added, visible_keys(s, t, causal=causal))
        y = mix(probs, v)

    assert_close(y, features_last(case.outputs["Y"], q.shape[2]))
    by_mode = {0: scores, 3: probs}  # 1 and 2 are on the way
    mode = case.attributes.get("qk_matmul_output_mode", 0)
    if "qk_matmul_output" in case.outputs and mode in by_mode:
        assert_close(by_mode[mode], case.outputs["qk_matmul_output"])


@pytest.mark.parametrize("case", ALL["RotaryEmbedding"], ids=lambda case: case.name)
def test_rope_agrees(case):
    """ONNX's cosines and sines are any numbers: x times the cosine and, a quarter turn on, x times the sine are rotated."""
    x = features_last(case.inputs["input"], case.attributes.get("num_heads"))
    d, interleaved = case.attributes.get("rotary_embedding_dim", x.shape[-1]), bool(case.attributes.get("interleaved"))
    ids = case.inputs.get("position_ids")
    cos, sin = (case.inputs[f"{name}_cache"] if ids is None else case.inputs[f"{name}_cache"][ids] for name in ("cos", "sin"))
    cos, sin = (np.repeat(a, 2, axis=-1) if interleaved else np.tile(a, 2) for a in (cos, sin))  # batch s d
    quarter = np.full(x.shape[1], math.pi / 2)
    y = x[..., :d] * cos[:, :, None] + reference.rope(x[..., :d] * sin[:, :, None], quarter, base=1.0, interleaved=interleaved)
    [expected] = case.outputs.values()
    assert_close(np.concatenate([y, x[..., d:]], axis=-1), features_last(expected, x.shape[2]))


@pytest.mark.parametrize("case", ALL["Softmax"], ids=lambda case: case.name)
def test_softmax_agrees(case):
    axis, [x], [y] = case.attributes.get("axis", -1), case.inputs.values(), case.outputs.values()
    x = np.moveaxis(x.astype(np.float64), axis, -1)
    assert_close(golden_softmax(x, np.ones(x.shape, dtype=bool)), np.moveaxis(y, axis, -1))


@pytest.mark.parametrize("case", ALL["Gelu"], ids=lambda case: case.name)
def test_gelu_agrees(case):
    [x], [y] = case.inputs.values(), case.outputs.values()
    assert_close(reference.gelu(x.astype(np.float64), approximate=case.attributes.get("approximate") == b"tanh"), y)


@pytest.mark.parametrize("case", ALL["Swish"] + ALL["SwiGLU"], ids=lambda case: case.name)
def test_swiglu_agrees(case):
    gate, *up = (array.astype(np.float64) for array in case.inputs.values())
    [y] = case.outputs.values()
    assert_close(reference.swiglu(gate, *up) if up else silu(gate), y)
