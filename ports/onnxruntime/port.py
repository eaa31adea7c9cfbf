"""onnxruntime's norms as they ship, each as a model of one node on the CPU; y alone, for it has no gradients."""

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

import conformance.port
from conformance.port import Skip

Array = np.ndarray
INPUTS = ("X", "Scale", "B")


class Port(conformance.port.Port):
    """RMSNormalization and LayerNormalization, the operators of ONNX. Both modes are the same session."""

    name = "onnxruntime"
    orders = ("scale_then_cast",)
    weight_offsets = (0,)

    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        super().__init__(device, jit=jit)
        if device != "cpu":
            raise ValueError(f"no device {device}: the arrays here are in the memory of the CPU")

    def versions(self) -> dict[str, str]:
        return {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}

    def to_tensor(self, array: Array) -> Array:
        return array

    def to_numpy(self, tensor: Array) -> Array:
        return tensor

    def rms_norm(self, x: Array, weight: Array | None, *, eps: float, **_: Any) -> Array:
        return one_dtype("RMSNormalization", eps, x, weight)

    def layer_norm(self, x: Array, weight: Array | None, bias: Array | None, *, eps: float, **_: Any) -> Array:
        return one_dtype("LayerNormalization", eps, x, weight, bias)


class Simplified(Port):
    """SimplifiedLayerNormalization, onnxruntime's own RMSNorm, which its optimiser makes of the nodes of an exported model."""

    name = "onnxruntime simplified"
    layer_norm = None  # pyright: ignore[reportAssignmentType]
    expected = {"*_float32_weight/float16/*": "y has the dtype of the weight, and x_hat is not rounded"}  # noqa: RUF012

    def rms_norm(self, x: Array, weight: Array | None, *, eps: float, **_: Any) -> Array:
        return evaluate("SimplifiedLayerNormalization", eps, x, weight)


def one_dtype(op: str, eps: float, x: Array, *parameters: Array | None) -> Array:
    """`evaluate` an operator that has no kernels for mixed dtypes."""
    if any(parameter is not None and parameter.dtype != x.dtype for parameter in parameters):
        raise Skip(f"{op} takes parameters of x's dtype only")
    return evaluate(op, eps, x, *parameters)


def evaluate(op: str, eps: float, x: Array, weight: Array | None, bias: Array | None = None) -> Array:
    """The output of one node, of x's shape and the weight's dtype. Raises `Skip` where there is no weight or no kernel."""
    if weight is None:
        raise Skip(f"{op} always has a weight")
    given = {name: array for name, array in zip(INPUTS, (x, weight, bias), strict=True) if array is not None}
    y = np.empty(x.shape, weight.dtype)
    run = session(op, eps, *(element_type(array) for array in given.values()))
    binding = run.io_binding()
    for name, array in given.items():
        binding.bind_input(name, "cpu", 0, element_type(array), array.shape, array.ctypes.data)
    binding.bind_output("Y", "cpu", 0, element_type(y), y.shape, y.ctypes.data)
    run.run_with_iobinding(binding)
    return y


def element_type(array: Array) -> int:
    """ONNX's number for an array's dtype."""
    return helper.np_dtype_to_tensor_dtype(array.dtype)


@cache
def session(op: str, eps: float, *element_types: int) -> onnxruntime.InferenceSession:
    """A session for one node, at any shape. Raises `Skip` where it has no kernel for these types."""
    names = INPUTS[: len(element_types)]
    inputs = [helper.make_tensor_value_info(name, type_, None) for name, type_ in zip(names, element_types, strict=True)]
    output = helper.make_tensor_value_info("Y", element_types[1], None)
    graph = helper.make_graph([helper.make_node(op, names, ["Y"], epsilon=eps)], op, inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except NoKernel:
        types = " and ".join(helper.tensor_dtype_to_np_dtype(type_).name for type_ in dict.fromkeys(element_types))
        raise Skip(f"no kernel of {op} for {types}") from None
