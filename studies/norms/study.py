"""The study `norms`."""

from typing import Any

import numpy as np

from studies.figures import Array, Figures, short, spread
from studies.norms.claims import CLAIMS, FORWARD, NOTES, between, peak, ratios, saving, timed
from studies.norms.contenders import LAYER_NORM, NONE, NOTED, ONE_OVER, TORCHS
from studies.norms.measure import PAIRS, ROOTS, measure, setups
from studies.norms.picture import draw
from studies.norms.turns import PHASES
from studies.study import Study, Table

QUANTITIES = {"forward": "forward, ms", "backward": "backward, ms", "step": "training, 1000 steps, s", "memory": "memory, GB"}


def tables(figures: Figures) -> tuple[Table, ...]:
    """The notes' table with ours beside it; then outputs, times and memory in full."""
    return _notes(figures), _outputs(figures), _times(figures), _memory(figures)


def _notes(figures: Figures) -> Table:
    settings = [("model", "eager", NOTED), ("model", "eager", TORCHS), ("model", "compiled", TORCHS)]
    settings += [("layer", "eager", NOTED), ("layer", "eager", TORCHS), ("layer", "compiled", TORCHS)]
    head = ["", "the notes", *(f"{subject}, {mode}, {norm}" for subject, mode, norm in settings)]
    body = [
        [what, f"{NOTES[name][0]} → {NOTES[name][1]}: {percent(np.array([saving(name)]))}"]
        + [_saved(figures, name, subject, mode, norm) for subject, mode, norm in settings]
        for name, what in QUANTITIES.items()
    ]
    roots = [_root(figures, subject, mode) for subject, mode, _ in settings]
    body.append(["rsqrt against 1/sqrt, forward", "5 to 10 %", *roots])
    devices = ", ".join(figures.choices("device"))
    gpu = "; no figure of a GPU among them" if devices == "cpu" else ""
    title = f"What RMSNorm saves against {LAYER_NORM}, float32: as the notes have it of a GPU, and measured on {devices}{gpu}"
    return Table(title, head, body)


def _saved(figures: Figures, quantity: str, subject: str, mode: str, norm: str) -> str:
    """A share that is saved, less than nothing where more is spent."""
    setting: dict[str, Any] = {"subject": subject, "mode": mode, "dtype": "float32", "norm": norm}
    if quantity == "memory":
        found = [row for row in figures.where(asked="memory") if all(row[name] == value for name, value in setting.items())]
        others = {key: value for key, value in setting.items() if key != "norm"}
        return percent(1 - np.array([row["peak"] / peak(figures, LAYER_NORM, **others)["peak"] for row in found]))
    its = setting | {"against": LAYER_NORM}
    known = its in timed(figures, (norm, LAYER_NORM))
    return percent(1 - ratios(figures, PHASES.index(quantity), **its)) if known else ""


def _root(figures: Figures, subject: str, mode: str) -> str:
    its: dict[str, Any] = {"subject": subject, "mode": mode, "dtype": "float32", "norm": NOTED, "against": ONE_OVER}
    return percent(1 - ratios(figures, FORWARD, **its)) if its in timed(figures, (NOTED, ONE_OVER)) else ""


def percent(shares: Array) -> str:
    """The median in percent, and between which all repeats lie; nothing where nothing was measured."""
    if not shares.size:
        return ""
    middle, low, high = (f"{100 * float(value):.1f}" for value in (np.median(shares), shares.min(), shares.max()))
    return f"{middle} %" if low == high else f"{middle} ({low} to {high}) %"


def _outputs(figures: Figures) -> Table:
    head = ("norm", "parameters", "calls", "row means", "row deviations", "column means", "column deviations")
    body: list[list[str]] = []
    for norm in dict.fromkeys(row["norm"] for row in figures.where(asked="output")):
        rows = figures.where(asked="output", norm=norm)
        spreads = [between(np.array([row[name] for row in rows])) for name in SPREADS]
        body.append([norm, str(rows[0]["parameters"]), str(rows[0]["calls"]), *spreads])
    return Table("What becomes of an input with a mean, and how many calls of ATen that takes in eager mode", head, body)


SPREADS = ("row_mean", "row_std", "column_mean", "column_std")


def _times(figures: Figures) -> Table:
    pairs = (*PAIRS, (NONE, LAYER_NORM), *ROOTS)
    body = [
        [*setting.values(), *(_timing(figures, phase, setting) for phase in range(len(PHASES)))]
        for setting in sorted(timed(figures, *pairs), key=lambda s: (s["subject"], pairs.index((s["norm"], s["against"]))))
    ]
    head = ("", "mode", "dtype", "norm", "against", *(f"{phase}, ms" for phase in PHASES))
    load = spread(figures.values("load", asked="time"))
    title = f"Times, the other's → the norm's, and the norm's over the other's; medians; the machine's load average was {load}"
    return Table(title, head, body)


