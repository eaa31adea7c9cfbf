"""Implementations that nobody here wrote, before the kit's judge.

A failure is a fault of theirs that is not on record, or one of the kit's.
"""

from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from conformance.cases import CASES
from conformance.norms.cases import ROW_NORMS
from conformance.process import serve_command
from conformance.runner import run_ports
from ports.tinygrad.clang import find_clang

# Compiling takes seconds for every op, dtype and dialect: under a compiler, what shows the norms' order of casts is enough.
SHOWN = ("random", "far_from_one", "width_1")
ASKED = {"eager": CASES, "jit": tuple(case for case in CASES if case.op in ROW_NORMS and case.name in SHOWN)}


@dataclass(frozen=True)
class Innocent:
    """A port in a mode, and at least how many cases it passes, at most how many it is expected to fail."""

    spec: str
    mode: str
    passed: int
    expected: int
    packages: tuple[str, ...]


INNOCENTS = [
    Innocent("ports.equinox", "eager", 289, 22, ("equinox", "jax")),
    Innocent("ports.equinox", "jit", 18, 0, ("equinox", "jax")),
    Innocent("ports.equinox.port:SecondRope", "eager", 0, 8, ("equinox", "jax")),
    Innocent("ports.flax_linen", "eager", 280, 19, ("flax", "jax")),
    Innocent("ports.flax_linen", "jit", 18, 0, ("flax", "jax")),
    Innocent("ports.flax_linen.port:TwoPass", "eager", 300, 3, ("flax", "jax")),
    Innocent("ports.flax_linen.port:TwoPass", "jit", 18, 0, ("flax", "jax")),
    Innocent("ports.flax_nnx", "eager", 221, 57, ("flax", "jax")),
    Innocent("ports.flax_nnx", "jit", 10, 8, ("flax", "jax")),
    Innocent("ports.flax_nnx.port:Careful", "eager", 282, 0, ("flax", "jax")),
    Innocent("ports.flax_nnx.port:Careful", "jit", 18, 0, ("flax", "jax")),
    Innocent("ports.haiku", "eager", 141, 127, ("haiku", "jax")),
    Innocent("ports.haiku", "jit", 6, 4, ("haiku", "jax")),
    Innocent("ports.jax_nn", "eager", 32, 9, ("jax",)),
    Innocent("ports.keras", "eager", 216, 67, ("jax", "keras")),
    Innocent("ports.keras", "jit", 11, 7, ("jax", "keras")),
    Innocent("ports.mlx", "eager", 255, 93, ("mlx",)),
    Innocent("ports.mlx", "jit", 8, 10, ("mlx",)),
    Innocent("ports.numpy", "eager", 643, 0, ("numpy",)),
    Innocent("ports.onnxruntime", "eager", 258, 4, ("onnx", "onnxruntime")),
    Innocent("ports.onnxruntime.port:Simplified", "eager", 103, 4, ("onnx", "onnxruntime")),
    Innocent("ports.tensorflow", "eager", 582, 6, ("tensorflow",)),
    Innocent("ports.tensorflow.port:Moments", "eager", 58, 49, ("tensorflow",)),
    Innocent("ports.paddle", "eager", 169, 1, ("paddle",)),
    Innocent("ports.tinygrad", "jit", 9, 9, ("tinygrad",)),
    Innocent("ports.torch_nn", "eager", 266, 80, ("torch",)),
    Innocent("ports.torch_nn", "jit", 12, 6, ("torch",)),
    Innocent("ports.torch_nn.layers:EncoderLayer", "eager", 5, 0, ("torch",)),
    Innocent("ports.torch_nn.port:Forward", "eager", 345, 0, ("torch",)),
    Innocent("ports.torch_nn.port:Forward", "jit", 18, 0, ("torch",)),
    Innocent("ports.torch_nn.port:Rows", "eager", 62, 0, ("torch",)),
    Innocent("ports.transformers.functions:Functions", "eager", 47, 8, ("torch", "transformers")),
    Innocent("ports.transformers.layers:GPT2Layer", "eager", 2, 1, ("torch", "transformers")),
    Innocent("ports.transformers.layers:LlamaLayer", "eager", 25, 2, ("torch", "transformers")),
    Innocent("ports.transformers.layers:Qwen3Layer", "eager", 4, 2, ("torch", "transformers")),
    Innocent("ports.transformers.port:Gemma", "eager", 12, 4, ("torch", "transformers")),
    Innocent("ports.transformers.port:Llama", "eager", 94, 22, ("torch", "transformers")),
    Innocent("ports.transformers.port:Llama", "jit", 4, 5, ("torch", "transformers")),
    Innocent("ports.transformers.port:Qwen3", "eager", 94, 22, ("torch", "transformers")),
    Innocent("ports.transformers.port:T5", "eager", 86, 30, ("torch", "transformers")),
]


@pytest.fixture(autouse=True)
def _where_the_ports_are_found(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


@pytest.mark.parametrize("innocent", INNOCENTS, ids=lambda innocent: f"{innocent.spec}-{innocent.mode}")
def test_it_is_not_accused_of_what_is_not_on_record(innocent):
    missing = [package for package in innocent.packages if find_spec(package) is None]
    if missing:
        pytest.skip(f"no {missing[0]}")
    if "tinygrad" in innocent.packages and find_clang() is None:
        pytest.skip("no clang 15 or later, which tinygrad's CPU device compiles with")
    command = {innocent.spec: serve_command(innocent.spec)}
    [run] = run_ports(command, ASKED[innocent.mode], mode=innocent.mode, seed=1, timeout=300)
    assert not run.failure
    assert [verdict for verdict in run.verdicts if verdict.status in ("fail", "error")] == []
    counts = Counter(verdict.status for verdict in run.verdicts)
    assert counts["pass"] >= innocent.passed
    assert counts["expected"] <= innocent.expected


@pytest.mark.skipif(find_spec("torch") is None or find_spec("transformers") is None, reason="no torch, or no transformers")
def test_torch_compile_keeps_the_order_of_llama_if_it_is_told_to(monkeypatch):
    """The port says that it has its source's order then, not the other one, and it does."""
    monkeypatch.setenv("TORCHINDUCTOR_EMULATE_PRECISION_CASTS", "1")
    spec = "ports.transformers.port:Llama"
    cases = tuple(case for case in ASKED["jit"] if (case.op, case.dtype) == ("rms_norm", "bfloat16"))
    [run] = run_ports({spec: serve_command(spec)}, cases, timeout=300)
    assert run.hello is not None, run.failure
    assert run.hello.orders == ("cast_then_scale",)
    assert {verdict.status for verdict in run.verdicts} == {"pass", "skip"}
    passed = {verdict.case.dialect.name for verdict in run.verdicts if verdict.status == "pass"}
    assert passed == {"cast_then_scale", "cast_then_scale_float32_weight"}
