"""`python -m benchmarks.gpu`: all that is asked of an accelerator, in one run that keeps to its time.

First conformance, both frameworks, eager and compiled; then the layers against their peers; then how near the norms come
to the rate at which the device copies memory. It runs on a CPU too, on small shapes, so that it is known to work before a
machine is at hand. `--page` writes docs/gpu.md from the figures that were kept.
"""

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.__main__ import RESULTS, report
from benchmarks.layers import measure_layers

ROOT = Path(__file__).parent.parent
KIT = [sys.executable, "-m", "conformance"]
RUNS = (("impl_torch", "eager", 3), ("impl_jax", "jit", 2), ("impl_torch", "jit", 3))  # port, mode, shards
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # many processes share the device
    "TORCHINDUCTOR_COMPILE_THREADS": "2",  # and the processors
}
SHAPES = ((131072, 1024), (32768, 4096), (4096, 16384))  # rows, features: more than the cache holds
SMALL = ((64, 128),)
REPEATS = 30

PAGE = ROOT / "docs" / "gpu.md"
PAGE_TEXT = """# On a GPU

`python -m benchmarks.gpu` asks both implementations every case on a GPU, then measures. Its reports are in
[results](../results); `python -m benchmarks.gpu --page` writes this page from them. The machine: {machine}.{kernels}

## Conformance

{conformance}

`conformance properties` holds too: [torch](../results/cuda-properties-impl_torch-eager.json),
[JAX](../results/cuda-properties-impl_jax-jit.json). The first run found two faults of torch 2.11, of which our tests, on
torch 2.13 and a CPU, could know nothing: [findings](findings.md).

## Against the libraries' own layers

One forward and one backward pass of [4, 512, 512]; the ratio is our time over theirs, in the same rounds. A layer as small
as this waits for its launches.

{layers}

## How near a copy

The bytes that a norm must move over its time, as a share of the rate of a copy in the same run; bfloat16. A forward pass
reads x and writes y, a backward pass reads x and dy and writes dx.

{bandwidth}

Compiled, the norms of `impl_torch` are as fast as torch's own compiled ones, or faster, but in the backward pass of the
widest rows. In eager mode every step of the formula is a kernel of its own, with float32 between them: compile it.
"""

BEFORE_KERNELS = """

These are of torch's own operations. The norms of `impl_torch` choose [Triton kernels](kernels.md) on a GPU since, which are
judged in the interpreter and have not been run on a GPU yet; `kernel="torch"` is what was measured here."""

Step = Callable[[], Any]


def main(
    device: Annotated[str, typer.Option(help="As the ports know it.")] = "cuda",
    seconds: Annotated[float, typer.Option(help="What the conformance runs may take together.")] = 360.0,
    folder: Annotated[Path, typer.Option(help="Where the reports go.")] = RESULTS,
    only_page: Annotated[bool, typer.Option("--page", help="Measure nothing; write docs/gpu.md from results/.")] = False,
) -> None:
    """Judge, then measure; a run that is out of time is said to be, and the rest goes on."""
    if only_page:
        PAGE.write_text(page())
        return
    os.environ.update(ENVIRONMENT)
    folder.mkdir(parents=True, exist_ok=True)
    report(f"{device}-conformance", judged(device, seconds, folder), folder, _machine(device))
    report(f"layers-{device}", measure_layers(device), folder, _machine(device))
    report(f"{device}-bandwidth", bandwidth(device), folder, _machine(device))


