"""Ports that look fast because they do not compute; each is right as long as it is asked a few times only."""

from threading import Timer

import numpy as np

from tests.runner.bad_ports import Honest, NoGradients

JUDGED = 40  # more calls than the quick cases of an op and a dtype, and the shape itself


class Cheat(NoGradients):
    """Counts the calls of its norm."""

    def __init__(self, device="cpu", *, jit=True):
        super().__init__(device, jit=jit)
        self.calls, self.answers = 0, {}

    def evaluate(self, function, inputs, constants):
        self.calls += 1
        return self.answer_to(super().evaluate(function, inputs, constants), inputs)


class RemembersWhereXLies(Cheat):
    def answer_to(self, y, inputs):
        return self.answers.setdefault((inputs[0].ctypes.data, y.shape), y.copy()).copy()


class RemembersASum(Cheat):
    """The same for every order of the rows."""

    def answer_to(self, y, inputs):
        sum_ = round(float(np.abs(inputs[0].astype(np.float64)).sum()), 3)
        return self.answers.setdefault((sum_, y.shape), y.copy()).copy()


class ReturnsEarly(Cheat):
    """As from a stream of its own: y is not there yet when the call returns."""

    def answer_to(self, y, inputs):
        if self.calls < JUDGED:
            return y
        later = np.empty_like(y)
        Timer(0.01, np.copyto, (later, y)).start()
        return later


class OverwritesX(Cheat):
    def answer_to(self, y, inputs):
        if self.calls > JUDGED:
            inputs[0][...] = y
        return y


class FindsWhatItLeft(Cheat):
    """The memory of its answer to the same x, which it does not fill again. One row has no other order."""

    def answer_to(self, y, inputs):
        return self.answers.setdefault(inputs[0].tobytes(), y)


class Lazy(NoGradients):
    """Right, and nothing is computed before it is read."""

    def evaluate(self, function, inputs, constants):
        return lambda: super(Lazy, self).evaluate(function, inputs, constants)

    def to_numpy(self, tensor):
        return tensor() if callable(tensor) else tensor


class LazyAndSaysHowToWait(Lazy):
    """As a framework of lazy tensors is; what is computed is kept."""

    def evaluate(self, function, inputs, constants):
        kept = []
        compute = super().evaluate(function, inputs, constants)
        return lambda: kept[0] if kept else kept.append(compute()) or kept[0]

    def finish(self, made):
        if callable(made):
            made()
        for each in made if isinstance(made, tuple) else ():
            self.finish(each)


class InParts(Honest):
    """Honest, with a backward pass of its own."""

    def pullback(self, function, inputs, dy, constants):
        return self.evaluate(function, inputs, constants), lambda: self.vjp(function, inputs, dy, constants)[1]


class BackwardOverwritesDy(InParts):
    def pullback(self, function, inputs, dy, constants):
        def gradients():
            dx, *others = self.vjp(function, inputs, dy, constants)[1]
            dy[...] = dx
            return dx, *others

        return None, gradients


class WrongBackward(InParts):
    """Right forward, so that its forward pass ranks."""

    def vjp(self, function, inputs, dy, constants):
        y, (dx, *others) = super().vjp(function, inputs, dy, constants)
        return y, (dx * 2, *others)
