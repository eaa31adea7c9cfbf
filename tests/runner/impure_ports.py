"""Honest ports spoilt in one property each; served as `tests.runner.impure_ports:Class`."""

import time
from typing import ClassVar

import ml_dtypes
import numpy as np

from conformance.port.protocol import Answer
from tests.runner.bad_ports import Array, EpsOutsideRoot, Honest

# What is written where it must not be.


class OverwritesX(Honest):
    """In place: the right y, and x_hat is now x."""

    def vjp(self, function, inputs, dy, constants):
        outputs = super().vjp(function, inputs, dy, constants)
        x = inputs[0]
        if x.flags.writeable:
            x *= x.dtype.type(0.5)
        return outputs


class OverwritesXAndMistakesEps(EpsOutsideRoot):
    def vjp(self, function, inputs, dy, constants):
        outputs = super().vjp(function, inputs, dy, constants)
        for tensor in inputs[:2]:
            tensor[...] = 0
        return outputs


class OverwritesDy(Honest):
    """The right gradients, in the buffer of dy."""

    def vjp(self, function, inputs, dy, constants):
        y, (dx, *others) = super().vjp(function, inputs, dy, constants)
        if dy.flags.writeable:
            dy[...] = dx
        return y, (dx, *others)


class DeclaresDy(OverwritesDy):
    """In place, as many kernels are, and it says so."""

    overwrites = ("dy",)


class DeclaresXAndOverwritesDy(OverwritesDy):
    overwrites = ("x",)


class DoesNotLook(Honest):
    """As a program in another language may, it says nothing of its inputs."""

    def answer(self, call, tensors):
        return Answer(super().answer(call, tensors).outputs)


# What is remembered, or drawn.


class KeepsState(Honest):
    """A running mean of the mean square, as a batch norm would keep."""

    running = None

    def rstd(self, mean_square, eps):
        if np.shape(self.running) == mean_square.shape and self.running.dtype == mean_square.dtype:
            mean_square = mean_square * mean_square.dtype.type(0.5) + self.running * mean_square.dtype.type(0.5)
        self.running = mean_square
        return super().rstd(mean_square, eps)


class IsNoisy(Honest):
    """Sums in whichever order the threads come: the last bits of rstd are chance."""

    chance = np.random.default_rng()

    def rstd(self, mean_square, eps):
        noise = self.chance.integers(-2, 3, mean_square.shape) * np.finfo(mean_square.dtype).eps
        return super().rstd(mean_square, eps) * (1 + noise.astype(mean_square.dtype))


class Remembers(Honest):
    """Answers with what it once answered; a subclass says which questions it takes for the same."""

    def __init__(self, device="cpu", *, jit=True):
        super().__init__(device, jit=jit)
        self.known = {}

    def key(self, call, tensors):
        raise NotImplementedError

    def run(self, call, given):
        key = self.key(call, given)
        if key not in self.known:
            self.known[key] = super().run(call, given)
        return self.known[key]


class RemembersShapes(Remembers):
    def key(self, call, tensors):
        return call.op, call.order, call.eps, tensors["x"].shape, tensors["x"].dtype


class RemembersCases(Remembers):
    def key(self, call, tensors):
        return call.case, tensors["x"].shape


class RemembersX(Remembers):
    """x alone is looked at: another dy, or another weight, is not seen."""

    def key(self, call, tensors):
        return call.op, call.order, call.eps, tensors["x"].shape, tensors["x"].tobytes()


class RemembersFirstRow(Remembers):
    """Of x the first row is looked at, of all else everything."""

    def key(self, call, tensors):
        others = tuple(tensor.tobytes() for name, tensor in tensors.items() if name != "x")
        return call.op, call.order, call.eps, tensors["x"].shape, tensors["x"][0].tobytes(), others


class AddsToOldGradients(Honest):
    """The buffer of dweight is used again, and not cleared."""

    def __init__(self, device="cpu", *, jit=True):
        super().__init__(device, jit=jit)
        self.buffers = {}

    def vjp(self, function, inputs, dy, constants):
        y, (dx, dweight, *rest) = super().vjp(function, inputs, dy, constants)
        key = function.__name__, str(constants), dy.dtype, dy.shape
        self.buffers[key] = dweight + self.buffers.get(key, dweight * 0)
        return y, (dx, self.buffers[key], *rest)


