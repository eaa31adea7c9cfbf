"""onnxruntime's operators as they ship, each as a model of one node on the CPU; y alone, for it has no gradients."""

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidGraph
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

import conformance.port
from conformance.port import Skip

Array = np.ndarray
INPUTS = ("X", "Scale", "B")


class Port(conformance.port.Port):
    """The operators of ONNX. Both modes are the same session; the product of swiglu is NumPy's."""

    name = "onnxruntime"
    orders = ("scale_then_cast",)
    expected = {  # noqa: RUF012
        "attention/*/float64/*": "float64 is computed in float32",
        "gelu/tanh/float64/*": "the constants of Gelu's formula are in float32",
    }
    weight_offsets = (0,)
    skips = {"batch_norm/training/*": "the variance that runs is the biased one"}  # noqa: RUF012

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

    def lay_out(self, tensor: Array, layout: str) -> Array:
        raise Skip("no strides: a model's tensors are contiguous")

    def rms_norm(self, x: Array, weight: Array | None, *, eps: float, **_: Any) -> Array:
        return one_dtype("RMSNormalization", eps, x, weight)

    def layer_norm(self, x: Array, weight: Array | None, bias: Array | None, *, eps: float, **_: Any) -> Array:
        return one_dtype("LayerNormalization", eps, x, weight, bias)

    def batch_norm(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        *,
        running_mean: Array,
        running_var: Array,
        eps: float,
        training: bool,
        momentum: float = 0.1,
        **_: Any,
    ) -> Any:
        """Features are on axis 1; `momentum` is the share of the old, and the variance that runs is the biased one."""
        if weight is None or bias is None:
            raise Skip("BatchNormalization always has a scale and a bias")
        given = np.ascontiguousarray(np.moveaxis(x, -1, 1)), weight, bias, running_mean, running_var
        settings = ("epsilon", eps), ("momentum", 1 - momentum), ("training_mode", int(training))
        run = one_node("BatchNormalization", settings, *(element_type(array) for array in given), more=2 * training)
        y, *running = map(np.asarray, run.run(None, {f"X{i}": array for i, array in enumerate(given)}))
        y = np.moveaxis(y, 1, -1)
        return (y, *running) if training else y

    def rope(self, x: Array, *, position: int, base: float, interleaved: bool) -> Array:
        """The angles are a model's initialisers: float64 here, cosines and sines rounded to x's dtype."""
        half = x.shape[-1] // 2
        angles = (position + np.arange(x.shape[-3]))[:, None] * base ** (-np.arange(half) / half)
        turn = [np.broadcast_to(f(angles).astype(x.dtype), (len(x), *angles.shape)) for f in (np.cos, np.sin)]
        heads = np.ascontiguousarray(x.swapaxes(-2, -3))
        return node("RotaryEmbedding", heads, *turn, interleaved=int(interleaved)).swapaxes(-2, -3)

    def attention(self, q: Array, k: Array, v: Array, key_mask: Array | None, *, causal: bool) -> Array:
        s, t = q.shape[-3], k.shape[-3]
        heads = [np.ascontiguousarray(a.swapaxes(-2, -3)) for a in (q, k, v)]
        if key_mask is None and (not causal or s == t):  # is_causal aligns the first query with the first key
            return node("Attention", *heads, is_causal=int(causal)).swapaxes(-2, -3)
        seen = np.tri(s, t, t - s, dtype=bool) if causal else np.ones((s, t), bool)
        seen = seen if key_mask is None else seen & (key_mask != 0)[:, None, None, :]
        return node("Attention", *heads, seen).swapaxes(-2, -3)

    def swiglu(self, gate: Array, up: Array) -> Array:
        return node("Swish", gate) * up

    def gelu(self, x: Array, *, approximate: bool) -> Array:
        return node("Gelu", x, approximate="tanh" if approximate else "none")


class Simplified(Port):
    """SimplifiedLayerNormalization, onnxruntime's own RMSNorm, which its optimiser makes of the nodes of an exported model."""

    name = "onnxruntime simplified"
    layer_norm = batch_norm = rope = attention = swiglu = gelu = None  # pyright: ignore[reportAssignmentType]
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


def node(op: str, *inputs: Array, **attributes: Any) -> Array:
    """The output of one node of ONNX's opset 24, which has the shape and dtype of its first input. Raises `Skip` as above."""
    run = one_node(op, tuple(attributes.items()), *(element_type(array) for array in inputs))
    [y] = run.run(None, {f"X{i}": array for i, array in enumerate(inputs)})
    return np.asarray(y)


@cache
def one_node(
    op: str, attributes: tuple[tuple[str, Any], ...], *element_types: int, more: int = 0
) -> onnxruntime.InferenceSession:
    """A session for one node of any operator, at any shape; `more` outputs than one have the type of the last input.

    Raises `Skip` where it has no kernel for these types.
    """
    names = [f"X{i}" for i in range(len(element_types))]
    inputs = [helper.make_tensor_value_info(name, type_, None) for name, type_ in zip(names, element_types, strict=True)]
    types = element_types[0], *element_types[-1:] * more
    outputs = [helper.make_tensor_value_info(f"Y{i}", type_, None) for i, type_ in enumerate(types)]
    made = [output.name for output in outputs]
    graph = helper.make_graph([helper.make_node(op, names, made, **dict(attributes))], op, inputs, outputs)
    return _session(graph, 24, element_types)


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
    return _session(graph, 23, element_types)


def _session(graph: onnx.GraphProto, opset: int, element_types: tuple[int, ...]) -> onnxruntime.InferenceSession:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except (NoKernel, InvalidGraph):  # the operator is not defined for these types, or not implemented
        types = " and ".join(helper.tensor_dtype_to_np_dtype(type_).name for type_ in dict.fromkeys(element_types))
        raise Skip(f"no kernel of {graph.name} for {types}") from None
