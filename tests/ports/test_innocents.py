"""Implementations that nobody here wrote, before the kit's judge.

A failure is a fault of theirs that is not on record, or one of the kit's.
"""

import warnings
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from zlib import crc32

import pytest

from conformance.ops.cases import CASES
from conformance.ops.norms.cases import ROW_NORMS
from conformance.port.launch import Launch
from conformance.question.case import Case
from conformance.running.runner import PortRun, run_ports
from ports.tinygrad.clang import find_clang

# Who answers many is asked a third of the cases, the next one another third, by a hash of the case's name, so that a new case
# moves no other; `conformance scoreboard` asks them all.
# JAX, which compiles every operation for every shape, is asked one in twenty-four. Under a compiler, what shows the norms'
# order of casts is enough; torch.compile, which takes seconds for every dtype, is asked one case in one that has an order.
SHOWN = ("random", "far_from_one")
COMPILED = tuple(case for case in CASES if case.op in ROW_NORMS and case.name in SHOWN)
COMPILED_BY_TORCH = tuple(case for case in COMPILED if (case.name, case.dtype) == ("random", "bfloat16"))


@dataclass(frozen=True)
class Innocent:
    """A port in a mode; of how many shares of the cases it is asked one, at least how many of these it passes, and at most
    how many it is expected to fail.
    """

    spec: str
    mode: str
    shares: int
    passed: int
    expected: int
    packages: tuple[str, ...]


INNOCENTS = [
    Innocent("ports.equinox", "eager", 24, 9, 2, ("equinox", "jax")),
    Innocent("ports.equinox", "jit", 1, 16, 0, ("equinox", "jax")),
    Innocent("ports.equinox.port:SecondRope", "eager", 1, 0, 8, ("equinox", "jax")),
    Innocent("ports.flax_linen", "eager", 24, 13, 0, ("flax", "jax")),
    Innocent("ports.flax_linen", "jit", 1, 16, 0, ("flax", "jax")),
    Innocent("ports.flax_linen.port:TwoPass", "eager", 24, 5, 0, ("flax", "jax")),
    Innocent("ports.flax_linen.port:TwoPass", "jit", 1, 16, 0, ("flax", "jax")),
    Innocent("ports.flax_nnx", "eager", 24, 8, 3, ("flax", "jax")),
    Innocent("ports.flax_nnx", "jit", 1, 8, 8, ("flax", "jax")),
    Innocent("ports.flax_nnx.port:Careful", "eager", 24, 10, 0, ("flax", "jax")),
    Innocent("ports.flax_nnx.port:Careful", "jit", 1, 16, 0, ("flax", "jax")),
    Innocent("ports.haiku", "eager", 24, 4, 7, ("haiku", "jax")),
    Innocent("ports.haiku", "jit", 1, 4, 4, ("haiku", "jax")),
    Innocent("ports.jax_nn", "eager", 8, 4, 3, ("jax",)),
    Innocent("ports.keras", "eager", 24, 7, 2, ("jax", "keras")),
    Innocent("ports.keras", "jit", 1, 10, 6, ("jax", "keras")),
    Innocent("ports.mlx", "eager", 3, 82, 27, ("mlx",)),
    Innocent("ports.mlx", "jit", 1, 6, 10, ("mlx",)),
    Innocent("ports.numpy", "eager", 3, 366, 0, ("numpy",)),
    Innocent("ports.onnxruntime", "eager", 3, 121, 0, ("onnx", "onnxruntime")),
    Innocent("ports.onnxruntime.port:Simplified", "eager", 1, 110, 4, ("onnx", "onnxruntime")),
    Innocent("ports.tensorflow", "eager", 12, 62, 2, ("tensorflow",)),
    Innocent("ports.tensorflow.port:Moments", "eager", 6, 12, 13, ("tensorflow",)),
    Innocent("ports.paddle", "eager", 1, 169, 3, ("paddle",)),
    Innocent("ports.tinygrad", "jit", 1, 6, 9, ("tinygrad",)),
    Innocent("ports.torch_nn", "eager", 3, 99, 35, ("torch",)),
    Innocent("ports.torch_nn", "jit", 1, 2, 2, ("torch",)),
    Innocent("ports.torch_nn.layers:EncoderLayer", "eager", 1, 6, 1, ("torch",)),
    Innocent("ports.torch_nn.port:Forward", "eager", 3, 134, 0, ("torch",)),
    Innocent("ports.torch_nn.port:Rows", "eager", 1, 62, 0, ("torch",)),
    Innocent("ports.transformers.functions:Functions", "eager", 1, 47, 8, ("torch", "transformers")),
    Innocent("ports.transformers.layers:GPT2Layer", "eager", 1, 2, 1, ("torch", "transformers")),
    Innocent("ports.transformers.layers:LlamaLayer", "eager", 1, 28, 2, ("torch", "transformers")),
    Innocent("ports.transformers.layers:Qwen3Layer", "eager", 1, 4, 2, ("torch", "transformers")),
    Innocent("ports.transformers.port:Gemma", "eager", 1, 16, 4, ("torch", "transformers")),
    Innocent("ports.transformers.port:Llama", "eager", 3, 39, 4, ("torch", "transformers")),
    Innocent("ports.transformers.port:Llama", "jit", 1, 1, 1, ("torch", "transformers")),
    Innocent("ports.transformers.port:Qwen3", "eager", 3, 28, 10, ("torch", "transformers")),
    Innocent("ports.transformers.port:T5", "eager", 3, 34, 9, ("torch", "transformers")),
    Innocent("ports.transformers.attentions:Gemma2", "eager", 1, 25, 5, ("torch", "transformers")),
    Innocent("ports.transformers.attentions:Glm4", "eager", 1, 4, 0, ("torch", "transformers")),
    Innocent("ports.transformers.attentions:GptOss", "eager", 1, 6, 0, ("torch", "transformers")),
    Innocent("ports.transformers.attentions:Phi3", "eager", 1, 8, 1, ("torch", "transformers")),
    Innocent("ports.transformers.layers:Phi3Layer", "eager", 1, 29, 2, ("torch", "transformers")),
    Innocent("ports.transformers.placed:Gemma2Layer", "eager", 1, 3, 0, ("torch", "transformers")),
    Innocent("ports.transformers.placed:Olmo2Layer", "eager", 1, 2, 0, ("torch", "transformers")),
    Innocent("ports.transformers.placed:CohereLayer", "eager", 1, 2, 0, ("torch", "transformers")),
]