def page() -> str:
    """docs/gpu.md, of the reports in results/."""
    conformance = [
        (hello["name"], settings["mode"], ", ".join(f"{name} {version}" for name, version in hello["versions"].items()), passed)
        for report in map(_read, (f"cuda-{port}-{mode}" for port, mode, _ in RUNS))
        for hello, settings in [(report["ports"][0]["hello"], report["settings"])]
        for passed in [", ".join(f"{number} {name}" for name, number in _counts(report).items())]
    ]
    layers, rates = _read("layers-cuda"), _read("cuda-bandwidth")
    by_norm = dict[str, list[str]]()
    for row in rates["rows"]:
        by_norm.setdefault(row["what"], []).append(f"{row['of a copy']:.2f}")
    shapes = [f"{rows}x{width}, {way}" for rows, width in SHAPES for way in ("forward", "backward")]
    return PAGE_TEXT.format(
        machine=rates["machine"],
        kernels="" if any("kernel=triton" in row["what"] for row in rates["rows"]) else BEFORE_KERNELS,
        conformance=_table(("port", "mode", "versions", "verdicts"), conformance),
        layers=_table(
            ("layer", "peer", "ours, ms", "peer, ms", "ratio"),
            [
                (row["layer"], row["peer"], f"{row['ours, ms']:.3f}", f"{row['peer, ms']:.3f}", f"{row['ratio']:.2f}")
                for row in layers["rows"]
            ],
        ),
        bandwidth=_table(("norm", *shapes), [(norm, *shares) for norm, shares in by_norm.items()]),
    )


def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _counts(report: dict[str, Any]) -> Counter[str]:
    return Counter(verdict["status"] for verdict in report["verdicts"])


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = (heads, ("---",) * len(heads), *rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _machine(device: str) -> str:
    import torch

    return platform.platform() if device == "cpu" else torch.cuda.get_device_name()


def judged(device: str, seconds: float, folder: Path) -> list[dict[str, str | float]]:
    """What the kit counts in each run, all of them side by side; the whole reports lie in `folder`."""
    began, runs = time.monotonic(), list[tuple[str, str, list[Path], list[subprocess.Popen]]]()
    for port, mode, shards in RUNS:
        parts = {f"{number}/{shards}": folder / f"{device}-{port}-{mode}-{number}.json" for number in range(1, shards + 1)}
        command = [*KIT, "run", port, "--device", device, "--mode", mode, "--quiet"]
        start = partial(subprocess.Popen, cwd=ROOT, env=os.environ | ENVIRONMENT)
        processes = [start([*command, "--shard", shard, "--json", str(part)]) for shard, part in parts.items()]
        runs.append((port, mode, list(parts.values()), processes))
    rows = list[dict[str, str | float]]()
    for port, mode, parts, processes in runs:
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(1.0, began + seconds - time.monotonic()))
            process.send_signal(signal.SIGINT)  # where it still runs
        there = [part for part in parts if part.exists()]
        whole = folder / f"{device}-{port}-{mode}.json"
        if len(there) == len(parts):
            subprocess.run([*KIT, "merge", *map(str, there), "--json", str(whole), "--quiet"], cwd=ROOT, check=False)
        statuses = sum((_counts(json.loads(part.read_text())) for part in there), Counter[str]())
        counts = ", ".join(f"{number} {status}" for status, number in statuses.items())
        late = f"{len(parts) - len(there)} of {len(parts)} parts" if len(there) < len(parts) else ""
        rows.append({"port": port, "mode": mode, "seconds": time.monotonic() - began, "verdicts": counts, "out of time": late})
    return rows


def bandwidth(device: str) -> list[dict[str, str | float]]:
    """The bytes that a norm must move, over its time, as a share of the rate of a copy in the same run.

    A forward pass reads x and writes y; a backward pass reads x and dy and writes dx. The weights are too small to count.
    """
    import torch

    rows = list[dict[str, str | float]]()
    for n_rows, width in SMALL if device == "cpu" else SHAPES:
        x = torch.randn(n_rows, width, device=device).to(torch.bfloat16)
        moved = 2 * x.numel() * x.element_size()
        into = torch.empty_like(x)
        copied = moved / _torch_seconds(partial(into.copy_, x), device)
        measured = chain(_torch_steps(x, device), _jax_steps((n_rows, width), device))
        for what, passes, step, seconds_of in measured:
            rate = moved * (1.0 if passes == "forward" else 1.5) / seconds_of(step)
            shape = f"{n_rows}x{width}"
            rows.append({"what": what, "pass": passes, "shape": shape, "GB/s": rate / 1e9, "of a copy": rate / copied})
    return rows