class LeavesTheLastRow(Honest):
    """y is written into memory that is used again, and its last row is not written: an earlier answer's is there."""

    def __init__(self, device="cpu", *, jit=True):
        super().__init__(device, jit=jit)
        self.buffers = {}

    def vjp(self, function, inputs, dy, constants):
        y, gradients = super().vjp(function, inputs, dy, constants)
        buffer = self.buffers.setdefault((y.shape, y.dtype), y.copy())
        buffer.reshape(-1, y.shape[-1])[:-1] = y.reshape(-1, y.shape[-1])[:-1]
        return buffer, gradients


class TiresAfterTen(Honest):
    """Right ten times; from then on the last element is lost."""

    def __init__(self, device="cpu", *, jit=True):
        super().__init__(device, jit=jit)
        self.calls = 0

    def vjp(self, function, inputs, dy, constants):
        y, gradients = super().vjp(function, inputs, dy, constants)
        self.calls += 1
        if self.calls > 10:
            y.reshape(-1)[-1:] = 0
        return y, gradients


# What depends on the other rows.


class CountsRows(Honest):
    """Padding to a block of rows leaks into the statistics where there are few."""

    def rstd(self, mean_square, eps):
        few = mean_square.size < 128
        return super().rstd(mean_square, eps) * mean_square.dtype.type(1.01 if few else 1)


class RoundsByRowCount(Honest):
    """Another kernel for few rows: its rstd is off by an ulp of the compute dtype, as an honest one's may be."""

    def rstd(self, mean_square, eps):
        rstd = super().rstd(mean_square, eps)
        return np.nextafter(rstd, rstd.dtype.type(0)) if mean_square.size < 128 else rstd


class SplitsFewRows(Honest):
    """Below 32 rows, a row is shared by two blocks: every third rstd is off by an ulp of the compute dtype."""

    def rstd(self, mean_square, eps):
        rstd = super().rstd(mean_square, eps)
        off = (mean_square.size < 32) & (np.signbit(np.sin(1e6 * mean_square)) | (mean_square > mean_square.mean()))
        return np.where(off, np.nextafter(rstd, rstd.dtype.type(0)), rstd)


class CompilesSizes(Honest):
    """Right, and slow over a number of rows that is new."""

    sizes: ClassVar[set[int]] = set()

    def run(self, call, given):
        rows = len(given["x"].reshape(-1, given["x"].shape[-1]))
        if rows not in self.sizes:
            time.sleep(0.2)
        self.sizes.add(rows)
        return super().run(call, given)


class LosesTheTail(Honest):
    """dweight is summed in blocks of eight rows, and what is left over is not."""

    def vjp(self, function, inputs, dy, constants):
        y, (dx, dweight, *rest) = super().vjp(function, inputs, dy, constants)
        d = dy.shape[-1]
        rows = dy.size // d
        left = rows % 8 if rows > 8 else 0
        if left:
            x, dy = inputs[0].reshape(-1, d)[-left:], dy.reshape(-1, d)[-left:]
            dweight = dweight - super().vjp(function, (x, *inputs[1:]), dy, constants)[1][1]
        return y, (dx, dweight, *rest)


