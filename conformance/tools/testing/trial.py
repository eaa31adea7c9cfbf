"""A case in the hands of a test: its inputs, and the judgement of what was made of them in the test's own process."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from conformance.judging.compare import compare
from conformance.numbers.dlpack import from_dlpack
from conformance.numbers.rounding import NUMPY_DTYPES
from conformance.ops.golden import golden
from conformance.port.serving import summary
from conformance.question.case import Case
from conformance.report.single import Teller

Array = np.ndarray


class Trial:
    """One case, as the fixture `conformance_case` hands it over.

    `inputs` are NumPy arrays by name (bfloat16 is ml_dtypes'), the test's own copies; `x`, `weight`, `bias` and `dy` are among
    them, None where the case has none. `eps`, `order`, `weight_offset`, `layout` and `settings` are the constants.
    """

    def __init__(self, case: Case, seed: int, teller: Teller) -> None:
        self.case, self._golden, self._teller = case, golden(case, seed), teller
        self.inputs: dict[str, Array] = {name: array.copy() for name, array in self._golden.inputs.items()}
        self.id, self.op, self.dtype, self.layout = case.id, case.op, case.dtype, case.layout
        self.order, self.weight_offset = case.dialect.order, case.weight_offset or 0
        self.eps, self.settings, self.outputs = case.eps, case.settings, case.outputs
        self.x, self.weight, self.bias, self.dy = (self.inputs.get(name) for name in ("x", "weight", "bias", "dy"))

    def __repr__(self) -> str:
        return f"<case {self.id}>"

    def check(self, outputs: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        """Assert that the outputs given, such as `y=…, dx=…`, are as the golden has them.

        Each is a NumPy array or a tensor of torch, JAX, or any framework whose tensors have `__dlpack__`, on the CPU.

        Those not given are not judged; None stands for one that the case does not have. Raises `AssertionError` with the
        diagnosis, `TypeError` where there is nothing to judge.
        """
        __tracebackhide__ = True  # the test's own line is what is shown
        given = {**(outputs or {}), **named}
        actual = {name: self._read(name, value) for name, value in given.items() if value is not None or name in self.outputs}
        asked = tuple(name for name in self.outputs if name in actual)
        if not asked:
            raise TypeError(f"nothing to judge: {self.id} has the outputs {', '.join(self.outputs)}")
        verdict = compare("this", self._golden, actual, asked)
        if verdict.status != "pass":
            raise AssertionError(f"{self._teller.tell(verdict, 'reproduce')}\n  exposes     {self.case.exposes}")

    def _read(self, name: str, value: Any) -> Array:
        if name not in self.outputs and not name.startswith("tap."):
            raise TypeError(f"{self.id} has no output {name!r}; it has {', '.join(self.outputs)}")
        try:
            array = _as_array(value)
        except Exception as error:
            raise TypeError(f"{name} is {type(value).__name__}, which cannot be read: {summary(error)}") from None
        if array.dtype not in NUMPY_DTYPES.values():
            raise TypeError(f"{name} is {type(value).__name__} of dtype {array.dtype}; it must be an array of {self.dtype}")
        return array


def _as_array(value: Any) -> Array:
    """Whatever NumPy reads as it is, or a tensor of any framework that has `__dlpack__`, recorded for gradients or not."""
    if not hasattr(value, "__dlpack__") or isinstance(value, np.ndarray):
        return np.asarray(value)
    try:
        array = np.asarray(value)
        if array.dtype in NUMPY_DTYPES.values():
            return array
    except Exception:  # a dtype that NumPy lacks, or a tensor that is recorded: as the framework says it
        pass
    return from_dlpack(value.detach() if hasattr(value, "detach") else value)
