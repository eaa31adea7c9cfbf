"""The code of docs/porting.md does what the page says; its counts are those of benchmarks/counts.py."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from conformance import port

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "porting.md").read_text(encoding="utf-8")
CODE = [textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)]


HEAD = """
import ml_dtypes
import numpy as np
import torch
from conformance import port

class Port(port.Port):
    name = "pytorch"
    orders = ("scale_then_cast",)

"""


@pytest.mark.parametrize(
    ("blocks", "options", "shown"),
    [
        ((1,), (), r"pytorch_port\.py: every step is rounded to x's dtype, .*"),
        (
            (1, 2),
            ("--dtype", "bfloat16"),
            r"pytorch_port\.py: speaks another dialect.*\n +diagnosis .*\n +next best.*\n.*\n +example .*",
        ),
    ],
    ids=["a mistake", "a dialect"],
)
def test_the_diagnoses_that_are_shown(blocks, options, shown, tmp_path):
    (tmp_path / "pytorch_port.py").write_text(HEAD + "\n".join(textwrap.indent(CODE[block], "    ") for block in blocks))
    command = [sys.executable, "-m", "conformance", "run", "pytorch_port.py", "--op", "rms_norm", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=600)

    def in_page_and_report(text: str) -> str:
        return re.sub(r"to within \S+|^ +", "", re.search(shown, text)[0], flags=re.MULTILINE)

    said = re.escape(in_page_and_report(PAGE)).replace("…", r"\d+")  # the page leaves its counts out
    assert re.fullmatch(said, in_page_and_report(result.stdout))


def test_the_layouts_hold_the_same_values_in_other_strides():
    [block] = [block for block in CODE if "def lay_out" in block]
    names = {"port": port, "torch": torch}
    exec("class Laid(port.Port):\n" + textwrap.indent(block, "    "), names)
    lay_out = names["Laid"]().lay_out
    x = torch.arange(24.0).reshape(2, 3, 4)
    strides = set()
    for layout in ("permuted", "sliced", "strided"):
        laid_out = lay_out(x, layout)
        assert torch.equal(laid_out, x)
        assert not laid_out.is_contiguous()
        strides.add(laid_out.stride())
    assert len(strides) == 3
    expanded = lay_out(x, "expanded")
    assert (expanded.shape, expanded.stride()[0]) == (x.shape, 0)
    assert np.array_equal(expanded.numpy(), np.broadcast_to(x[:1].numpy(), x.shape))
    with pytest.raises(port.Skip, match="no strides to lay tensors out with"):
        lay_out(x, "diagonal")