class MixesRows(Honest):
    """One mean square for a block of two rows."""

    def rstd(self, mean_square, eps):
        rows = mean_square.reshape(-1)
        blocks = rows[: len(rows) // 2 * 2].reshape(-1, 2)
        mixed = np.concatenate([np.repeat(blocks.mean(axis=1), 2), rows[len(rows) // 2 * 2 :]])
        return super().rstd(mixed.reshape(mean_square.shape), eps)


class IgnoresStrides(Honest):
    """Reads the memory behind a view as if the view were all of it."""

    def vjp(self, function, inputs, dy, constants):
        x = inputs[0]
        if x.base is not None and not x.flags.c_contiguous and min(x.strides) > 0:
            memory = np.ravel(x.base, order="K")
            inputs = (memory[: x.size].reshape(x.shape), *inputs[1:])
        return super().vjp(function, inputs, dy, constants)


# What is no homogeneous function.


class EpsHardCoded(Honest):
    def rstd(self, mean_square, eps):
        return super().rstd(mean_square, 1e-5)


class EpsInDy(Honest):
    """A small constant keeps dy away from zero."""

    def vjp(self, function, inputs, dy, constants):
        return super().vjp(function, inputs, dy + dy.dtype.type(0.5), constants)


class OffsetsWeight(Honest):
    """Takes every weight for one that is stored less one."""

    def forward(self, x, weight, bias, **constants):
        return super().forward(x, weight, bias, **constants | {"weight_offset": 1.0})


# What the compiler changes.


class CompilesToAnother(Honest):
    """Eager, x_hat is cast before it meets the weight; compiled, the cast is fused away."""

    compiles = True

    def forward(self, x, weight, bias, *, order="scale_then_cast", **constants):
        kept = order if not self.jit else "scale_then_cast"
        return super().forward(x, weight, bias, order=kept, **constants)


# What no single element of bfloat16 shows.


class DividesByOneLess(Honest):
    """The statistician's variance, at a width of 768 as elsewhere."""

    def forward(self, x, weight, bias, **constants):
        self.width = x.shape[-1]
        return super().forward(x, weight, bias, **constants)

    def rstd(self, mean_square, eps):
        return super().rstd(mean_square * mean_square.dtype.type(self.width / (self.width - 1)), eps)


class RstdInHalf(Honest):
    """rstd is kept in bfloat16."""

    def rstd(self, mean_square, eps):
        return super().rstd(mean_square, eps).astype(ml_dtypes.bfloat16).astype(mean_square.dtype)


class RstdOf12Bits(Honest):
    """The instruction's first guess, without the Newton step: 12 bits of it are right."""

    def rstd(self, mean_square: Array, eps: float) -> Array:
        rstd = super().rstd(mean_square, eps)
        mantissa, exponent = np.frexp(rstd)
        return np.ldexp(np.rint(mantissa * 2**11) / 2**11, exponent).astype(rstd.dtype)


# What every element of float32 admits, and all of them together do not.


class RoundsOneWay(Honest):
    """Exact, then rounded to the compute dtype in a direction that a subclass chooses."""

    def towards(self, exact):
        raise NotImplementedError

    def vjp(self, function, inputs, dy, constants):
        if inputs[0].dtype == np.float64:
            return super().vjp(function, inputs, dy, constants)
        wide = tuple(None if tensor is None else tensor.astype(np.float64) for tensor in inputs)
        y, gradients = super().vjp(function, wide, dy.astype(np.float64), constants)
        dtypes = [dy.dtype, *(inputs[0].dtype if tensor is None else tensor.dtype for tensor in inputs)]
        made = [
            None if exact is None else self.rounded(exact).astype(dtype)
            for exact, dtype in zip([y, *gradients], dtypes, strict=True)
        ]
        return made[0], tuple(made[1:])

    def rounded(self, exact):
        nearest = exact.astype(np.float32)
        towards = self.towards(exact)
        passed = np.abs(towards - nearest) > np.abs(towards - exact)
        return np.where(passed | (nearest == exact), nearest, np.nextafter(nearest, towards.astype(np.float32)))


class RoundsUp(RoundsOneWay):
    def towards(self, exact):
        return exact + np.abs(exact)


class Truncates(RoundsOneWay):
    def towards(self, exact):
        return exact * 0


class IsCoarse(Honest):
    """x is read with 19 bits in float32: every element is off by a few ulps, to either side."""

    def forward(self, x, weight, bias, **constants):
        if x.dtype == np.float32:
            mantissa, exponent = np.frexp(x)
            x = np.ldexp(np.rint(mantissa * 2**20) / 2**20, exponent).astype(np.float32)
        return super().forward(x, weight, bias, **constants)
