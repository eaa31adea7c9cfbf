"""impl_torch's block and its parts against the golden: forward, gradients and taps, in every dtype, eager and compiled."""

import dataclasses
import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import impl_torch
import reference
from impl_torch import PreLNBlock, PreLNStack, layer_norm, pre_ln_block, pre_ln_stack, rms_norm
from impl_torch.attention import attention_in_steps, softmax
from reference import PRESETS, BlockConfig, small

Array = np.ndarray

LLAMA, GPT2 = small(PRESETS["llama"]), small(PRESETS["gpt2"])
CONFIGS = {name: small(config) for name, config in PRESETS.items()} | {
    "interleaved": dataclasses.replace(LLAMA, rope="interleaved", rope_base=100.0),
    "multi_query": dataclasses.replace(LLAMA, n_kv_heads=1, weight_offset=1.0),
    "gelu_both_ways": dataclasses.replace(GPT2, feed_forward="gelu", causal=False),
    "all_of_today": dataclasses.replace(
        LLAMA,
        qk_norm=True,
        weight_offset=1.0,
        window=3,
        sink=True,
        softcap=1.5,
        attention_scale=0.3,
        rotary_features=4,
        qk_norm_over="all_heads",
        qk_norm_offset=False,
    ),
    "some_biases": dataclasses.replace(LLAMA, qkv_bias=True, feed_forward_bias=True, norm="layer_norm"),
}

UNIT_ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
HALF = [torch.bfloat16, torch.float16]


@dataclasses.dataclass(frozen=True)
class Situation:
    """Where x stands: after cached keys, and with which keys masked: half of them, by booleans or by ones and zeros."""

    s: int = 5
    past: int = 0
    offset: int = 0
    mask: torch.dtype | None = None


SITUATIONS = {
    "plain": Situation(),
    "offset": Situation(offset=7),
    "cached": Situation(s=3, past=4),
    "one_query": Situation(s=1, past=4),
    "masked": Situation(mask=torch.bool),
    "masked_by_ones_and_zeros": Situation(s=3, past=4, offset=2, mask=torch.float64),
}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Tensors of one dtype; `golden` has their values in float64."""

    x: Tensor
    dout: Tensor
    parameters: dict[str, Tensor]
    caches: tuple[Tensor | None, Tensor | None]
    key_mask: Tensor | None
    position: int

    def to(self, dtype: torch.dtype) -> "Inputs":
        """The same in another dtype; the mask stays."""
        parameters = {name: tensor.to(dtype) for name, tensor in self.parameters.items()}
        k, v = (None if cache is None else cache.to(dtype) for cache in self.caches)
        return dataclasses.replace(self, x=self.x.to(dtype), dout=self.dout.to(dtype), parameters=parameters, caches=(k, v))


def draw(config: BlockConfig, situation: Situation = SITUATIONS["plain"]) -> Inputs:
    """Two sequences, of which the first sees no key if any is masked; norms weigh about one, biases and offsets count."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int, mean: float = 0.0, deviation: float = 1.0) -> Tensor:
        return mean + deviation * torch.randn(shape, generator=random, dtype=torch.float64)

    parameters = {
        name: normal(*shape, deviation=shape[-1] ** -0.5)
        if len(shape) == 2
        else normal(*shape, mean=float(name.endswith("norm.weight")), deviation=0.3)
        for name, shape in config.parameters().items()
    }
    t = situation.past + situation.s
    caches = (None, None)
    if situation.past:
        caches = tuple(normal(2, situation.past, config.n_kv_heads, config.d_head) for _ in "kv")
    mask = None
    if situation.mask is not None:
        mask = (torch.rand(2, t, generator=random) < 0.5).to(situation.mask)
        mask[0] = 0
    shape = (2, situation.s, config.d_model)
    return Inputs(normal(*shape), normal(*shape), parameters, caches, mask, situation.past + situation.offset)


def golden(inputs: Inputs, config: BlockConfig) -> dict[str, Array]:
    """Taps and gradients, exactly."""
    x, dout, k, v = (None if a is None else a.double().numpy() for a in (inputs.x, inputs.dout, *inputs.caches))
    parameters = {name: tensor.double().numpy() for name, tensor in inputs.parameters.items()}
    key_mask = None if inputs.key_mask is None else (inputs.key_mask != 0).numpy()
    cache: dict[str, Any] = {"position": inputs.position, "k_cache": k, "v_cache": v, "key_mask": key_mask}
    gradients = reference.pre_ln_block_vjp(dout, x, parameters, config, **cache)
    return reference.pre_ln_block(x, parameters, config, **cache).intermediates | gradients


