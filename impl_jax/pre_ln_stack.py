"""Pre-LN blocks one after another, as one `lax.scan`: compiled once, however many they are."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float

from impl_jax.attention import KeyMask
from impl_jax.block_config import BlockConfig
from impl_jax.pre_ln_block import Parameters, PreLNBlock, Taps, block_taps, check_parameters


def pre_ln_stack(
    x: Float[Array, "*batch s d_model"],
    parameters: Parameters,
    key_mask: KeyMask | None = None,
    *,
    config: BlockConfig,
    n_layers: int,
    position: ArrayLike = 0,
    taps: bool = False,
) -> Float[Array, "*batch s d_model"] | tuple[Float[Array, "*batch s d_model"], Taps]:
    """`n_layers` blocks of one config, each on the output of the one before.

    `parameters` are either flat, every block's with its number before the name (`0.attention.q.weight`), or stacked, with
    the blocks along a leading axis (`attention.q.weight`), which spares a copy of them. With `taps`, also every
    intermediate, the block's number before its name. Raises as `pre_ln_block` does.
    """
    if any(name.startswith("0.") for name in parameters):
        parameters = stack_layers(parameters, n_layers)

    def block(x: Array, p: Parameters) -> tuple[Array, Taps]:
        values = block_taps(x, p, None, None, key_mask, config, position)
        return values["out"], values if taps else Taps()

    out, values = lax.scan(block, x, parameters, length=n_layers)
    return (out, Taps(unstack_layers(values))) if taps else out


class PreLNStack(nnx.Module):
    """`pre_ln_stack` with learned `parameters`, a dictionary of stacked arrays; every block is drawn as `PreLNBlock` is."""

    def __init__(self, config: BlockConfig, n_layers: int, *, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        self.config = config
        self.n_layers = n_layers
        blocks = [PreLNBlock(config, param_dtype=param_dtype, rngs=rngs).save() for _ in range(n_layers)]
        stacked = {name: jnp.stack([block[name] for block in blocks]) for name in blocks[0]}
        self.parameters = nnx.Dict({name: nnx.Param(array) for name, array in stacked.items()})

    def __call__(
        self,
        x: Float[Array, "*batch s d_model"],
        key_mask: KeyMask | None = None,
        *,
        position: ArrayLike = 0,
        taps: bool = False,
    ) -> Float[Array, "*batch s d_model"] | tuple[Float[Array, "*batch s d_model"], Taps]:
        """`pre_ln_stack` with the parameters held."""
        how: dict[str, Any] = {"config": self.config, "n_layers": self.n_layers, "position": position, "taps": taps}
        return pre_ln_stack(x, self._stacked(), key_mask, **how)

    def save(self) -> dict[str, Array]:
        """Every block's every parameter, flat."""
        return unstack_layers(self._stacked())

    def load(self, parameters: Parameters) -> None:
        """Set every parameter, in the dtype that it has, from flat ones. Raises as `pre_ln_block` does."""
        stacked = stack_layers(parameters, self.n_layers)
        check_parameters({name: array[0] for name, array in stacked.items()}, self.config)
        for name, parameter in self.parameters.items():
            parameter[...] = stacked[name].astype(parameter.dtype)

    def _stacked(self) -> dict[str, Array]:
        return {name: parameter[...] for name, parameter in self.parameters.items()}


def stack_layers(parameters: Parameters, n_layers: int) -> dict[str, Array]:
    """Every block's parameters, numbered, as one array for each name, blocks first.

    Raises `ValueError` where the blocks are not 0 to n_layers - 1, or do not all have the same parameters.
    """
    names = [name.removeprefix("0.") for name in parameters if name.startswith("0.")]
    expected = {f"{i}.{name}" for i in range(n_layers) for name in names}
    if odd := sorted(expected ^ parameters.keys()):
        raise ValueError(
            f"pre_ln_stack: parameters are not those of {n_layers} blocks alike: {', '.join(odd)} missing or too many"
        )
    return {name: jnp.stack([parameters[f"{i}.{name}"] for i in range(n_layers)]) for name in names}


def unstack_layers(stacked: Parameters) -> dict[str, Array]:
    """The reverse: every block's arrays, its number before their names."""
    n_layers = len(next(iter(stacked.values())))
    return {f"{i}.{name}": array[i] for i in range(n_layers) for name, array in stacked.items()}
