"""Ports with one fault each that only some inputs show; served as `tests.runner.faulty_ports:Class`."""

import os
import time

import numpy as np

from conformance.port import Skip
from tests.runner.bad_ports import Honest

Array = np.ndarray


class CrashesAtWidth17(Honest):
    def run(self, call, tensors):
        if tensors["x"].shape[-1] == 17:
            os._exit(3)
        return super().run(call, tensors)


class HangsOnEmptyBatches(Honest):
    def run(self, call, tensors):
        if not tensors["x"].size:
            time.sleep(1000)
        return super().run(call, tensors)


class LosesLastRow(Honest):
    """dweight is summed over all rows but the last."""

    def vjp(self, function, inputs, dy, constants):
        y, (dx, dweight, *rest) = super().vjp(function, inputs, dy, constants)
        if dweight is not None and dy.ndim > 1 and len(dy):
            last = super().vjp(function, (inputs[0][-1:], *inputs[1:]), dy[-1:], constants)[1][1]
            dweight = dweight - last
        return y, (dx, dweight, *rest)


class TwoFaults(LosesLastRow):
    """eps outside the root of RMSNorm, and a row lost in LayerNorm."""

    def rstd(self, mean_square: Array, eps: float) -> Array:
        outside = 1 / (np.sqrt(mean_square) + mean_square.dtype.type(eps))
        return super().rstd(mean_square, eps) if self.centred else outside

    def vjp(self, function, inputs, dy, constants):
        self.centred = function == self.layer_norm
        return (super() if self.centred else super(LosesLastRow, self)).vjp(function, inputs, dy, constants)


class ThreeFaults(CrashesAtWidth17, TwoFaults):
    """No width of 17, either."""


class IgnoresStrides(Honest):
    """Reads what lies transposed in memory as if it were contiguous."""

    def lay_out(self, tensor: Array, layout: str) -> Array:
        laid_out = super().lay_out(tensor, layout)
        return np.swapaxes(laid_out, -1, -2).reshape(tensor.shape) if layout == "permuted" else laid_out


class OnePassVariance(Honest):
    """E[x²] − E[x]², in float32: cancels where the mean is large."""

    def layer_norm(self, x, weight, bias, **constants):
        return self.forward(x, weight, bias, centred=True, **constants)[0]

    def forward(self, x, weight, bias, *, centred, **constants):
        self.row = x.astype(np.float64 if x.dtype == np.float64 else np.float32) if centred else None
        return super().forward(x, weight, bias, centred=centred, **constants)

    def rstd(self, mean_square: Array, eps: float) -> Array:
        if self.row is not None:
            square, mean = np.mean(self.row * self.row, axis=-1, keepdims=True), np.mean(self.row, axis=-1, keepdims=True)
            mean_square = np.maximum(square - mean * mean, 0)
        return super().rstd(mean_square, eps)


class FailsOnce(Honest):
    """Returns rubbish for its third case, and never again."""

    cases = 0

    def run(self, call, tensors):
        self.cases += 1
        outputs = super().run(call, tensors)
        return {name: output[:0] for name, output in outputs.items()} if self.cases == 3 else outputs


class SkipsAll(Honest):
    def run(self, call, tensors):
        raise Skip("not today")


class TakesNotes(Honest):
    """Writes what it was asked into the file that NOTES names."""

    def run(self, call, tensors):
        with open(os.environ["NOTES"], "a") as notes:
            notes.write(f"{call.case} {tensors['x'].shape} {call.layout} {call.eps}\n")
        return super().run(call, tensors)