def actual(inputs: Inputs, config: BlockConfig, *, taps: bool, block: Callable = pre_ln_block) -> dict[str, Array]:
    """What the block computes: `out` or all taps, and gradients; in float64, of the dtype they should have."""
    x = inputs.x.clone().requires_grad_()
    parameters = {name: tensor.clone().requires_grad_() for name, tensor in inputs.parameters.items()}
    result = block(x, parameters, *inputs.caches, inputs.key_mask, config=config, position=inputs.position, taps=taps)
    out, kept = result if taps else (result, {"out": result})
    gradients = torch.autograd.grad(out, [x, *parameters.values()], inputs.dout)
    named = zip(["dx", *(f"d{name}" for name in parameters)], gradients, strict=True)
    assert out.dtype == inputs.x.dtype
    return {name: tensor.detach().double().numpy() for name, tensor in [*kept.items(), *named]}


def rms(a: Array) -> float:
    return math.sqrt(np.mean(np.square(a)))


def jitter(a: Tensor, u: float) -> Tensor:
    return a * (1 + u * (2 * torch.rand_like(a) - 1))


class _JitteredTap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, u: float) -> Tensor:
        ctx.u = u
        return jitter(x, u)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return jitter(dy, ctx.u), None


class _JitteredSoftmax(torch.autograd.Function):
    """Fused attention rounds the probabilities it multiplies, and takes the sum in their derivative from a rounded y."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, visible: Tensor, u: float) -> Tensor:
        probs, ctx.u = softmax(scores, visible), u
        ctx.save_for_backward(probs)
        return jitter(probs, u)

    @staticmethod
    def backward(ctx: Any, dprobs: Tensor) -> tuple[Tensor, None, None]:
        (probs,) = ctx.saved_tensors
        total = (probs * jitter(dprobs, ctx.u)).sum(dim=-1, keepdim=True)
        return jitter(probs * (jitter(dprobs, ctx.u) - total), ctx.u), None, None


def noise(inputs: Inputs, config: BlockConfig, u: float, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """How far the block strays, in float64, if all that is stored is off by up to u: the root mean square of 16 trials."""
    exact, wide = golden(inputs, config), inputs.to(torch.float64)
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        module = importlib.import_module  # the package's attributes of these names are the functions
        patch.setattr(module("impl_torch.pre_ln_block"), "as_stored", lambda x: _JitteredTap.apply(x, u))
        patch.setattr(
            module("impl_torch.attention"), "softmax", lambda scores, seen, _: _JitteredSoftmax.apply(scores, seen, u)
        )
        trials = [actual(wide, config, taps=True) for _ in range(16)]
    return {name: rms(np.stack([trial[name] - exact[name] for trial in trials])) for name in trials[0]}


def assert_within_noise(
    inputs: Inputs, results: dict[str, Array], config: BlockConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1.5 times the noise: a stage rounds to half precision at most twice (√2), by at most what the trials assume.

    In float32 it is the sums that err: of n products, by about √n roundings, to which the functions between add some.
    """
    dtype, widest = inputs.x.dtype, max(config.d_ff, config.d_model)
    u = UNIT_ROUNDOFF[dtype] * (1 if dtype in HALF else 8 + math.sqrt(widest))
    expected, floor = golden(inputs, config), noise(inputs, config, u, monkeypatch)
    ratios = {name: rms(result - expected[name]) / floor[name] for name, result in results.items()}
    assert max(ratios.values()) <= 1.5, {name: ratio for name, ratio in ratios.items() if ratio > 1.5}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("name", CONFIGS)
