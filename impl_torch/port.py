"""The bridge to the kit: PyTorch tensors, autograd, torch.compile."""

import inspect
import os
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import ml_dtypes
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard, init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._pytree import tree_leaves

import conformance.port
import impl_torch


class Counting(CommDebugMode):
    """torch's own count of collectives, and the bytes of what they return."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        before = self.get_total_counts()
        made = super().__torch_dispatch__(func, types, args, kwargs)
        if self.get_total_counts() > before:
            self.bytes += sum(each.nbytes for each in tree_leaves(made) if isinstance(each, Tensor))
        return made


class TorchPort(conformance.port.Port):
    """PyTorch tensors and autograd, in eager mode, or compiled with `fullgraph=True`.

    Shapes are dynamic, so that cases share kernels.
    """

    compiles = True

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        torch.empty(0, device=device)  # a device that is not there is said so at once
        torch.set_num_threads(1)
        # One function is asked in every dtype, rank and dialect, and what was compiled for it is kept between runs.
        torch._dynamo.config.recompile_limit = 10_000  # pyright: ignore
        functorch = torch._functorch.config  # pyright: ignore
        if hasattr(functorch, "autograd_cache_allow_custom_autograd_functions"):
            functorch.autograd_cache_allow_custom_autograd_functions = True

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}

    def to_tensor(self, array: np.ndarray) -> Tensor:
        if array.dtype == ml_dtypes.bfloat16:  # torch reads NumPy's dtypes only
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(self.device)
        return torch.from_numpy(array).to(self.device)

    def to_numpy(self, tensor: Tensor) -> np.ndarray:
        tensor = tensor.detach().cpu()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
            return tensor.view(torch.int8).numpy().view(str(tensor.dtype).removeprefix("torch."))
        return tensor.numpy()

    def lay_out(self, tensor: Tensor, layout: str) -> Tensor:
        match layout:
            case "permuted":
                return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
            case "sliced":
                return torch.nn.functional.pad(tensor, (3, 4))[..., 3:-4]
            case "strided":
                return tensor.repeat_interleave(2, dim=-1)[..., ::2]
            case "expanded":
                return _before_zeros(tensor[:1], tensor).expand(tensor.shape)
            case "at_offset":
                return torch.cat([torch.zeros_like(tensor[:1]), tensor, torch.zeros_like(tensor[:1])])[1:-1]
            case "aliased":
                return tensor.detach()
            case "one_number":
                return _before_zeros(tensor[(slice(1),) * tensor.ndim], tensor).expand(tensor.shape)
            case _:
                return super().lay_out(tensor, layout)

    def evaluate(self, function: Any, inputs: tuple, constants: dict[str, Any]) -> Any:
        if not self.jit:
            return function(*inputs, **constants)
        if "position" in constants:
            constants = constants | {"position": torch.tensor(constants["position"], device=self.device)}
        if "weight_offset" in constants and _has_no_weight(function, inputs):
            # A float that a graph has no use for, torch 2.13 takes for a constant, there and in every later graph.
            constants = constants | {"weight_offset": 0}
        # Only the norms' cases have many shapes; elsewhere symbols for sizes would only cost the compiler time.
        return _compiled(function, dynamic="eps" in constants)(*inputs, **constants)

    def vjp(self, function: Any, inputs: tuple, dy: Any, constants: dict[str, Any]) -> tuple[Any, tuple]:
        made, gradients = self.pullback(function, inputs, dy, constants)
        return made, gradients()

    def pullback(self, function: Any, inputs: tuple, dy: Any, constants: dict[str, Any]) -> tuple[Any, Callable[[], tuple]]:
        leaves = [leaf.requires_grad_() for leaf in _leaves(inputs)]
        made = self.evaluate(function, inputs, constants)
        returned, cotangents = (each if isinstance(each, tuple) else (each,) for each in (made, dy))
        ys, dys = zip(*[pair for pair in zip(returned, cotangents, strict=False) if pair[1] is not None], strict=True)
        # What only an output without a cotangent depends on has a gradient of zero.
        unread = len(dys) < len(cotangents)

        def gradients() -> tuple:
            computed = torch.autograd.grad(ys, leaves, dys, allow_unused=True, materialize_grads=unread)
            by_leaf = dict(zip(leaves, computed, strict=True))
            return tuple(
                {name: by_leaf[leaf] for name, leaf in value.items()} if isinstance(value, dict) else by_leaf.get(value)
                for value in inputs
            )

        return made, gradients

    def run(self, call: conformance.port.Call, given: dict[str, Tensor]) -> dict[str, np.ndarray]:
        if call.ranks == 1:
            return super().run(call, given)
        with Counting() as counting:
            outputs = super().run(call, given)
        self.collectives = conformance.port.Collectives(counting.get_total_counts(), counting.bytes)
        return outputs

    def timed(self, step: Callable[[], Any]) -> tuple[Any, float, float]:
        if torch.device(self.device).type != "cuda":
            return super().timed(step)
        # By the device's clock. What a call has put on another stream is not waited for, so that its answer is wrong.
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        worked = time.process_time()
        before.record()
        made = step()
        after.record()
        after.synchronize()
        return made, before.elapsed_time(after) / 1e3, time.process_time() - worked

    def copies(self, n_bytes: int) -> tuple[Callable[[], Any], ...]:
        if self.device == "cpu":
            return super().copies(n_bytes)
        source = torch.ones(n_bytes // 2, dtype=torch.uint8, device=self.device)
        return (partial(torch.empty_like(source).copy_, source),)


class Port(TorchPort):
    """impl_torch's functions."""

    name = "impl_torch"
    taps = True
    features = conformance.port.FEATURES
    splits = ("rows", "features")
    rms_norm = staticmethod(impl_torch.rms_norm)
    layer_norm = staticmethod(impl_torch.layer_norm)
    add_rms_norm = staticmethod(impl_torch.add_rms_norm)
    add_layer_norm = staticmethod(impl_torch.add_layer_norm)
    gated_rms_norm = staticmethod(impl_torch.gated_rms_norm)
    quantised_rms_norm = staticmethod(impl_torch.quantised_rms_norm)
    quantised_add_rms_norm = staticmethod(impl_torch.quantised_add_rms_norm)
    batch_norm = staticmethod(impl_torch.batch_norm)
    rope = staticmethod(impl_torch.rope)
    attention = staticmethod(impl_torch.attention)
    swiglu = staticmethod(impl_torch.swiglu)
    gelu = staticmethod(impl_torch.gelu)
    pre_ln_block = staticmethod(impl_torch.pre_ln_block)
    pre_ln_stack = staticmethod(impl_torch.pre_ln_stack)

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        on_ranks = int(os.environ.get("WORLD_SIZE", "1")) > 1
        # Op by op there: torch keeps no graph with a collective in it between runs, and to compile them takes minutes.
        super().__init__(device, jit=jit and not on_ranks)
        if on_ranks:
            self.compiles = False
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")

    def constants_of(self, call: conformance.port.Call) -> dict[str, Any]:
        constants = super().constants_of(call)
        if call.ranks == 1 or (call.split == "rows" and not call.gradients and call.op != "batch_norm"):
            return constants  # there is nothing to sum
        if "process_group" not in inspect.signature(getattr(self, call.op)).parameters:
            raise conformance.port.Skip(f"no {call.op} on several ranks")
        sums = "rows" if call.op == "batch_norm" else "features"  # over what the statistics are
        groups = {"process_group": call.split == sums, "rows_group": call.split == "rows"}
        return constants | {name: dist.group.WORLD for name, is_split in groups.items() if is_split}

    def tap(self, function: Any, inputs: tuple, constants: dict[str, Any]) -> dict[str, Tensor]:
        return function(*inputs, **constants, taps=True)[1]  # op by op: another program is not worth compiling


