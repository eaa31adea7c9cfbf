"""impl_torch's modules as torch's own parallel layers use them: each rank has a part of the rows. Served for `run --ranks`."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, init_device_mesh
from torch.distributed.tensor.parallel import SequenceParallel, parallelize_module

import impl_torch
from impl_torch.port import Port


class Modules(Port):
    """RMSNorm and LayerNorm as modules, whose parameters' gradients are summed over the ranks by whoever has wrapped them."""

    splits = ("rows",)
    weight_offsets = (0,)
    add_rms_norm = add_layer_norm = gated_rms_norm = batch_norm = None  # pyright: ignore[reportAssignmentType]
    quantised_rms_norm = quantised_add_rms_norm = None  # pyright: ignore[reportAssignmentType]

    def vjp(self, function: Any, inputs: tuple, dy: Tensor, constants: dict[str, Any]) -> tuple[Any, tuple]:
        x, *parameters = inputs
        norm = {"rms_norm": impl_torch.RMSNorm, "layer_norm": impl_torch.LayerNorm}[self.call.op]
        module = norm(
            x.shape[-1], eps=constants["eps"], order=constants.get("order", "cast_then_scale"), dtype=parameters[0].dtype
        )
        with torch.no_grad():
            for own, given in zip(module.parameters(), parameters, strict=True):
                own.copy_(given)
        y = self.wrapped(module)(x.requires_grad_())
        y = y.to_local() if isinstance(y, DTensor) else y
        y.backward(dy)
        return y, (x.grad, *(whole(parameter.grad) for parameter in module.parameters()))

    def wrapped(self, module: Any) -> Any:
        raise NotImplementedError

    @property
    def mesh(self) -> Any:
        return init_device_mesh("cpu", (self.call.ranks,))


def whole(gradient: Any) -> Tensor:
    assert isinstance(gradient, DTensor)
    return gradient.full_tensor()


class FullyShard(Modules):
    """FSDP2: every rank has a part of each parameter too. It would average gradients over the ranks; here they are summed."""

    name = "impl_torch, FSDP2"

    def wrapped(self, module: Any) -> Any:
        fully_shard(module, mesh=self.mesh)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no other
        module.set_gradient_divide_factor(1.0)
        return module


class OfSequence(Modules):
    """torch's SequenceParallel, along the first axis: gradients of parameters are partial until they are summed."""

    name = "impl_torch, SequenceParallel"

    def wrapped(self, module: Any) -> Any:
        return parallelize_module(module, self.mesh, SequenceParallel(sequence_dim=0))
