"""onnxruntime's operators as they ship, each as a model of one node on the CPU; y alone, for it has no gradients."""

from collections.abc import Sequence
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
NOT_WANTED = 0  # onnx.TensorProto.UNDEFINED, for an output of a node that is not one of the model's


class Port(conformance.port.Port):
    """The operators of ONNX. Both modes are the same session; the product of swiglu is NumPy's."""

    name = "onnxruntime"
    orders = ("scale_then_cast",)
    sums = ("unrounded",)
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

    def add_rms_norm(self, x: Array, residual: Array, weight: Array | None, *, eps: float, **_: Any) -> tuple[Array, Array]:
        return added("SkipSimplifiedLayerNormalization", eps, x, residual, weight)

    def add_layer_norm(
        self, x: Array, residual: Array, weight: Array | None, bias: Array | None, *, eps: float, **_: Any
    ) -> tuple[Array, Array]:
        return added("SkipLayerNormalization", eps, x, residual, weight, bias)

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
        types = element_types(given)
        made = types[:1] + 2 * training * types[-1:]
        run = one_node("BatchNormalization", settings, types, made)
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
    layer_norm = add_rms_norm = add_layer_norm = None  # pyright: ignore[reportAssignmentType]
    batch_norm = rope = attention = swiglu = gelu = None  # pyright: ignore[reportAssignmentType]
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
    given = [array for array in (x, weight, bias) if array is not None]
    y = np.empty(x.shape, weight.dtype)
    run = one_node(op, (("epsilon", eps),), element_types(given), element_types([y]))
    run_in_place(run, given, [y])
    return y


def added(
    op: str, eps: float, x: Array, residual: Array, weight: Array | None, bias: Array | None = None
) -> tuple[Array, Array]:
    """y and the sum, of one of onnxruntime's own operators: the two statistics between them are not wanted. `Skip` as above."""
    if weight is None:
        raise Skip(f"{op} always has a weight")
    given = [array for array in (x, residual, weight, bias) if array is not None]
    if any(array.dtype != x.dtype for array in given):
        raise Skip(f"{op} takes tensors of x's dtype only")
    y, residual_out = np.empty_like(x), np.empty_like(x)
    y_type = element_type(x)
    made = y_type, NOT_WANTED, NOT_WANTED, y_type
    run_in_place(one_node(op, (("epsilon", eps),), element_types(given), made, "com.microsoft"), given, [y, residual_out])
    return y, residual_out


def run_in_place(run: onnxruntime.InferenceSession, given: Sequence[Array], made: Sequence[Array]) -> None:
    """Run a session from arrays into arrays where they lie: bfloat16, which it has no NumPy dtype for, is bits to it."""
    binding = run.io_binding()
    for place, array in enumerate(given):
        binding.bind_input(f"X{place}", "cpu", 0, element_type(array), array.shape, array.ctypes.data)
    for output, array in zip(run.get_outputs(), made, strict=True):
        binding.bind_output(output.name, "cpu", 0, element_type(array), array.shape, array.ctypes.data)
    run.run_with_iobinding(binding)


def node(op: str, *inputs: Array, **attributes: Any) -> Array:
    """The output of one node, which has the shape and dtype of its first input. Raises `Skip` as above."""
    types = element_types(inputs)
    run = one_node(op, tuple(attributes.items()), types, types[:1])
    [y] = run.run(None, {f"X{i}": array for i, array in enumerate(inputs)})
    return np.asarray(y)


@cache
def one_node(
    op: str, attributes: tuple[tuple[str, Any], ...], given: tuple[int, ...], made: tuple[int, ...], domain: str = ""
) -> onnxruntime.InferenceSession:
    """A session for one node of any operator of ONNX's opset 24, or of another domain's, at any shape.

    `given` and `made` are the element types of its inputs, X0, X1, …, and outputs, Y0, Y1, …. Raises `Skip` where it has no
    kernel for these types.
    """
    inputs = [helper.make_tensor_value_info(f"X{place}", type_, None) for place, type_ in enumerate(given)]
    outputs = [helper.make_tensor_value_info(f"Y{place}" if type_ else "", type_, None) for place, type_ in enumerate(made)]
    names, made_names = ([value.name for value in values] for values in (inputs, outputs))
    computed = helper.make_node(op, names, made_names, domain=domain, **dict(attributes))
    graph = helper.make_graph([computed], op, inputs, [output for output in outputs if output.name])
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except (NoKernel, InvalidGraph):  # the operator is not defined for these types, or not implemented
        types = " and ".join(helper.tensor_dtype_to_np_dtype(type_).name for type_ in dict.fromkeys(given))
        raise Skip(f"no kernel of {op} for {types}") from None


def element_types(arrays: Sequence[Array]) -> tuple[int, ...]:
    """ONNX's numbers for the dtypes of arrays."""
    return tuple(element_type(array) for array in arrays)


def element_type(array: Array) -> int:
    """ONNX's number for an array's dtype."""
    return helper.np_dtype_to_tensor_dtype(array.dtype)
