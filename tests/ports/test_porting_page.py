"""Every count that docs/porting.md shows is what its port gets, and its code does what it says."""

import os
import re
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from conformance import port
from conformance.ops.cases import select
from conformance.question.case import is_split
from conformance.running.runner import unsupported

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "porting.md").read_text(encoding="utf-8")
CODE = [textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)]
NO_STRIDES = "no strides to lay tensors out with"
NO_PARTS = "no tensors that are split over devices"


class Begun(port.Port):
    """What `conformance new` writes: two ops, and no side of the weight that they cast on."""

    def rms_norm(self, x, weight, *, eps): ...

    def layer_norm(self, x, weight, bias, *, eps): ...


class Cast(Begun):
    orders = ("cast_then_scale",)


class WithSum(Cast):
    sums = ("rounded",)

    def add_rms_norm(self, x, residual, weight, *, eps): ...


class WithBatchNorm(Cast):
    def batch_norm(self, x, weight, bias, *, running_mean, running_var, eps, training, momentum=0.0, unbiased=True): ...


def asked(port_class, **limits) -> tuple[Counter, Counter]:
    """The cases that a port has to answer by op and dtype, and those it skips by reason. It lays nothing out."""
    judged, skipped = Counter(), Counter()
    hello = port_class().hello()
    for case in select(**limits):
        of_layout = NO_PARTS if is_split(case.layout) else NO_STRIDES if case.layout != "contiguous" else ""
        reason = unsupported(case, hello) or of_layout
        reason = reason or ("biased" if case.settings.get("unbiased") is False else "")
        if reason:
            skipped[reason] += 1
        else:
            judged[case.op, case.dtype] += 1
    return judged, skipped


def line(judged: Counter, op: str, dtype: str) -> str:
    return f"{judged[op, dtype]}/{judged[op, dtype]}"


def conclusion(judged: Counter, skipped: Counter) -> str:
    return f"conforms: {judged.total()} passed, {skipped.total()} skipped in "


def test_the_port_that_is_begun():
    judged, skipped = asked(Begun)
    lacking = sum(count for reason, count in skipped.items() if reason.startswith("no op "))
    orders = [f"no order {order} ({skipped[f'no order {order}']})" for order in ("cast_then_scale", "scale_then_cast")]
    unwritten = judged.total() + skipped[NO_STRIDES] + skipped[NO_PARTS]  # what is not written lays nothing out either
    total = judged.total() + skipped.total()
    said = f"skipped {total}: no op add_rms_norm, … ({lacking}), {', '.join(orders)}, not written yet ({unwritten}), …"
    assert said in PAGE
    assert f"nothing to judge yet: {total} skipped in " in PAGE


def test_the_first_op():
    judged, skipped = asked(Begun, op="rms_norm")
    reasons = ("no order cast_then_scale", "no order scale_then_cast", NO_STRIDES, "no weight offset 1", NO_PARTS, "no groups")
    assert set(skipped) == set(reasons)
    counted = ", ".join(f"{reason} ({skipped[reason]})" for reason in reasons)
    assert f"pytorch_port.py skipped {skipped.total()}: {counted}" in PAGE
    assert conclusion(judged, skipped) in PAGE
    row = rf"rms_norm +{line(judged, 'rms_norm', 'float64')} \S+ +{line(judged, 'rms_norm', 'float32')} \S+ +skipped +skipped"
    assert re.search(row, PAGE)


def test_the_norms_in_one_order():
    assert conclusion(*asked(Cast, op="rms_norm")) in PAGE
    judged, skipped = asked(Cast)
    assert conclusion(judged, skipped) in PAGE
    for op in ("rms_norm", "layer_norm"):
        cells = (line(judged, op, dtype) for dtype in ("float64", "float32", "bfloat16", "float16"))
        assert re.search(rf"pytorch_port\.py +{op} +" + r" \S+ +".join(cells), PAGE)


def test_the_norm_of_a_sum():
    judged, skipped = asked(WithSum, op="add_rms_norm")
    assert conclusion(judged, skipped) in PAGE
    cells = (line(judged, "add_rms_norm", dtype) for dtype in ("float64", "float32", "bfloat16", "float16"))
    assert re.search(r"pytorch_port\.py +add_rms_norm +" + r" \S+ +".join(cells), PAGE)


def test_batch_norm():
    judged, _ = asked(WithBatchNorm, op="batch_norm", dtype="float32")
    assert re.search(rf"pytorch_port\.py +batch_norm +{line(judged, 'batch_norm', 'float32')} ", PAGE)


def test_no_other_count_is_shown():
    """A line of counts that is added is to be tested here, too."""
    assert len(re.findall(r"\d+ skipped in ", PAGE)) == 5
    assert len(re.findall(r"pytorch_port\.py skipped \d+", PAGE)) == 2
    assert len(re.findall(r"^    pytorch_port\.py +\w+ +\d+/\d+", PAGE, re.MULTILINE)) == 5
    assert len(re.findall(r"\(\d+ cases?: ", PAGE)) == 2


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

    assert in_page_and_report(result.stdout) == in_page_and_report(PAGE)


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