def test_in_float64_all_is_the_golden(name, situation):
    config = CONFIGS[name]
    inputs = draw(config, SITUATIONS[situation])
    expected = golden(inputs, config)
    for taps in (False, True):
        results = actual(inputs, config, taps=taps)
        for key, value in results.items():
            scale = max(1.0, np.abs(expected[key]).max())
            np.testing.assert_allclose(value, expected[key], rtol=0, atol=1e-13 * scale, err_msg=key)
        if taps:
            assert list(results) == [key for key in expected if not key.endswith(("norm.mean", "norm.var", "norm.rstd"))]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("situation", ["plain", "masked_by_ones_and_zeros"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("name", ["minimind_2026", "multi_query", "gpt2"])
def test_in_other_dtypes_it_errs_as_its_roundings(name, dtype, situation, monkeypatch):
    config = CONFIGS[name]
    inputs = draw(config, SITUATIONS[situation]).to(dtype)
    for taps in (False, True):
        assert_within_noise(inputs, actual(inputs, config, taps=taps), config, monkeypatch)


def assert_taps_are_what_was_fed(inputs: Inputs, config: BlockConfig, taps: dict[str, Tensor]) -> None:
    """Each stage once more, from the tap before it; only norms and exponentials may differ by a last bit, and rarely."""
    how = {"eps": config.eps, "order": config.order, "weight_offset": config.weight_offset}
    p, turn = inputs.parameters, {"position": inputs.position, "base": config.rope_base}
    again = {
        "q_norm": rms_norm(taps["q"], p["attention.q_norm.weight"], **how),
        "q_rope": impl_torch.rope(taps["q_norm"], **turn),
        "h": inputs.x + taps["attn_out"],
        "ffn_norm": rms_norm(taps["h"], p["ffn_norm.weight"], **how),
        "act": impl_torch.swiglu(taps["gate"], taps["up"]),
        "out": taps["h"] + taps["ffn_out"],
    }
    shares = {name: (taps[name] != tensor).double().mean().item() for name, tensor in again.items()}
    assert shares["h"] == shares["out"] == 0
    assert max(shares.values()) < 0.01, shares


@pytest.mark.parametrize("name", ["qwen3", "minimind_2026"])
def test_taps_are_what_was_fed(name):
    inputs = draw(CONFIGS[name]).to(torch.bfloat16)
    _, taps = pre_ln_block(inputs.x, inputs.parameters, config=CONFIGS[name], taps=True)
    assert_taps_are_what_was_fed(inputs, CONFIGS[name], taps)
    assert {name for name, tensor in taps.items() if tensor.dtype != torch.bfloat16} == {"scores", "probs"}


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_it_errs_no_more_and_taps_are_what_was_fed(monkeypatch):
    """For a GPU the compiler would hand the next stage what a tap was rounded from: the reason for `rows.as_stored`.

    Compiled without taps it is judged by the kit itself.
    """
    config, situation = CONFIGS["minimind_2026"], Situation(s=3, past=4, mask=torch.bfloat16)
    inputs, compiled = draw(config, situation).to(torch.bfloat16), torch.compile(pre_ln_block, fullgraph=True, dynamic=False)
    results = actual(inputs, config, taps=True, block=compiled)
    assert_within_noise(inputs, results, config, monkeypatch)
    taps = {name: torch.from_numpy(result).to(torch.bfloat16) for name, result in results.items()}
    assert_taps_are_what_was_fed(inputs, config, taps)


@pytest.mark.usefixtures("_fresh_compiler")
def test_one_graph_serves_every_length():
    config, compiled = CONFIGS["multi_query"], torch.compile(pre_ln_block, fullgraph=True, dynamic=True, backend="eager")
    for situation in (Situation(s=3, past=4, mask=torch.bool), Situation(s=6, past=2, offset=3, mask=torch.bool)):
        inputs = draw(config, situation)
        with torch.compiler.set_stance("default" if situation.past == 4 else "fail_on_recompile"):
            results = actual(inputs, config, taps=False, block=compiled)
        for name, expected in golden(inputs, config).items():
            if name in results:
                np.testing.assert_allclose(results[name], expected, rtol=0, atol=1e-13 * max(1.0, np.abs(expected).max()))


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("norm", [rms_norm, layer_norm])
def test_a_compiled_function_may_norm_twice(norm):
    """With symbolic floats, which its defaults are, torch itself cannot: the reason for `impl_torch.rows.operand`."""
    twice = torch.compile(lambda x: norm(norm(x)), fullgraph=True, dynamic=True, backend="aot_eager")
    x = torch.randn(3, 8, dtype=torch.float64)
    assert torch.equal(twice(x), norm(norm(x)))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_rounds_once_far_out(interleaved, dtype):
    """Float32 knows an angle near 5000 to 2⁻²⁴ of it, twice; bfloat16 would not know it at all."""
    x, position = torch.randn(2, 6, 3, 64, generator=torch.Generator().manual_seed(0)).to(dtype), 5000
    how = {"base": 1e6, "interleaved": interleaved}
    expected = reference.rope(x.double().numpy(), np.arange(position, position + 6.0), **how)
    error = np.abs(impl_torch.rope(x, position=position, **how).double().numpy() - expected)
    angles = 2 * (position + 6) * UNIT_ROUNDOFF[torch.float32] * np.abs(x.double().numpy()).max()
    assert np.all(error <= UNIT_ROUNDOFF[dtype] * (np.abs(expected) + angles) + angles)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("function", ["swiglu", "geglu_tanh", "gelu", "gelu_tanh"])
def test_nonlinearities_round_once(function, dtype):
    """Far below zero as well, where 1 + erf and 1 + tanh cancel; beside that, float32's own roundings count little."""
    x, up = (5 * torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))).clamp(min=-8).to(dtype)
    of = {
        "swiglu": lambda library, x, up: library.swiglu(x, up),
        "geglu_tanh": lambda library, x, up: library.geglu(x, up, approximate=True),
        "gelu": lambda library, x, _: library.gelu(x),
        "gelu_tanh": lambda library, x, _: library.gelu(x, approximate=True),
    }[function]
    expected = of(reference, x.double().numpy(), up.double().numpy())
    error = np.abs(of(impl_torch, x, up).double().numpy() - expected)
    smallest = torch.finfo(dtype).smallest_normal
    once = UNIT_ROUNDOFF[dtype] * np.maximum(np.abs(expected), smallest)
    assert np.all(error <= 1.01 * once)
    assert np.max(error / once) > 0.9


