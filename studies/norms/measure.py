"""What norms do to an input, the time that they take, each in turns with another, and the memory."""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from studies.figures import Array
from studies.norms.contenders import (
    BATCH_NORM,
    CONTENDERS,
    DIVISION,
    LAYER_NORM,
    NONE,
    NOTED,
    ONE_OVER,
    ONE_OVER_ALONE,
    OUR_LAYER_NORM,
    OURS,
    RSQRT_ALONE,
    TORCHS,
)
from studies.norms.memory import held_bytes, peak_bytes
from studies.norms.minimind import CONFIG, Model
from studies.norms.step import LARGE, SMALL, Mode, Step, count_parameters, layer_step, model_step
from studies.norms.turns import clock_of, take_turns

LAYERS = 8
DType = Literal["float32", "bfloat16"]
PAIRS = ((NOTED, LAYER_NORM), (OURS, OUR_LAYER_NORM), (TORCHS, LAYER_NORM), (BATCH_NORM, LAYER_NORM))
FORMS = (NOTED, OURS, TORCHS, OUR_LAYER_NORM, LAYER_NORM, BATCH_NORM)
MINIMINDS = (NOTED, TORCHS, NONE)  # with these norms it is timed, against torch's LayerNorm
ROOTS = ((NOTED, ONE_OVER), (NOTED, DIVISION), (RSQRT_ALONE, ONE_OVER_ALONE))


@dataclass(frozen=True)
class Setup:
    """What is asked of one contender, and against which other it is timed; a layer alone has 0 layers, a model some."""

    asked: Literal["output", "time", "memory"]
    subject: Literal["layer", "model"]
    norm: str
    against: str = ""
    mode: Mode = "eager"
    dtype: DType = "float32"
    layers: int = 0
    rounds: int = 0
    seed: int = 0


def setups(quick: bool) -> Sequence[Setup]:
    """All of them, what depends on chance for five seeds; where it is to be quick fewer, for two, and one pair compiled."""
    seeds = range(2 if quick else 5)
    once = [*_outputs(), *(_quickly_timed() if quick else _timed())]
    return [*(replace(setup, seed=seed) for setup in once for seed in seeds), *_memories(quick)]


def _outputs() -> Iterator[Setup]:
    for norm in FORMS:
        yield Setup("output", "layer", norm)


def _timed() -> Iterator[Setup]:
    for mode in get_args(Mode):
        for norm, against in (*PAIRS, *ROOTS):
            yield Setup("time", "layer", norm, against, mode, rounds=25)
        for norm in MINIMINDS[:2]:
            yield Setup("time", "layer", norm, LAYER_NORM, mode, "bfloat16", rounds=25)
        for norm in MINIMINDS:
            yield Setup("time", "model", norm, LAYER_NORM, mode, layers=LAYERS, rounds=4)


def _quickly_timed() -> Iterator[Setup]:
    for setup in _timed():
        match setup.subject, setup.mode, setup.dtype:
            case ("layer", "eager", "float32"):
                yield replace(setup, rounds=9)
            case ("layer", "compiled", "float32") if setup.norm == TORCHS:
                yield replace(setup, rounds=9)
            case ("model", "eager", _) if setup.norm in (TORCHS, NONE):
                yield replace(setup, layers=2, rounds=3)
            case _:
                pass


def _memories(quick: bool) -> Iterator[Setup]:
    for mode in ("eager",) if quick else get_args(Mode):
        for norm in FORMS:
            yield Setup("memory", "layer", norm, mode=mode)
        for norm in (TORCHS, LAYER_NORM) if quick else (*MINIMINDS, LAYER_NORM):
            yield Setup("memory", "model", norm, mode=mode, layers=1 if quick else LAYERS)


def measure(setup: Setup) -> dict[str, Any]:
    """What was asked, and None for the rest; on a GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(setup.seed)
    found: dict[str, Any] = dict.fromkeys(MEASURED)
    found["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    with _one_thread(), _many_programs():
        match setup.asked:
            case "output":
                return found | _output(setup, device)
            case "time":
                return found | _time(setup, device)
            case "memory":
                return found | _memory(setup, device)


MEASURED = (
    *("device", "load", "tokens", "ms", "against_ms", "ratio", "peak", "held", "parameters"),
    *("calls", "row_mean", "row_std", "row_rms", "column_mean", "column_std"),
)


def _output(setup: Setup, device: torch.device, rows: int = 4096) -> dict[str, Any]:
    """Of an input whose rows and columns have means: of those of y, and of its deviations, the least and the greatest."""
    norm = CONTENDERS[setup.norm](CONFIG.d_model).to(device)
    shapes = ((rows, CONFIG.d_model), (rows, 1), (CONFIG.d_model,))
    deviates, of_rows, of_columns = (torch.randn(shape, device=device) for shape in shapes)
    x = 1 + of_rows + of_columns + 2 * deviates
    with torch.no_grad(), _Calls() as calls:
        y = norm(x)
    y = y.double()
    spreads = {
        "row_mean": y.mean(dim=1),
        "row_std": y.std(dim=1, correction=0),
        "row_rms": y.square().mean(dim=1).sqrt(),
        "column_mean": y.mean(dim=0),
        "column_std": y.std(dim=0, correction=0),
    }
    found = {name: [round(of.min().item(), 4), round(of.max().item(), 4)] for name, of in spreads.items()}
    return {"tokens": rows, "parameters": count_parameters(norm), "calls": calls.count} | found


def _time(setup: Setup, device: torch.device) -> dict[str, Any]:
    """The medians of either's times, and of their ratios, over the rounds; forward, backward, step."""
    batch = (SMALL if setup.subject == "model" else LARGE)[device.type]
    one, other = (_step(setup, name, batch, device) for name in (setup.norm, setup.against))
    its, others = take_turns(one, other, setup.rounds, clock_of(device))
    medians = {"ms": its, "against_ms": others, "ratio": its / others}
    found = {name: _digits(np.median(of, axis=0)) for name, of in medians.items()}
    return {"load": round(os.getloadavg()[0], 1), "tokens": batch[0] * batch[1]} | found


def _memory(setup: Setup, device: torch.device) -> dict[str, Any]:
    batch = LARGE[device.type]
    step = _step(setup, setup.norm, batch, device)
    peak = peak_bytes(step, device)
    new = CONTENDERS[setup.norm]
    module = new(CONFIG.d_model) if setup.subject == "layer" else Model(new, setup.layers)
    counted = {"peak": peak, "held": held_bytes(step), "parameters": count_parameters(module)}
    return {"tokens": batch[0] * batch[1]} | counted


def _step(setup: Setup, name: str, batch: tuple[int, int], device: torch.device) -> Step:
    if setup.subject == "layer":
        return layer_step(name, setup.mode, getattr(torch, setup.dtype), batch, device)
    return model_step(name, setup.mode, setup.layers, batch, device)


class _Calls(TorchDispatchMode):
    """Counts what is asked of ATen: one call where a kernel does all of a norm."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **kwargs or {})


def _many_programs() -> AbstractContextManager[None]:
    """For the contenders share the code around them, and torch compiles one code for eight of them at most."""
    return torch.compiler.config.patch(recompile_limit=100)  # pyright: ignore[reportAttributeAccessIssue] - made on import


@contextmanager
def _one_thread() -> Generator[None]:
    """Which a busy machine disturbs less than several that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _digits(values: Array) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
