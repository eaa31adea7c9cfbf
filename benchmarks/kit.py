"""The kit's own cost: whole runs and quick ones, with cold and warm caches; a NumPy port's; listing, fixtures, memory."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Prints the largest resident size of the runner itself, its ports not counted.
MEMORY_OF_A_RUN = """
import resource, sys
from conformance.cli import app
try:
    app(["run"])
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=sys.stderr)
"""


def measure_kit() -> list[dict[str, str | float]]:
    """Run every command in a fresh process, with compile caches of its own, which the first run finds empty."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        caches = {
            "XDG_CACHE_HOME": f"{folder}/cache",
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/jax",
            "TORCHINDUCTOR_CACHE_DIR": f"{folder}/torch",
        }
        environment = os.environ | caches

        def row(what: str, budget: float, *command: str, repeats: int = 3) -> dict[str, str | float]:
            wall, cpu = sorted(_seconds(command, environment) for _ in range(repeats))[repeats // 2]
            return {"what": what, "unit": "s", "measured": wall, "CPU": cpu, "budget": budget}

        compiled, alone = ("run", "--quick"), ("run", "ports.numpy")
        return [
            row("quick run, cold caches", 45.0, *compiled, repeats=1),
            row("quick run, warm caches", 6.0, *compiled),
            row("run, after the quick one", 150.0, "run", repeats=1),
            row("run, warm caches", 20.0, "run"),
            row("NumPy, rms_norm", 1.5, *alone, "--op", "rms_norm"),
            row("NumPy, rms_norm, quick", 1.5, *alone, "--op", "rms_norm", "--quick"),
            row("NumPy, quick", 4.0, *alone, "--quick"),
            row("NumPy, all", 8.0, *alone),
            row("NumPy, all, no cache of goldens", 15.0, *alone, "--no-cache"),
            row("list", 0.5, "list"),
            row("fixtures generate", 10.0, "fixtures", "generate", f"{folder}/fixtures"),
            {
                "what": "memory of the runner",
                "unit": "MB",
                "measured": _megabytes(environment),
                "CPU": "",
                "budget": 1000.0,
            },
        ]


def _seconds(command: tuple[str, ...], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command and of all the processes that it starts."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = [sys.executable, "-m", "conformance", *command]
    subprocess.run(process, env=environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _megabytes(environment: dict[str, str]) -> float:
    process = [sys.executable, "-c", MEMORY_OF_A_RUN]
    result = subprocess.run(process, env=environment, cwd=ROOT, check=True, capture_output=True, text=True)
    return float(result.stderr.split()[-1])