@pytest.mark.parametrize("in_steps", [False, True], ids=["fused", "in_steps"])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)], ids=str)
def test_attention_has_any_batch_and_a_blind_query_gives_nothing(batch, in_steps):
    """Nor has a gradient, of any dtype: not a NaN. The mask is of one sequence, for all."""
    random = torch.Generator().manual_seed(0)
    key_mask = torch.tensor([False, False, True, False, True, True])
    for dtype in (torch.float64, torch.float32, *HALF):
        q, k, v, dy = (torch.randn(*batch, s, h, 8, generator=random, dtype=torch.float64).to(dtype) for s, h in SHAPES)
        leaves = [tensor.requires_grad_() for tensor in (q, k, v)]
        y = attention_in_steps(*leaves, key_mask).y if in_steps else impl_torch.attention(*leaves, key_mask)
        results = [y, *torch.autograd.grad(y, leaves, dy)]
        arrays = [tensor.detach().double().numpy() for tensor in (dy, q, k, v)]
        mask = np.broadcast_to(key_mask.numpy(), (*batch, 6))
        expected = [reference.attention(*arrays[1:], key_mask=mask).y, *reference.attention_vjp(*arrays, key_mask=mask)[:3]]
        for result, exact in zip(results, expected, strict=True):
            error = np.abs(result.detach().double().numpy() - exact).max()
            assert error <= 16 * UNIT_ROUNDOFF[dtype] * np.abs(exact).max()
        assert not results[0][..., :1, :, :].any()
        assert not results[1][..., :1, :, :].any()


SHAPES = [(5, 4), (6, 2), (6, 2), (5, 4)]  # of q, k, v and dy: sequence and heads; the first query sees two keys, both masked


@pytest.mark.parametrize("name", CONFIGS)
def test_a_module_is_the_function_with_the_configs_parameters(name):
    config = CONFIGS[name]
    block, inputs = PreLNBlock(config, dtype=torch.float64), draw(config, SITUATIONS["cached"])
    assert {key: tuple(tensor.shape) for key, tensor in block.state_dict().items()} == config.parameters()
    names = list(config.parameters())
    if config.sink:  # a module's own parameters stand before those of its parts
        names.insert(names.index("attention.q.weight"), names.pop(names.index("attention.sink")))
    assert list(block.state_dict()) == names
    block.load_state_dict(inputs.parameters)
    expected = pre_ln_block(inputs.x, inputs.parameters, *inputs.caches, config=config, position=inputs.position)
    assert torch.equal(block(inputs.x, *inputs.caches, position=inputs.position), expected)


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_decoding_by_the_cache_is_the_whole_at_once(name):
    config = CONFIGS[name]
    block, x = PreLNBlock(config, dtype=torch.float64), draw(config, Situation(s=7)).x
    out, cache = block(x[:, :3], return_cache=True)
    outs = [out]
    for begin, end in ((3, 5), (5, 6), (6, 7)):
        out, cache = block(x[:, begin:end], *cache, position=begin, return_cache=True)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, dim=1), block(x), rtol=0, atol=1e-13)


