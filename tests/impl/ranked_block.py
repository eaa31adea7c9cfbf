"""impl_torch's block on several ranks, as Megatron splits it. Each is given all of a case, and takes its own part of it."""

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from conformance.port import Call
from impl_torch import BlockConfig, pre_ln_block
from impl_torch.port import Port

SEQUENCE = -2
BY_OUTPUT = ("attention.q", "attention.k", "attention.v", "feed_forward.gate", "feed_forward.up")
BY_INPUT = ("attention.o.weight", "feed_forward.down.weight")


def axis(name: str) -> int | None:
    """The axis along which a tensor, or its gradient, is split; None for one that is whole."""
    if name in ("x", "dx", "out", "dout"):
        return SEQUENCE
    name = name.removeprefix("d")  # no parameter begins so
    if name in BY_INPUT:
        return -1
    return 0 if name.rpartition(".")[0] in BY_OUTPUT else None


class Megatron(Port):
    """Forward and gradients; what the ranks return is put together again on every one of them."""

    name = "impl_torch, tensor parallel"
    taps = False

    def run(self, call: Call, given: dict[str, Tensor]) -> dict[str, Any]:
        ranks, own = dist.get_world_size(), dist.get_rank()
        parts = {name: given[name] if (at := axis(name)) is None else given[name].chunk(ranks, at)[own] for name in given}
        outputs = super().run(call, {name: part.contiguous() for name, part in parts.items()})
        return {name: self.to_numpy(whole(name, self.to_tensor(output))) for name, output in outputs.items()}

    def constants_of(self, call: Call) -> dict[str, Any]:
        config, ranks = BlockConfig(**call.settings["config"]), dist.get_world_size()
        own = {name: getattr(config, name) // ranks for name in ("n_heads", "n_kv_heads", "d_ff")}
        return {"config": replace(config, **own), "process_group": dist.group.WORLD}

    pre_ln_block = staticmethod(pre_ln_block)


def whole(name: str, part: Tensor) -> Tensor:
    """A tensor of which every rank has a part."""
    at = axis(name)
    if at is None:
        return part
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part)
    return torch.cat(parts, dim=at)
