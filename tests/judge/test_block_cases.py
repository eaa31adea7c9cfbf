"""The composite ops' table: what is varied, and the tensors that follow from it."""

from typing import get_args, get_type_hints

import numpy as np
import pytest

from conformance.numbers.rounding import DTYPES, HALF, NUMPY_DTYPES
from conformance.ops.block.inputs import composite_inputs
from conformance.ops.cases import select
from conformance.ops.table import COMPOSITES, OPS
from reference import FEATURES, PRESETS, BlockConfig

COMPOSITE_CASES = [case for op in COMPOSITES for case in op.cases]
BLOCKS = [case for case in COMPOSITE_CASES if case.op == "pre_ln_block"]
SMALL = [case for case in COMPOSITE_CASES if case.dtype == "float32"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_preset_is_asked_in_every_dtype(dtype):
    """One that is not plain is asked in float32, in bfloat16 too where its norms stand elsewhere; one in half precision."""
    kinds = {case.kind for case in BLOCKS if case.dtype == dtype and case.name == "random"}
    plain = {name for name, config in PRESETS.items() if not config.features}
    placed = {"gemma2", "olmo2", "cohere", "post_ln", "no_norm"} if dtype == "bfloat16" else set()
    assert kinds >= (set(PRESETS) if dtype == "float32" else plain | placed | ({"gpt_oss"} if dtype in HALF else set()))


def test_all_that_a_config_offers_is_asked():
    configs = [case.config for case in BLOCKS if case.dtype == "float32"]
    assert {config.rope for config in configs} == {"half_split", "interleaved", "none"}
    assert {config.norm for config in configs} == {"rms_norm", "layer_norm"}
    assert {config.placement for config in configs} == set(get_args(get_type_hints(BlockConfig)["placement"]))
    assert {config.order for config in configs} == {"cast_then_scale", "scale_then_cast"}
    assert {config.feed_forward for config in configs} == {"swiglu", "geglu_tanh", "gelu", "gelu_tanh"}
    for field in FEATURES:
        assert len({getattr(config, field) for config in configs}) > 1
    for field in ("qk_norm", "qkv_bias", "o_bias", "feed_forward_bias", "causal", "weight_offset"):
        assert {bool(getattr(config, field)) for config in configs} == {True, False}
    shared = {config.n_heads // config.n_kv_heads for config in configs}
    assert shared >= {1, 2, 4}, "multi-head, grouped, multi-query"
    assert any(config.n_heads * config.d_head != config.d_model for config in configs)


def test_the_cache_the_mask_and_far_positions_are_asked():
    assert any(1 < case.s < case.past + case.s for case in BLOCKS)
    assert {case.key_mask for case in BLOCKS} == {"absent", "padding", "hides_a_row"}
    assert max(case.position for case in BLOCKS) >= 5000


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_no_two_sizes_are_equal(case):
    """An op that mistakes one axis for another must not get away with it."""
    c = case.config
    named = {"batch": case.batch, "s": case.s, "n_heads": c.n_heads, "d_head": c.d_head, "d_ff": c.d_ff, "d_model": c.d_model}
    sizes = [size for name, size in named.items() if OPS[case.op].taps or name not in ("d_ff", "d_model")]
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_inputs_are_what_the_case_says(case):
    tensors = composite_inputs(case, 0)
    output = next(iter(case.outputs))
    shapes = case.inputs | case.constants | {f"d{output}": case.shape}
    assert {name: tensor.shape for name, tensor in tensors.items()} == shapes
    assert {tensor.dtype for tensor in tensors.values()} == {NUMPY_DTYPES[case.dtype]}
    again = composite_inputs(case, 0)
    assert all(np.array_equal(tensors[name], again[name]) for name in tensors)
    assert not np.array_equal(tensors[f"d{output}"], composite_inputs(case, 1)[f"d{output}"])


def test_a_key_mask_hides_what_it_says():
    (padding,), (hides,) = (select(f"pre_ln_block/llama/float32/{name}") for name in ("padding", "hides_a_row"))
    assert np.argwhere(composite_inputs(padding, 0)["key_mask"] == 0).tolist() == [[1, 5], [1, 6]]
    assert np.argwhere(composite_inputs(hides, 0)["key_mask"] == 0).tolist() == [[0, 0]]


def test_a_window_is_narrower_than_the_keys_as_wide_and_wider_each_with_a_cache():
    cached = [case for case in select("attention/window/*") if case.past]
    assert {np.sign(case.config.window - case.past - case.s) for case in cached} == {-1, 0, 1}


def test_a_sink_that_dominates_is_beyond_what_float32_has_an_exponential_of():
    for case in select("*/dominates"):
        (sink,) = (tensor for name, tensor in composite_inputs(case, 0).items() if name.endswith("sink"))
        assert np.all((sink.astype(np.float64) > 100) == (np.arange(len(sink)) % 2 == 1))


def test_norm_weights_are_never_one_nor_a_power_of_two():
    for case in BLOCKS:
        for name, tensor in composite_inputs(case, 0).items():
            if name.endswith("norm.weight"):
                w = np.abs(tensor.astype(np.float64) + case.config.offset_of(name))
                assert np.all((w > 1) & (w < 2))
