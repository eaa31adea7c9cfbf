"""An honest port in NumPy, and the same port gone wrong in every way a port can; served as `tests.runner.bad_ports:Class`."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np

from conformance.numbers.tensors import read_tensors
from conformance.port import Port, Skip
from conformance.port.protocol import Call, Hello
from conformance.tools.fixtures import FIXTURES

Array = np.ndarray
VICTIM = "zero_rows"  # the case, by the last part of its id, on which a `Saboteur` goes wrong


class Honest(Port):
    """Both norms in float32 (float64 for float64), with gradients, in either order."""

    name = "numpy"

    def rms_norm(self, x: Array, weight: Array | None, **constants: Any) -> Array:
        return self.forward(x, weight, None, centred=False, **constants)[0]

    def layer_norm(self, x: Array, weight: Array | None, bias: Array | None, **constants: Any) -> Array:
        return self.forward(x, weight, bias, centred=True, **constants)[0]

    def rstd(self, mean_square: Array, eps: float) -> Array:
        return 1 / np.sqrt(mean_square + mean_square.dtype.type(eps))

    @np.errstate(all="ignore")  # NaN and infinity are among the cases
    def forward(
        self, x, weight, bias, *, eps, centred, weight_offset=0.0, order="scale_then_cast"
    ) -> tuple[Array, Array, Array]:
        """y, x_hat and rstd, the last two in the compute dtype."""
        compute = np.float64 if x.dtype == np.float64 else np.float32
        parameters = [p for p in (weight, bias) if p is not None]
        row = x.astype(compute)
        row = row - row.mean(axis=-1, keepdims=True) if centred else row  # *batch d
        rstd = self.rstd(np.mean(row * row, axis=-1, keepdims=True), eps)  # *batch 1
        x_hat = row * rstd  # *batch d
        y = x_hat.astype(x.dtype).astype(compute) if order == "cast_then_scale" else x_hat
        y = y if weight is None else y * (weight.astype(compute) + compute(weight_offset))
        y = y if bias is None else y + bias.astype(compute)
        y_dtype = parameters[0].dtype if parameters and order == "cast_then_scale" else x.dtype
        return y.astype(y_dtype), x_hat, rstd

    @np.errstate(all="ignore")
    def vjp(self, function: Any, inputs: tuple, dy: Array, constants: dict[str, Any]) -> tuple[Array, tuple]:
        x, weight, bias = inputs if len(inputs) == 3 else (*inputs, None)
        centred = function == self.layer_norm
        y, x_hat, rstd = self.forward(x, weight, bias, centred=centred, **constants)
        compute = x_hat.dtype.type
        dy = dy.astype(compute)
        g = dy if weight is None else dy * (weight.astype(compute) + compute(constants.get("weight_offset", 0)))  # *batch d
        shift = g.mean(axis=-1, keepdims=True) if centred else compute(0)  # *batch 1
        dx = rstd * (g - shift - x_hat * np.mean(g * x_hat, axis=-1, keepdims=True))  # *batch d
        dweight = None if weight is None else (dy * x_hat).reshape(-1, x.shape[-1]).sum(axis=0).astype(weight.dtype)
        dbias = None if bias is None else dy.reshape(-1, x.shape[-1]).sum(axis=0).astype(bias.dtype)
        return y, (dx.astype(x.dtype), dweight, dbias)[: len(inputs)]


# Wrong by arithmetic, or honest about what is missing.


class EpsOutsideRoot(Honest):
    def rstd(self, mean_square: Array, eps: float) -> Array:
        return 1 / (np.sqrt(mean_square) + mean_square.dtype.type(eps))


class KnowsItsFaults(EpsOutsideRoot):
    expected = {"*/rows_near_eps": "eps outside the root", "*/values_near_6e4": "nothing is wrong here"}  # noqa: RUF012


class FailsByChance(EpsOutsideRoot):
    may_fail = {"rms_norm/*/rows_near_eps": "its seed decides", "rms_norm/*/values_near_6e4": "its seed decides"}  # noqa: RUF012
    expected = {"*/rows_near_eps": "never asked: what may fail need not"}  # noqa: RUF012


class OrderByDtype(Honest):
    orders = {"rms_norm/bfloat16": ("scale_then_cast",), "rms_norm/*": ("cast_then_scale",)}  # noqa: RUF012


class NoLayerNorm(Honest):
    layer_norm = None


class NoGradients(Honest):
    vjp = Port.vjp


class OneOrder(Honest):
    orders = ("scale_then_cast",)


class NoOffset(Honest):
    weight_offsets = (0,)


class SkipsOne(Honest):
    def run(self, call: Call, given: dict[str, Array]) -> dict[str, Array]:
        if call.case.endswith(f"/{VICTIM}"):
            raise Skip("no zeros on Sundays")
        return super().run(call, given)


class Talks(Honest):
    """Prints to stdout, where the protocol would be, in every way there is."""

    def hello(self) -> Hello:
        self.talk()
        return super().hello()

    def run(self, call: Call, given: dict[str, Array]) -> dict[str, Array]:
        self.talk()
        return super().run(call, given)

    def talk(self) -> None:
        print("from Python")  # and not flushed
        os.write(1, b"from C\n")
        subprocess.run(["echo", "from a child"], check=True)


# Wrong on one case only.


class Saboteur(Honest):
    """Goes wrong on the victim; a subclass says how."""

    def run(self, call: Call, given: dict[str, Array]) -> Any:
        outputs = super().run(call, given)
        return self.sabotage(outputs) if call.case.endswith(f"/{VICTIM}") else outputs

    def sabotage(self, outputs: dict[str, Array]) -> Any:
        raise NotImplementedError


class Dies(Saboteur):
    def sabotage(self, outputs):
        print("the last words", file=sys.stderr, flush=True)
        os._exit(7)


class Leaves(Saboteur):
    def sabotage(self, outputs):
        sys.exit(0)


class IsKilled(Saboteur):
    def sabotage(self, outputs):
        os.kill(os.getpid(), signal.SIGKILL)


class Hangs(Saboteur):
    """Hangs with a child of its own, which must go with it, and deaf to SIGTERM."""

    def sabotage(self, outputs):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["sleep", "1000"])
        time.sleep(1000)


class Raises(Saboteur):
    def sabotage(self, outputs):
        raise RuntimeError("not today")


class WrongShape(Saboteur):
    def sabotage(self, outputs):
        return outputs | {"y": outputs["y"][..., :-1]}


class WrongDtype(Saboteur):
    def sabotage(self, outputs):
        return outputs | {"dx": outputs["dx"].astype(np.float16)}


class Integers(Saboteur):
    def sabotage(self, outputs):
        return outputs | {"y": outputs["y"].astype(np.int64)}


class NotANumber(Saboteur):
    def sabotage(self, outputs):
        y = outputs["y"].copy()
        y[1, 2, 3] = np.nan
        return outputs | {"y": y}


class MissesOutput(Saboteur):
    def sabotage(self, outputs):
        return {name: output for name, output in outputs.items() if name != "dweight"}


class ReturnsNothing(Saboteur):
    """As where an op forgets its return."""

    def sabotage(self, outputs):
        return dict.fromkeys(outputs)


# Right by other means.


class AnswersFromMemory(Honest):
    """Has read the fixtures."""

    def run(self, call: Call, given: dict[str, Array]) -> dict[str, Array]:
        remembered = read_tensors(FIXTURES / f"{call.case}.safetensors")
        return {name: remembered[f"upper.{name}"] for name in call.asked}


# Says who it is.


class SaysItsProcess(Honest):
    """Skips, at leisure; the reason is its process."""

    def run(self, call: Call, given: dict[str, Array]) -> dict[str, Array]:
        time.sleep(0.01)
        raise Skip(str(os.getpid()))


# Wrong from the start.


class AlwaysDies(Honest):
    def run(self, call: Call, given: dict[str, Array]) -> dict[str, Array]:
        os._exit(9)


class DiesAtBirth(Honest):
    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        print("stillborn", file=sys.stderr, flush=True)
        os._exit(5)


class RaisesAtBirth(Honest):
    def __init__(self, device: str = "cpu", *, jit: bool = True) -> None:
        raise RuntimeError(f"no {device} here, {'compiled' if jit else 'eager'} or not")


class NoPort:
    """Not a subclass of Port."""
