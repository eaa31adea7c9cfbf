"""A dump holds what every submodule returned, by name and in order, and leaves the module as it was."""

from collections import OrderedDict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

from conformance.numbers.tensors import read_dump
from impl_jax.dump import dump_activations as dump_flax
from impl_torch.dump import dump_activations as dump_torch

X = np.linspace(-2, 3, 6, dtype=np.float32).reshape(2, 3)


class Pair(NamedTuple):
    left: object
    right: object


class Zoo(nn.Module):
    """Two calls of one layer, an operation in place on what another returned, and every kind of nest."""

    def __init__(self):
        super().__init__()
        self.first, self.shared, self.nest = nn.Linear(3, 3), nn.Linear(3, 3), Nest()

    def forward(self, x, *, shift):
        h = self.shared(self.first(x) + shift)
        h.mul_(2)
        return self.nest(self.shared(h))


class Nest(nn.Module):
    def forward(self, x):
        return Pair(x, OrderedDict(flags=x > 0, none=None, parts=[x + 1j * x, (x.T,)]))


def read(path) -> dict[str, np.ndarray]:
    dump = read_dump(path)
    assert dump.ordered
    return dump.tensors


def test_torch_names_and_order(tmp_path):
    x, shift = torch.from_numpy(X), torch.ones(3)
    model = Zoo()
    with torch.no_grad():
        output = dump_torch(model, tmp_path / "dump", x, shift=shift)
    dump = read(tmp_path / "dump")
    nest = ["left", "right.flags", "right.parts.0", "right.parts.1.0"]
    assert list(dump) == [
        *("input.0", "input.shift", "first", "shared", "shared#2"),
        *(f"nest.{part}" for part in nest),
        *(f"output.{part}" for part in nest),
    ]
    np.testing.assert_array_equal(dump["first"], model.first(x).detach())
    np.testing.assert_array_equal(dump["shared"], model.shared(model.first(x) + shift).detach())  # before mul_
    np.testing.assert_array_equal(dump["output.left"], output.left.detach())
    np.testing.assert_array_equal(dump["output.right.parts.1.0"], output.left.detach().T)
    np.testing.assert_array_equal(dump["output.right.parts.0"], np.stack([output.left.detach()] * 2, axis=-1))
    assert dump["output.right.flags"].dtype == bool


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("training", [True, False])
def test_torch_keeps_values_dtypes_and_gradients(tmp_path, dtype, training):
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).to(getattr(torch, dtype)).train(training)
    x = torch.from_numpy(X).to(getattr(torch, dtype)).requires_grad_()
    output = dump_torch(model, str(tmp_path / "dump"), x)
    output.sum().backward()
    assert x.grad is not None
    dump = read(tmp_path / "dump")
    assert list(dump) == ["input.0", "0", "1", "output"]
    assert {values.dtype.name for values in dump.values()} == {dtype}
    np.testing.assert_array_equal(dump["output"].astype(float), model(x).detach().double())


def test_torch_leaves_no_hooks_and_no_file(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(4, 4))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        dump_torch(model, tmp_path / "dump", torch.from_numpy(X))
    assert not any(part._forward_hooks for part in model.modules())
    assert list(tmp_path.iterdir()) == []
    dump_torch(model[0], tmp_path / "dump", torch.from_numpy(X))
    assert not model[0]._forward_hooks
    assert [path.name for path in tmp_path.iterdir()] == ["dump"]


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.layers = nnx.RMSNorm(3, rngs=rngs), nnx.List(nnx.Linear(3, 3, rngs=rngs) for _ in range(2))

    def __call__(self, x):
        for layer in (*self.layers, self.layers[0]):
            x = x + layer(self.norm(x))
        return x


class Louder(Block):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Blocks(nnx.Module):
    def __init__(self, rngs):
        self.quiet, self.loud = Block(rngs), Louder(rngs)

    def __call__(self, x, key=None):
        return {"loud": self.loud(self.quiet(x)), "key": key}


def test_nnx_names_and_order(tmp_path):
    model = Blocks(nnx.Rngs(0))
    before = {cls: dict(vars(cls)) for cls in (Block, Louder, Blocks, nnx.Linear, nnx.RMSNorm)}
    output = dump_flax(model, tmp_path / "dump", X, key=jax.random.key(0))
    dump = read(tmp_path / "dump")
    inside = ["norm", "layers.0", "norm#2", "layers.1", "norm#3", "layers.0#2"]
    quiet, loud = ([f"{name}.{part}" for part in inside] + [name] for name in ("quiet", "loud"))
    assert list(dump) == ["input.0", *quiet, *loud, "output.loud"]
    np.testing.assert_array_equal(dump["output.loud"], output["loud"])
    np.testing.assert_array_equal(dump["quiet.layers.0"], model.quiet.layers[0](model.quiet.norm(X)))
    assert {cls: dict(vars(cls)) for cls in before} == before


def test_nnx_classes_are_themselves_after_an_error(tmp_path):
    call = nnx.Linear.__call__
    with pytest.raises(TypeError, match=r"quiet\.norm is traced and has no values"):
        jax.eval_shape(lambda: dump_flax(Blocks(nnx.Rngs(0)), tmp_path / "dump", X))
    with pytest.raises(TypeError, match=r"input\.x is traced"):
        jax.jit(lambda x: dump_flax(Blocks(nnx.Rngs(0)), tmp_path / "dump", x=x))(X)
    assert nnx.Linear.__call__ is call
    assert list(tmp_path.iterdir()) == []


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        layer = linen.Dense(3, dtype=jnp.bfloat16)
        return layer(linen.RMSNorm()(layer(x))), x


@pytest.mark.parametrize("bound", [True, False])
def test_linen_names_and_order(tmp_path, bound):
    variables = Linen().init(jax.random.key(0), X)
    if bound:
        y, _ = dump_flax(Linen().bind(variables), tmp_path / "dump", X)
    else:
        y, _ = dump_flax(Linen(), tmp_path / "dump", variables, X)
    dump = read(tmp_path / "dump")
    assert list(dump) == ["input.0", "Dense_0", "RMSNorm_0", "Dense_0#2", "output.0", "output.1"]
    assert dump["Dense_0"].dtype.name == "bfloat16"
    np.testing.assert_array_equal(dump["output.0"], y)


def test_linen_says_what_is_traced(tmp_path):
    module = linen.jit(Linen)()
    variables = module.init(jax.random.key(0), X)
    with pytest.raises(TypeError, match="is traced and has no values"):
        dump_flax(module, tmp_path / "dump", variables, X)
    with jax.disable_jit():
        dump_flax(module, tmp_path / "dump", variables, X)
    assert "Dense_0#2" in read(tmp_path / "dump")