class OnDTensors(TorchPort):
    """A port's functions on several ranks: of DTensors. What they return is redistributed as the inputs are."""

    splits = ("rows", "features")

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=False)
        self.compiles = False
        self.mesh = init_device_mesh(device, (int(os.environ["WORLD_SIZE"]),))

    def run(self, call: conformance.port.Call, given: dict[str, Tensor]) -> dict[str, np.ndarray]:
        return super().run(call, {name: self._whole(part) for name, part in given.items()})

    def to_numpy(self, tensor: Tensor) -> np.ndarray:
        if isinstance(tensor, DTensor):
            tensor = tensor.redistribute(self.mesh, [self._placement(tensor.shape)]).to_local()
        return super().to_numpy(tensor)

    def _whole(self, part: Tensor) -> Tensor:
        """The tensor of which this rank has a part."""
        call, shape = self.call, list(part.shape)
        if call.split == "rows" and part.ndim > 1:
            shape[0] = call.shape[0]
        elif call.split == "features":
            shape[-1] = call.shape[-1]
        whole = torch.empty(shape, device="meta")
        placements = [self._placement(whole.shape)]
        return DTensor.from_local(part, self.mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())

    def _placement(self, shape: torch.Size) -> Any:
        if self.call.split == "rows" and len(shape) > 1:
            return Shard(0)
        return Shard(len(shape) - 1) if self.call.split == "features" else Replicate()


class DTensors(OnDTensors, Port):
    """impl_torch's functions of DTensors."""

    name = "impl_torch, DTensor"
    splits = ("rows", "features")
    skips = {"quantised_*": "no quantised norm of DTensors"}  # noqa: RUF012

    def constants_of(self, call: conformance.port.Call) -> dict[str, Any]:
        return TorchPort.constants_of(self, call)  # no process group: the tensors know theirs


def _leaves(inputs: tuple) -> list[Tensor]:
    """The tensors among the inputs, those of dictionaries included."""
    values = [value for each in inputs for value in (each.values() if isinstance(each, dict) else (each,))]
    return [value for value in values if value is not None]


def _has_no_weight(function: Any, inputs: tuple) -> bool:
    """Whether a norm is given None for its weight."""
    return inspect.signature(function).bind_partial(*inputs).arguments.get("weight", ...) is None


def _before_zeros(part: Tensor, whole: Tensor) -> Tensor:
    """The first part of a tensor, in a memory as large as the whole one's, with zeros behind it: nothing to be read there."""
    memory = torch.zeros_like(whole)
    place = tuple(slice(size) for size in part.shape)
    memory[place] = part
    return memory[place]


@cache
def _compiled(function: Any, dynamic: bool) -> Any:
    return torch.compile(function, fullgraph=True, dynamic=dynamic)
