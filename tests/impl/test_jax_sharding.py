"""impl_jax on arrays that are split over four devices: under jit, inside shard_map with its checks on, and a whole block."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.collectives import COLLECTIVE, counted, page_table, programs
from conformance.judging.compare import Verdict, compare
from conformance.ops.cases import CASES
from conformance.ops.golden import golden
from conformance.ops.ranks import least_collectives
from conformance.port.session import call_of
from conformance.question.case import Case
from conformance.question.collectives import Collectives
from impl_jax import layer_norm, pre_ln_block, rms_norm
from impl_jax.linear import linear
from impl_jax.port import JaxPort, Port, ShardMap

PAGE = (Path(__file__).parents[2] / "docs/sharding.md").read_text(encoding="utf-8")
ROWS, FEATURES = PartitionSpec("rows"), PartitionSpec(None, "features")
IN_BFLOAT16 = [case for case in CASES if case.layout == "sharded_both" and case.dtype == "bfloat16"]
BY_ID = {case.id: case for case in CASES}


@pytest.fixture
def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("rows", "features"))


def draw(*shape: int, seed: int = 0) -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def judged(port: type[JaxPort], case: Case) -> Verdict:
    expected = golden(case, seed=0)
    answer = port().answer(call_of(case, tuple(case.outputs), expected.inputs, taps=False), expected.inputs)
    return compare("port", expected, answer.outputs, tuple(case.outputs))


@pytest.mark.parametrize("case", IN_BFLOAT16, ids=lambda case: case.id)
def test_each_device_differentiates_its_part_of_the_rows_and_features(case):
    """JAX checks that dweight, which no device has whole, is summed over those that split the rows, and over no others."""
    assert judged(ShardMap, case).status == "pass"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dweight_is_summed_over_the_devices_in_float32(dtype, mesh):
    """Asked of the program before XLA rewrites it: on a CPU it adds up half precision in float32 anyway."""
    x, weight = draw(8, 32).astype(dtype), draw(32).astype(dtype)
    norm = jax.shard_map(rms_norm, mesh=mesh, in_specs=(ROWS, PartitionSpec()), out_specs=ROWS)
    gradient = jax.jit(lambda x, weight: jax.vjp(norm, x, weight)[1](x))
    [summed] = [line for line in str(gradient.trace(x, weight).jaxpr).splitlines() if "psum" in line]
    assert ":f32[32]" in summed
    assert gradient(x, weight)[1].dtype == dtype


def test_without_an_axis_name_a_part_is_a_row_of_its_own(mesh):
    """So whoever splits features has to say so."""
    x = draw(8, 32)
    of_parts = jax.shard_map(rms_norm, mesh=mesh, in_specs=FEATURES, out_specs=FEATURES)(x)
    np.testing.assert_allclose(of_parts, rms_norm(x, group_size=16), rtol=1e-6)


def test_groups_are_of_one_part(mesh):
    norm = partial(layer_norm, group_size=8, axis_name="features")
    with pytest.raises(ValueError, match="group_size is 8; with an axis_name, 'features', it must be None"):
        jax.shard_map(norm, mesh=mesh, in_specs=FEATURES, out_specs=FEATURES)(draw(8, 32))


def test_a_product_whose_outputs_are_split_passes_the_whole_of_dx_back(mesh):
    """Megatron's column-parallel layer: every device has some columns of the matrix, and a part of dx."""
    x, weight, bias, dy = draw(8, 32), draw(16, 32, seed=1), draw(16, seed=2), draw(8, 16, seed=3)
    of_outputs = PartitionSpec("features")
    specs = ROWS, of_outputs, of_outputs
    split = jax.shard_map(linear, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("rows", "features"))
    for actual, expected in zip(jax.vjp(split, x, weight, bias)[1](dy), jax.vjp(linear, x, weight, bias)[1](dy), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_no_collective_is_run_that_the_split_does_not_need():
    for port in (Port, ShardMap):
        for split in ("sharded_rows", "sharded_features"):
            case = BY_ID[f"rms_norm/either_order/float32/{split}"]
            assert tuple(map(counted, programs(port, case))) == least_collectives(case)


def test_the_page_has_the_counts_that_were_measured():
    assert page_table() in PAGE


def test_the_code_of_the_page_is_a_norm_of_split_arrays():
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    x, weight = draw(4, 6, 32), draw(32, seed=1)
    names = {"x": x, "weight": weight}
    exec(code, names)
    np.testing.assert_allclose(names["y"], rms_norm(x, weight), rtol=1e-5, atol=1e-6)
    whole = jax.vjp(rms_norm, x, weight)[1](x)
    for actual, expected in zip(names["pullback"](x), whole, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_collectives_are_read_from_the_text_of_a_program():
    text = """
      %psum = f32[40,1]{1,0} all-reduce(%a), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
      ROOT %both = (bf16[32]{0}, f32[32]{0}) all-reduce-start(%b, %c), channel_id=2
      %one = f32[8]{0} add(%all-reduce.1, %d)
      %gathered = s8[8,32]{1,0} all-gather(%e), dimensions={1}
    """
    assert counted(text) == Collectives(3, 160 + 64 + 128 + 256)


# Megatron's layout, on two devices: matrices that read the stream are split by their outputs, those that write to it by their
# inputs. Norms and residuals are of each device's part of the sequence; their weights are whole.
BY_OUTPUT = ("attention.q", "attention.k", "attention.v", "feed_forward.gate", "feed_forward.up")
BY_INPUT = ("attention.o.weight", "feed_forward.down.weight")
OF_SEQUENCE = ("x", "dy")


class TensorParallel(Port):
    """A block whose tensors are split as in Megatron; what each device computes is for XLA to find out."""

    def run(self, call: Any, given: Mapping[str, Array]) -> dict[str, np.ndarray]:
        mesh = Mesh(np.array(jax.devices()[:2]), ("parts",))
        split = {name: jax.device_put(tensor, NamedSharding(mesh, megatron(name))) for name, tensor in given.items()}
        return super().run(call, split)


def megatron(name: str) -> PartitionSpec:
    if name in OF_SEQUENCE or name in BY_INPUT:
        return PartitionSpec(None, "parts")
    return PartitionSpec("parts") if name.rpartition(".")[0] in BY_OUTPUT else PartitionSpec()


class OfParts(TensorParallel):
    """The same inside shard_map, with its checks on: what each device computes of its part is written out."""

    @staticmethod
    def pre_ln_block(x: Array, parameters: Mapping[str, Array], *_: Any, config: Any, position: int, **__: Any) -> Array:
        mesh = Mesh(np.array(jax.devices()[:2]), ("parts",))
        own = replace(config, **{name: getattr(config, name) // 2 for name in ("n_heads", "n_kv_heads", "d_ff")})
        block = partial(pre_ln_block, config=own, position=position, axis_name="parts")
        specs = megatron("x"), {name: megatron(name) for name in parameters}
        return jax.shard_map(block, mesh=mesh, in_specs=specs, out_specs=megatron("x"))(x, parameters)


@pytest.mark.parametrize("port", [TensorParallel, OfParts])
@pytest.mark.parametrize("id_", ["pre_ln_block/qwen3/bfloat16/random", "pre_ln_block/gpt2/float32/random"])
def test_a_block_split_as_in_megatron_is_the_same_block(port, id_):
    """Forward and gradients, those of norms' weights too, of which each device has a part of the rows, or of the heads."""
    case = replace(BY_ID[id_], s=8, name="tensor_parallel")
    verdict = judged(port, case)
    assert (verdict.status, verdict.message) == ("pass", "")


def test_a_block_split_as_in_megatron_gathers_no_matrix():
    """Forward, each half gathers the rows that it reads and sums those that it writes: four collectives of the stream."""
    case = replace(BY_ID["pre_ln_block/gpt2/float32/random"], s=8, name="tensor_parallel")
    forward, backward = programs(TensorParallel, case)
    assert [each["made"].partition("{")[0] for each in COLLECTIVE.finditer(forward)] == ["f32[2,8,48]"] * 4
    matrices = [",".join(map(str, shape)) for name, shape in case.config.parameters().items() if len(shape) == 2]
    assert not any(f"[{shape}]" in each["made"] for each in COLLECTIVE.finditer(backward) for shape in matrices)