def _timing(figures: Figures, phase: int, setting: dict[str, Any]) -> str:
    before, after = (np.median(figures.values(of, asked="time", **setting)[:, phase]) for of in ("against_ms", "ms"))
    ratio = np.median(ratios(figures, phase, **setting))
    return f"{short(float(before))} → {short(float(after))}: {ratio:.3f}"


def _memory(figures: Figures) -> Table:
    body = [
        [row["subject"], row["mode"], row["norm"], f"{row['peak'] / 1e6:.1f}", f"{row['held'] / 1e6:.1f}"]
        for row in figures.where(asked="memory")
    ]
    head = ("", "mode", "norm", "MB at most", "of which before the step")
    return Table("Memory of a training step, float32", head, body)


METHOD = """\
*The notes' formula* is MiniMind's layer line by line, `weight * (x.float() * torch.rsqrt(x.pow(2).mean(-1,
keepdim=True) + eps)).type_as(x)`, its backward pass by autograd; the notes compare it with `torch.nn.LayerNorm`.
*impl_torch* computes both norms by such formulas, with backward passes written by hand; *torch.nn* are torch's own. eps
is 1e-5 for all. Whether one kernel does all of a norm is told by the calls of ATen that its forward pass makes: 1, or
one for every step. For LayerNorm torch has such a kernel everywhere; for RMSNorm it has one on CUDA, of 2025
([pytorch#153666](https://github.com/pytorch/pytorch/pull/153666), and `_fused_rms_norm` in `native_functions.yaml`),
and on a CPU none. Compiled by `torch.compile`, all are fused.

A layer is given 16 sequences of 128 tokens, 512 wide; its step is forward and backward. The model is MiniMind-small: 8
Pre-LN blocks, 512 wide, 8 heads and 2 for keys and values, SwiGLU of 1408, a vocabulary of 6400 tied to the head, 17
norms; it is trained by AdamW on 2 sequences of 128 random tokens, on 16 where memory is counted (on a GPU 128 in either
case); compiled block by block, its embedding, last norm, head and loss not. *No norm* is the same model with its norms
left out: what remains is what no norm can make faster. BatchNorm is not asked to it, for it would let tokens see those
after them. A quick run has 2 blocks, or 1 where memory is counted.

Two are timed in turns, either first in every other round, after one step that is not counted and in which compilation
falls. A row's ratio is the median over its rounds of one time over its neighbour's. One thread computes, and its own
CPU time is what is counted, so that other processes on the machine lengthen it little; on a GPU, of which the rows
would name the model, it is wall time between two synchronisations. *What is claimed* is saved where it is at least half
of what the notes say, in every repeat; *not told apart* are two where the repeats lie on both sides of 1. The input
whose mean is asked after has one of 1, deviations of 1 among the means of rows and of columns, and of 2 within them.

Memory is that of the second training step, at most: on a GPU `torch.cuda.max_memory_allocated`; on a CPU the weights,
moments and inputs that are there before the step, and the greatest running sum of the allocations and frees that
torch's profiler records in it. What libraries allocate without torch's allocator is not counted, and no memory that the
process holds besides."""

STUDY = Study(
    name="norms",
    method=METHOD,
    columns={
        "asked": "what becomes of an input, the time, or the memory",
        "subject": "a layer alone, or MiniMind-small",
        "norm": "whose figures these are",
        "against": "with which other it was timed in turns",
        "mode": "eager, or by torch.compile",
        "dtype": "of input and weights",
        "layers": "the model's blocks; 0 for a layer alone",
        "rounds": "of turns; 0 where nothing was timed",
        "seed": "of torch's generator, which draws weights and input",
        "device": "cpu, or the GPU's name",
        "load": "how many processes the machine ran, or had wait, in the last minute",
        "tokens": "how many rows the norm is given",
        "ms": "forward, backward, and the whole step: medians over the rounds, in milliseconds; null where not asked, as below",
        "against_ms": "the same of the other",
        "ratio": "the medians over the rounds of the norm's time over the other's",
        "peak": "the most bytes of tensors in a training step",
        "held": "of which are there before it: weights, moments, inputs",
        "parameters": "the numbers that are learnt, in the layer or the model",
        "calls": "of ATen in a forward pass in eager mode",
        "row_mean": "the least and the greatest mean of a row of y",
        "row_std": "the same of standard deviations",
        "row_rms": "the same of root mean squares",
        "column_mean": "the least and the greatest mean of a column of y",
        "column_std": "the same of standard deviations",
    },
    setups=setups,
    measure=measure,
    claims=CLAIMS,
    tables=tables,
    caption="Time of RMSNorm, BatchNorm and no norm over that of LayerNorm, alone and in a model; the bars end at the repeats.",
    draw=draw,
)
