"""Pre-LN blocks, one after another, for PyTorch."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from impl_torch.attention import KeyMask
from impl_torch.block_config import BlockConfig
from impl_torch.pre_ln_block import Parameters, PreLNBlock, Taps, pre_ln_block


def pre_ln_stack(
    x: Float[Tensor, "*batch s d_model"],
    parameters: Parameters,
    key_mask: KeyMask | None = None,
    *,
    config: BlockConfig,
    n_layers: int,
    position: int | Tensor = 0,
    taps: bool = False,
) -> Float[Tensor, "*batch s d_model"] | tuple[Float[Tensor, "*batch s d_model"], Taps]:
    """`pre_ln_block`, `n_layers` times; layer 3's parameters and taps have names that begin with `3.`.

    Raises `ValueError` as `pre_ln_block` does, and for parameters of no layer.
    """
    layers: list[dict[str, Tensor]] = [{} for _ in range(n_layers)]
    for name, parameter in parameters.items():
        layer, _, own_name = name.partition(".")
        if not layer.isdecimal() or int(layer) >= n_layers:
            raise ValueError(f"pre_ln_stack: parameter {name!r} is of none of the {n_layers} layers")
        layers[int(layer)][own_name] = parameter
    kept: Taps = {}
    for layer, own in enumerate(layers):
        if taps:
            result = pre_ln_block(x, own, key_mask=key_mask, config=config, position=position, taps=True)
            assert isinstance(result, tuple)
            x, own_taps = result
            kept |= {f"{layer}.{name}": tap for name, tap in own_taps.items()}
        else:
            x = _same_again(pre_ln_block, x, own, key_mask=key_mask, config=config, position=position)
    return (x, kept) if taps else x


class PreLNStack(nn.ModuleList):
    """`pre_ln_stack` with parameters of its own: a list of `PreLNBlock`."""

    def __init__(
        self,
        config: BlockConfig,
        n_layers: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(PreLNBlock(config, device=device, dtype=dtype) for _ in range(n_layers))

    def forward(
        self, x: Float[Tensor, "*batch s d_model"], key_mask: KeyMask | None = None, position: int | Tensor = 0
    ) -> Float[Tensor, "*batch s d_model"]:
        """As `pre_ln_stack`."""
        for block in self:
            x = _same_again(block, x, key_mask=key_mask, position=position)
        return x


def _apply(layer: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    return layer(*args, **kwargs)


# torch 2.11 cannot trace an `autograd.Function` within such a region: "KeyError: example_value".
_traces_regions = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
_same_again: Callable[..., Tensor] = torch.compiler.nested_compile_region(_apply) if _traces_regions else _apply  # pyright: ignore[reportAssignmentType]
"""A layer: torch.compile traces the first, and takes the others for the same program on other parameters."""