def _torch_steps(x: Any, device: str) -> Iterator[tuple[str, str, Step, Callable[[Step], float]]]:
    import torch
    import torch._functorch.config
    from torch.nn import functional

    import impl_torch
    from impl_torch.kernels import in_triton

    width = x.shape[-1]
    weight, bias = (torch.randn(width, device=device).to(x.dtype).requires_grad_() for _ in range(2))
    x, dy = x.requires_grad_(), torch.randn_like(x)
    torch._functorch.config.donated_buffer = False  # pyright: ignore  # a backward pass is measured many times
    kernel = "triton" if in_triton(None, x) else "torch"  # what is chosen; where it is torch, two rows are one
    norms: dict[str, tuple[Callable[..., Any], tuple]] = {
        f"impl_torch rms_norm, kernel={kernel}": (impl_torch.rms_norm, (x, weight)),
        "impl_torch rms_norm, kernel=torch": (partial(impl_torch.rms_norm, kernel="torch"), (x, weight)),
        "F.rms_norm": (lambda x, weight: functional.rms_norm(x, (width,), weight, 1e-5), (x, weight)),
        f"impl_torch layer_norm, kernel={kernel}": (impl_torch.layer_norm, (x, weight, bias)),
        "impl_torch layer_norm, kernel=torch": (partial(impl_torch.layer_norm, kernel="torch"), (x, weight, bias)),
        "F.layer_norm": (lambda x, w, b: functional.layer_norm(x, (width,), w, b, 1e-5), (x, weight, bias)),
    }
    for mode, compiled in (("eager", lambda f: f), ("compiled", partial(torch.compile, dynamic=False))):
        for name, (norm, tensors) in norms.items():
            function = compiled(norm)
            seconds_of = partial(_torch_seconds, device=device)

            def forward(function: Any = function, tensors: tuple = tensors) -> None:
                with torch.no_grad():
                    function(*tensors)

            yield f"{name}, {mode}", "forward", forward, seconds_of
            y = function(*tensors)
            yield f"{name}, {mode}", "backward", partial(torch.autograd.grad, y, tensors, dy, retain_graph=True), seconds_of
            del y


def _jax_steps(shape: tuple[int, int], device: str) -> Iterator[tuple[str, str, Step, Callable[[Step], float]]]:
    import jax
    import jax.numpy as jnp

    import impl_jax

    place = jax.devices(device)[0]
    x, dy = (jax.device_put(jax.random.normal(jax.random.key(i), shape, jnp.bfloat16), place) for i in range(2))
    weight = jax.device_put(jnp.ones(shape[-1:], jnp.bfloat16), place)
    for name, norm, tensors in (
        ("impl_jax rms_norm", impl_jax.rms_norm, (x, weight)),
        ("impl_jax layer_norm", impl_jax.layer_norm, (x, weight, weight)),
    ):
        backward = jax.jit(lambda dy, *tensors, norm=norm: jax.vjp(norm, *tensors)[1](dy))
        yield f"{name}, jit", "forward", partial(jax.jit(norm), *tensors), _jax_seconds
        yield f"{name}, jit", "backward", partial(backward, dy, *tensors), _jax_seconds


def _torch_seconds(step: Step, device: str) -> float:
    """The median of one step, by the device's own clock where it has one."""
    import torch

    for _ in range(3):
        step()
    if device == "cpu":
        return statistics.median(_timed(step) for _ in range(REPEATS))
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPEATS)]
    for before, after in marks:
        before.record()
        step()
        after.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in marks) / 1e3


def _jax_seconds(step: Step) -> float:
    """One step among many that the device has in its queue: JAX has no clock of the device's."""
    import jax

    jax.block_until_ready(step())

    def many() -> None:
        jax.block_until_ready([step() for _ in range(REPEATS // 3)])

    return statistics.median(_timed(many) for _ in range(5)) / (REPEATS // 3)


def _timed(step: Step) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


if __name__ == "__main__":
    typer.run(main)
