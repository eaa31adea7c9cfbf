"""The compiler that tinygrad's CPU device calls."""

import re
import shutil
import subprocess

OLDEST = 15
"""The major version from which clang has bfloat16 on x86."""


def find_clang() -> str | None:
    """The clang on the path that has bfloat16: `clang` itself, or else the newest `clang-NN`; None where there is none."""
    for name in ("clang", *(f"clang-{version}" for version in range(30, OLDEST - 1, -1))):
        if shutil.which(name) is None:
            continue
        said = subprocess.run([name, "-dumpversion"], capture_output=True, text=True, check=False).stdout
        version = re.match(r"\d+", said)
        if version and int(version[0]) >= OLDEST:
            return name
    return None
