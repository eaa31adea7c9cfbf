"""Triton's interpreter, mended: a kernel computes there what it computes on a GPU.

With TRITON_INTERPRET=1 Triton runs kernels in NumPy, where no GPU is; but triton 3.9 has the faults of `FAULTS`. `mend` runs a
small kernel for each, mends what comes out wrong, and runs it again: a version without a fault is left as it is.
"""

# What is mended is Triton's own.
# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any

import ml_dtypes
import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice
from triton.language.extra.cuda import libdevice as cuda_libdevice
from triton.runtime import interpreter
from triton.runtime.autotuner import Autotuner

FLOAT8 = {
    tl.float8e4nv: ml_dtypes.float8_e4m3fn,
    tl.float8e5: ml_dtypes.float8_e5m2,
    tl.float8e4b8: ml_dtypes.float8_e4m3fnuz,
    tl.float8e5b16: ml_dtypes.float8_e5m2fnuz,
}
HELD = {**FLOAT8, tl.bfloat16: ml_dtypes.bfloat16, tl.float16: np.float16, tl.float32: np.float32}
"""NumPy's type for each of Triton's that is converted to float8, or from it."""

OF_LIBDEVICE = frozenset(
    {"abs", "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "ceil", "copysign", "cos", "cosh", "erf", "erfc"}
    | {"erfinv", "exp", "exp2", "expm1", "floor", "fmod", "hypot", "lgamma", "log", "log10", "log1p", "log2", "pow", "rsqrt"}
    | {"sin", "sinh", "sqrt", "tan", "tanh", "trunc"}
)
"""The functions that torch has by the same name."""
OTHER_NAMES = {
    "fabs": "abs",
    "frsqrt_rn": "rsqrt",
    "fsqrt_rn": "sqrt",
    "dsqrt_rn": "sqrt",
    "fast_exp": "exp",
    "fast_log": "log",
    "rint": "round",  # torch's goes to the even one; libdevice's own `round` does not
    "nearbyint": "round",
}


@dataclass(frozen=True)
class Fault:
    """What the interpreter does wrong, a run that shows whether it does it right, and what mends it."""

    what: str
    is_right: Callable[[], bool]
    mend: Callable[[], None]

    def is_there(self) -> bool:
        """Whether the installed interpreter has it: gives a wrong number, or none."""
        try:
            return not self.is_right()
        except Exception:
            return True


def mend() -> tuple[str, ...]:
    """Mend the interpreter for the rest of this process; returns what was wrong with it, nothing where kernels are compiled.

    Call it before the first kernel is launched; kernels may have been defined before.
    Raises `RuntimeError` if TRITON_INTERPRET was set only after Triton had been imported, or if a fault cannot be mended.
    """
    if not triton.knobs.runtime.interpret:
        return ()
    if not isinstance(tl.sum, interpreter.InterpretedFunction):
        raise RuntimeError("TRITON_INTERPRET=1 was set after triton had been imported; set it before Python starts")
    mended: list[str] = []
    for fault in FAULTS:
        if fault.is_there():
            fault.mend()
            mended.append(fault.what)
            if fault.is_there():
                raise RuntimeError(f"triton {triton.__version__} has a fault that cannot be mended here: {fault.what}")
    return tuple(mended)


def check_device(device: str) -> None:
    """Raise `RuntimeError` where no kernel can run: on a CPU, unless it is interpreted."""
    if device.startswith("cpu") and not triton.knobs.runtime.interpret:
        raise RuntimeError("Triton has no kernels for a CPU: set TRITON_INTERPRET=1, or name a GPU (--device cuda)")


# Kernels that show the faults. y is one number.


@triton.jit
def _cast(x, y):
    tl.store(y, tl.load(x).to(y.dtype.element_ty))


@triton.jit
def _double(x, y):
    number = tl.load(x)
    tl.store(y, tl.where(number + number > number, number + number, -number))


@triton.jit
def _number(y, number):
    tl.store(y, number.to(tl.float32))


@triton.jit
def _rsqrt(x, y):
    tl.store(y, libdevice.rsqrt(tl.load(x)))


@triton.autotune([triton.Config({"ADDED": 1}), triton.Config({"ADDED": 2})], key=["x"])
@triton.jit
def _tuned(x, y, ADDED: tl.constexpr):
    tl.store(y, tl.load(x) + ADDED)


def _gives(kernel: Any, x: float | Tensor, expected: float, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the kernel, given x and a y of that dtype, leaves the number in y."""
    y = torch.empty(1, dtype=dtype)
    kernel[(1,)](x, y) if isinstance(x, Tensor) else kernel[(1,)](y, x)
    return y.float().item() == expected


# Mends. Each replaces some of the interpreter by what calls it, and alters what was wrong.


def _hold_bfloat16() -> None:
    """Hold bfloat16 as what NumPy computes with and rounds to, instead of its bits as integers, which memory alone reads."""
    builder, dtype_of = interpreter.InterpreterBuilder, interpreter._get_np_dtype
    cast, convert = builder.cast_impl, builder.create_fp_to_fp
    load, store = builder.create_masked_load, builder.create_masked_store
    held, bits = np.dtype(ml_dtypes.bfloat16), np.dtype(np.uint16)

    def numpy_dtype(dtype: tl.dtype) -> np.dtype:
        return held if dtype.scalar == tl.bfloat16 else dtype_of(dtype)

    def cast_impl(self: Any, source: Any, dtype: tl.dtype) -> Any:
        if tl.bfloat16 not in (source.dtype.scalar, dtype.scalar):
            return cast(self, source, dtype)
        return interpreter.TensorHandle(source.data.astype(numpy_dtype(dtype)), dtype.scalar)

    def create_fp_to_fp(self: Any, source: Any, dtype: tl.dtype, rounding_mode: Any) -> Any:
        to_nearest = rounding_mode in (None, interpreter._ir.ROUNDING_MODE.RTNE)
        if to_nearest and dtype.scalar == tl.bfloat16 and source.dtype.scalar not in FLOAT8:
            return cast_impl(self, source, dtype)
        return convert(self, source, dtype, rounding_mode)

    def create_masked_load(self: Any, pointers: Any, mask: Any, other: Any, *policy: Any) -> Any:
        if pointers.get_element_ty() != tl.bfloat16:
            return load(self, pointers, mask, other, *policy)
        absent = np.zeros(pointers.data.shape, bits) if other is None else other.data.view(bits)
        data = interpreter._interpreter.load(pointers.data, mask.data, absent, bits)
        return interpreter.TensorHandle(data.view(held), tl.bfloat16)

    def create_masked_store(self: Any, pointers: Any, value: Any, *others: Any) -> Any:
        if value.data.dtype == held:
            value = interpreter.TensorHandle(value.data.view(bits), value.dtype)
        return store(self, pointers, value, *others)

    interpreter._get_np_dtype = numpy_dtype
    builder.cast_impl, builder.create_fp_to_fp = cast_impl, create_fp_to_fp
    builder.create_masked_load, builder.create_masked_store = create_masked_load, create_masked_store


def _convert_float8() -> None:
    """Convert float8 by its numbers, to the nearest one, ties to even; as on a GPU, what is too large becomes the largest."""
    convert = interpreter._convert_float

    def convert_float(data: np.ndarray, source: tl.dtype, dtype: tl.dtype, rounding_mode: Any) -> np.ndarray:
        to_nearest = rounding_mode in (None, interpreter._ir.ROUNDING_MODE.RTNE)
        if not (to_nearest and {source, dtype} <= HELD.keys() and {source, dtype} & FLOAT8.keys()):
            return convert(data, source, dtype, rounding_mode)
        exact = np.ascontiguousarray(data).view(HELD[source]).astype(np.float32)
        if dtype in FLOAT8:
            largest = float(ml_dtypes.finfo(HELD[dtype]).max)
            exact = np.clip(exact, -largest, largest)
        return exact.astype(HELD[dtype]).view(f"u{dtype.primitive_bitwidth // 8}")

    interpreter._convert_float = convert_float


def _convert_numbers() -> None:
    """Make a float argument a float32, as Triton does when it compiles; in float64 that is another number."""
    convert = interpreter._implicit_cvt

    def implicit_convert(argument: Any) -> Any:
        if not isinstance(argument, float):
            return convert(argument)
        handle = interpreter.TensorHandle(np.array([argument], np.float32), tl.float32)
        return tl.tensor(handle, tl.float32)

    interpreter._implicit_cvt = implicit_convert


def _compute_libdevice() -> None:
    """Let torch compute libdevice's functions, which have no body but on a GPU."""

    def create_extern_elementwise(self: Any, _: str, __: str, symbol: str, arguments: list[Any], dtype: Any, ___: bool) -> Any:
        name = symbol.removeprefix("__nv_")
        known = OTHER_NAMES | {each: each for each in OF_LIBDEVICE}
        function = next((getattr(torch, known[each]) for each in (name, name.removesuffix("f")) if each in known), None)
        if function is None:
            raise NotImplementedError(f"libdevice's {name} in Triton's interpreter")
        result = function(*(torch.from_numpy(np.array(argument.data)) for argument in arguments))
        return interpreter.TensorHandle(result.numpy(), dtype.scalar)

    interpreter.InterpreterBuilder.create_extern_elementwise = create_extern_elementwise
    computed = {
        name: partial(getattr(cuda_libdevice, name), _semantic=interpreter.interpreter_semantic)
        for name, value in vars(libdevice).items()
        if isinstance(value, FunctionType) and hasattr(cuda_libdevice, name)
    }
    vars(libdevice).update(computed)
    patch = interpreter._patch_lang

    def patch_language(kernel: Any) -> Any:
        """Also replaces what the kernel's module imported from libdevice before, or from another copy of that module."""
        names = kernel.__globals__
        imported = {k: v for k, v in names.items() if isinstance(v, FunctionType) and v.__module__ == libdevice.__name__}
        names.update({name: computed[value.__name__] for name, value in imported.items() if value.__name__ in computed})
        return patch(kernel)

    interpreter._patch_lang = patch_language


def _take_the_first_config() -> None:
    """Call all configs equally fast, and run none of them: there is no device to time them on. The first is taken."""
    Autotuner._bench = lambda self, *args, config, **meta: [0.0]


FAULTS = (
    Fault(
        "float32 is cut off to bfloat16, and not rounded",
        lambda: _gives(_cast, torch.tensor([1 + 3 * 2.0**-9]), 1 + 2.0**-7, torch.bfloat16),
        _hold_bfloat16,
    ),
    Fault(
        "bfloat16 is computed with as if its bits were integers",
        lambda: _gives(_double, torch.ones(1, dtype=torch.bfloat16), 2.0, torch.bfloat16),
        _hold_bfloat16,
    ),
    Fault(
        "float32 is not rounded to the nearest float8",
        lambda: _gives(_cast, torch.tensor([1 + 2.0**-4]), 1.0, torch.float8_e4m3fn),
        _convert_float8,
    ),
    Fault("a float argument is no tensor", lambda: _gives(_number, 1e-5, float(np.float32(1e-5))), _convert_numbers),
    Fault("libdevice's functions return None", lambda: _gives(_rsqrt, torch.tensor([4.0]), 0.5), _compute_libdevice),
    Fault("an autotuned kernel finds no driver", lambda: _gives(_tuned, torch.ones(1), 2.0), _take_the_first_config),
)
"""What triton 3.9 does wrong: the order is that of mending."""