def test_a_new_blocks_norms_weigh_one():
    for name, parameter in PreLNBlock(CONFIGS["multi_query"]).named_parameters():
        assert torch.all(parameter == 0) if name.endswith("norm.weight") else 0.01 < parameter.std() < 0.03
    assert not any(p.any() for name, p in PreLNBlock(GPT2).named_parameters() if name.endswith("bias"))


def test_a_stack_is_its_blocks_one_after_another():
    config, inputs = CONFIGS["qwen3"], draw(CONFIGS["qwen3"], Situation(mask=torch.bool))
    stack = PreLNStack(config, 3, dtype=torch.float64)
    parameters = {name: (1 + index / 50) * p.detach() for index, (name, p) in enumerate(stack.state_dict().items())}
    stack.load_state_dict(parameters)
    x, expected = inputs.x, {}
    for layer in range(3):
        own = {name: parameters[f"{layer}.{name}"] for name in config.parameters()}
        x, taps = pre_ln_block(x, own, key_mask=inputs.key_mask, config=config, position=2, taps=True)
        expected |= {f"{layer}.{name}": tensor for name, tensor in taps.items()}
    out, kept = pre_ln_stack(inputs.x, parameters, inputs.key_mask, config=config, n_layers=3, position=2, taps=True)
    assert torch.equal(out, x)
    assert list(kept) == list(expected)
    assert all(torch.equal(kept[name], expected[name]) for name in kept)
    fused = pre_ln_stack(inputs.x, parameters, inputs.key_mask, config=config, n_layers=3, position=2)
    assert torch.equal(stack(inputs.x, inputs.key_mask, position=2), fused)
    torch.testing.assert_close(fused, out, rtol=0, atol=1e-13)


def test_the_config_is_the_goldens():
    ours, goldens = (dataclasses.fields(config) for config in (impl_torch.BlockConfig, BlockConfig))
    assert [(f.name, f.type, f.default) for f in ours] == [(f.name, f.type, f.default) for f in goldens]
    assert impl_torch.BlockConfig.__doc__ == BlockConfig.__doc__
    for config in CONFIGS.values():
        assert impl_torch.BlockConfig(**dataclasses.asdict(config)).parameters() == config.parameters()


def test_what_does_not_fit_is_refused():
    inputs = draw(LLAMA)
    x, p = inputs.x, inputs.parameters
    refused: list[tuple[str, Tensor, dict[str, Tensor], BlockConfig]] = [
        ("must be d_model, 32", x[..., :-1], p, LLAMA),
        ("'attention.o.weight' is missing", x, {name: p[name] for name in p if name != "attention.o.weight"}, LLAMA),
        ("'attention.o.bias' is unknown", x, p | {"attention.o.bias": x[0, 0]}, LLAMA),
        (r"ffn_norm.weight has shape \[1\]; it must be \[32\]", x, p | {"ffn_norm.weight": torch.ones(1)}, LLAMA),
        ("which n_kv_heads, 3, does not divide", x, p, dataclasses.replace(LLAMA, n_kv_heads=3)),
    ]
    for message, x_, parameters, config in refused:
        with pytest.raises(ValueError, match=message):
            pre_ln_block(x_, parameters, config=config)
    with pytest.raises(ValueError, match=r"'2\.ffn_norm\.weight' is of none of the 2 layers"):
        pre_ln_stack(x, {"2.ffn_norm.weight": x}, config=LLAMA, n_layers=2)
    with pytest.raises(ValueError, match="its last axis must be even"):
        impl_torch.rope(torch.ones(2, 3, 5))
    for shapes, message in [([(5, 4), (4, 2), (4, 2)], "more than 4 keys"), ([(2, 4), (2, 3), (2, 3)], "do not share 3"),
                            ([(2, 4), (2, 2), (3, 2)], "must be the same")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            impl_torch.attention(*(torch.ones(s, h, 8) for s, h in shapes))