def asked(innocent: Innocent) -> tuple[Case, ...]:
    """The cases that an innocent is asked."""
    if innocent.mode == "jit":
        return COMPILED_BY_TORCH if "torch" in innocent.packages else COMPILED
    share = INNOCENTS.index(innocent) % innocent.shares
    return tuple(case for case in CASES if crc32(case.id.encode()) % innocent.shares == share)


def judged(innocent: Innocent) -> tuple[PortRun, ...]:
    """Its run; in this process where torch, which is slow to load, need not compile, and in one of its own elsewhere."""
    in_process = innocent.mode == "eager" and "torch" in innocent.packages
    launch = Launch(innocent.spec, mode=innocent.mode, timeout=300, in_process=in_process)
    with warnings.catch_warnings(action="ignore"):  # a framework's own, which it gives once
        return run_ports([launch], asked(innocent), seed=1)


@pytest.fixture(autouse=True)
def _where_the_ports_are_found(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


@pytest.mark.one_in(4)
@pytest.mark.parametrize("innocent", INNOCENTS, ids=lambda innocent: f"{innocent.spec}-{innocent.mode}")
def test_it_is_not_accused_of_what_is_not_on_record(innocent):
    missing = [package for package in innocent.packages if find_spec(package) is None]
    if missing:
        pytest.skip(f"no {missing[0]}")
    if "tinygrad" in innocent.packages and find_clang() is None:
        pytest.skip("no clang 15 or later, which tinygrad's CPU device compiles with")
    [run] = judged(innocent)
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
    cases = tuple(case for case in COMPILED_BY_TORCH if case.op == "rms_norm")
    [run] = run_ports([Launch(spec, timeout=300)], cases)
    assert run.hello is not None, run.failure
    assert run.hello.orders == ("cast_then_scale",)
    assert {verdict.status for verdict in run.verdicts} == {"pass", "skip"}
    passed = {verdict.case.dialect.name for verdict in run.verdicts if verdict.status == "pass"}
    assert passed == {"cast_then_scale", "cast_then_scale_float32_weight"}
