"""impl_torch and impl_jax against the peers that do the same: forward and backward, in rounds that take turns."""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

SHAPE = (4, 512, 512)  # batch, sequence, features: the width of MiniMind-small
ROUNDS = 15

Step = Callable[[], Any]


def measure_layers(device: str) -> list[dict[str, str | float]]:
    """Time one forward and backward pass of each layer; `ratio` is our time over the peer's in the same round."""
    rows = []
    for framework, pairs in (("torch", _torch_pairs(device)), ("jax", _jax_pairs(device))):
        for layer, peer, ours, theirs in pairs:
            ours(), theirs()  # compiled, and caches filled
            rounds = [(_milliseconds(ours), _milliseconds(theirs)) for _ in range(ROUNDS)]
            ratios = sorted(a / b for a, b in rounds)
            rows.append(
                {
                    "framework": framework,
                    "layer": layer,
                    "peer": peer,
                    "ours, ms": statistics.median(a for a, _ in rounds),
                    "peer, ms": statistics.median(b for _, b in rounds),
                    "ratio": statistics.median(ratios),
                    "ratio, quartiles": f"{ratios[ROUNDS // 4]:.2f}-{ratios[-1 - ROUNDS // 4]:.2f}",
                }
            )
    return rows


def _milliseconds(step: Step) -> float:
    began = time.perf_counter()
    step()
    return (time.perf_counter() - began) * 1e3


def _torch_pairs(device: str) -> Iterator[tuple[str, str, Step, Step]]:
    import torch
    from torch.nn import functional

    import impl_torch

    def step(function: Any, *tensors: Any) -> None:
        torch.autograd.grad(function(*tensors), tensors, torch.ones_like(tensors[0]))
        if device != "cpu":
            torch.cuda.synchronize()

    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(SHAPE, device=device).to(dtype).requires_grad_()
        weight, bias = (torch.randn(SHAPE[-1:], device=device).to(dtype).requires_grad_() for _ in range(2))
        rms_peer = partial(_torch_rms_peer, functional.rms_norm)
        layer_peer = partial(_torch_layer_peer, functional.layer_norm)
        for mode, compiled in (("eager", lambda f: f), ("compiled", partial(torch.compile, fullgraph=True))):
            rms, ln = compiled(impl_torch.rms_norm), compiled(impl_torch.layer_norm)
            name = f"{str(dtype).removeprefix('torch.')}, {mode}"
            yield f"rms_norm {name}", "F.rms_norm", partial(step, rms, x, weight), partial(step, compiled(rms_peer), x, weight)
            ours, theirs = partial(step, ln, x, weight, bias), partial(step, compiled(layer_peer), x, weight, bias)
            yield f"layer_norm {name}", "F.layer_norm", ours, theirs


def _torch_rms_peer(rms_norm: Any, x: Any, weight: Any) -> Any:
    return rms_norm(x, SHAPE[-1:], weight, 1e-5)


def _torch_layer_peer(layer_norm: Any, x: Any, weight: Any, bias: Any) -> Any:
    return layer_norm(x, SHAPE[-1:], weight, bias, 1e-5)


def _jax_pairs(device: str) -> Iterator[tuple[str, str, Step, Step]]:
    import jax
    import jax.numpy as jnp
    from flax import linen

    import impl_jax

    def flax_rms(x: Any, weight: Any) -> Any:
        return linen.RMSNorm(epsilon=1e-5, dtype=x.dtype).apply({"params": {"scale": weight}}, x)

    def flax_layer(x: Any, weight: Any, bias: Any) -> Any:
        layer = linen.LayerNorm(epsilon=1e-5, dtype=x.dtype, use_fast_variance=False)
        return layer.apply({"params": {"scale": weight, "bias": bias}}, x)

    def step(function: Any, *tensors: Any) -> Step:
        @jax.jit
        def pulled_back(*tensors: Any) -> Any:
            y, pullback = jax.vjp(function, *tensors)
            return pullback(jnp.ones_like(y))

        return lambda: jax.block_until_ready(pulled_back(*tensors))

    place = jax.devices(device)[0]
    for dtype in (jnp.float32, jnp.bfloat16):
        key = jax.random.key(0)
        x, weight, bias = (
            jax.device_put(jax.random.normal(key, shape, dtype), place) for shape in (SHAPE, SHAPE[-1:], SHAPE[-1:])
        )
        name = f"{jnp.dtype(dtype).name}, jit"
        yield f"rms_norm {name}", "flax RMSNorm", step(impl_jax.rms_norm, x, weight), step(flax_rms, x, weight)
        ours, theirs = step(impl_jax.layer_norm, x, weight, bias), step(flax_layer, x, weight, bias)
        yield f"layer_norm {name}", "flax LayerNorm", ours, theirs
