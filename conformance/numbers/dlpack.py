"""A framework's tensor as a NumPy array, bfloat16 included, without the framework.

`numpy.from_dlpack` knows no bfloat16 (2.4), so the struct is read here:
https://github.com/dmlc/dlpack/blob/main/include/dlpack/dlpack.h, as `__dlpack__` hands it over:
https://data-apis.org/array-api/latest/API_specification/generated/array_api.array.__dlpack__.html
"""

import ctypes
from typing import Any

import numpy as np

from conformance.numbers.rounding import DTYPES, FORMATS, QUANTISED_DTYPES

Array = np.ndarray

CPU = 1
ON_THE_HOST = (CPU, 3, 11)  # and memory that CUDA or ROCm has pinned
KNOWN = {(FORMATS[dtype].dlpack, FORMATS[dtype].bits): dtype for dtype in (*DTYPES, *QUANTISED_DTYPES)}
"""The dtypes by type code and number of bits."""


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def from_dlpack(tensor: Any) -> Array:
    """A copy of a tensor that has `__dlpack__`, in its dtype.

    Raises `BufferError` where its memory is a device's, or its dtype none that cases have; and whatever `__dlpack__` raises.
    """
    device, _ = tensor.__dlpack_device__()
    if device not in ON_THE_HOST:
        raise BufferError("its memory is a device's: move it to the CPU")
    capsule = tensor.__dlpack__()  # which owns the memory, and must outlive the view of it
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return _view(_Tensor.from_address(get_pointer(capsule, b"dltensor"))).copy()


def _view(tensor: _Tensor) -> Array:
    """The elements where they lie. Strides count elements; where there are none, the rows are adjacent."""
    kind = tensor.dtype.code, tensor.dtype.bits
    if kind not in KNOWN or tensor.dtype.lanes != 1:
        raise BufferError(f"its dtype is none of {', '.join(KNOWN.values())}")
    dtype = FORMATS[KNOWN[kind]].storage
    shape = tuple(tensor.shape[: tensor.ndim])
    if 0 in shape:
        return np.zeros(shape, dtype)
    strides = tuple(dtype.itemsize * stride for stride in tensor.strides[: tensor.ndim]) if tensor.strides else None
    last = sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True)) if strides else None
    extent = dtype.itemsize * int(np.prod(shape)) if last is None else last + dtype.itemsize
    memory = memoryview((ctypes.c_char * extent).from_address(tensor.data + tensor.byte_offset))
    return np.ndarray(shape, dtype, memory, strides=strides)
