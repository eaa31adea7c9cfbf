"""The kit's own cost: whole runs with cold and warm compile caches, listing, fixtures, memory."""

import os
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

        def seconds(*command: str, repeats: int = 3) -> float:
            return sorted(_seconds(command, environment) for _ in range(repeats))[repeats // 2]

        generate = ("fixtures", "generate", f"{folder}/fixtures")
        return [
            {"what": "run, cold caches", "unit": "s", "measured": seconds("run", repeats=1), "budget": 180.0},
            {"what": "run, warm caches", "unit": "s", "measured": seconds("run"), "budget": 20.0},
            {"what": "list", "unit": "s", "measured": seconds("list"), "budget": 0.5},
            {"what": "fixtures generate", "unit": "s", "measured": seconds(*generate), "budget": 10.0},
            {"what": "memory of the runner", "unit": "MB", "measured": _megabytes(environment), "budget": 1000.0},
        ]


def _seconds(command: tuple[str, ...], environment: dict[str, str]) -> float:
    began = time.monotonic()
    process = [sys.executable, "-m", "conformance", *command]
    subprocess.run(process, env=environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def _megabytes(environment: dict[str, str]) -> float:
    process = [sys.executable, "-c", MEMORY_OF_A_RUN]
    result = subprocess.run(process, env=environment, cwd=ROOT, check=True, capture_output=True, text=True)
    return float(result.stderr.split()[-1])
