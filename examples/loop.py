"""A program that writes a kernel, and mends it by what the kit says: `python examples/loop.py [FOLDER]`.

What a model would do stands here as a table: for a cause's id, what is put in another's place. All else is as it would be.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

KERNEL = """\
import numpy as np

def rms_norm(x, weight, *, eps):
    mean_square = np.sum(x * x, axis=-1, keepdims=True) / (x.shape[-1] - 1)
    x_hat = x / (np.sqrt(mean_square) + x.dtype.type(eps))
    return x_hat if weight is None else weight * x_hat
"""
MENDED = {
    "divides_by_n_minus_1": ("(x.shape[-1] - 1)", "x.shape[-1]"),
    "eps_outside_root": ("(np.sqrt(mean_square) + x.dtype.type(eps))", "np.sqrt(mean_square + x.dtype.type(eps))"),
}


def judged(file: Path) -> list[dict]:
    """The lines of a run on inputs that nobody has seen."""
    kit = [sys.executable, "-m", "conformance", "run", f"{file}:rms_norm", "--op", "rms_norm", "--dtype", "float32"]
    run = subprocess.run([*kit, "--seed", "random", "--quiet", "--json", "-"], capture_output=True, text=True, check=False)
    return [json.loads(line) for line in run.stdout.splitlines()]


folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
kernel = KERNEL
for attempt in range(5):
    file = folder / f"attempt_{attempt}.py"
    file.write_text(kernel)
    lines = judged(file)
    causes, end = [line for line in lines if line["kind"] == "cause"], lines[-1]
    print(f"attempt {attempt}: {end['counts'].get('pass', 0)} passed, {end['counts'].get('fail', 0)} failed")
    if end["exit_status"] == 0:
        break
    for cause in causes:
        print(f"  {cause['id']}: {cause['what']}")
    for id_ in (part for cause in causes for part in cause["id"].split(" + ")):
        kernel = kernel.replace(*MENDED.get(id_, ("", "")))
