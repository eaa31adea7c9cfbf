"""The reports to other libraries: their code, with the library alone, still prints what they show."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "upstream"
REPORTS = {page.stem: page.read_text(encoding="utf-8") for page in FOLDER.glob("*.md") if page.stem != "README"}
# One process for all that import a framework: most of the time goes into that.
PROCESSES = {
    "torch": ("torch", "transformers"),
    "jax": ("jax", "equinox", "flax", "dm-haiku", "keras"),
    "none": ("mlx", "onnxruntime"),
}
RUNS = """
import contextlib, io, json, sys
said = {}
for name, code in json.load(sys.stdin).items():
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, name, "exec"), {})
    said[name] = out.getvalue()
print(json.dumps(said))
"""


def told(report: str) -> dict[str, str]:
    """The packages of a report, the library first, and their versions."""
    [line] = re.findall(r"^With (.*)\.$", report, re.MULTILINE)
    return dict(each.split(" ") for each in line.split(", "))


def other_version(report: str) -> str:
    """Why the code of a report is not run here; empty if it is."""
    for package, named in told(report).items():
        try:
            here = version(package).partition("+")[0]
        except PackageNotFoundError:
            return f"no {package}"
        if here != named:
            return f"{package} {here}, not {named}"
    return ""


def code_of(report: str) -> str:
    [code] = re.findall(r"```python\n(.*?)```", report, re.DOTALL)
    return code


@pytest.fixture(scope="module")
def printed():
    """What the code of every report prints that can be run."""
    said: dict[str, str] = {}
    for libraries in PROCESSES.values():
        codes = {
            name: code_of(report)
            for name, report in sorted(REPORTS.items())
            if next(iter(told(report))) in libraries and not other_version(report)
        }
        command = [sys.executable, "-W", "ignore", "-c", RUNS]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        result = subprocess.run(command, input=json.dumps(codes), env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        said |= json.loads(result.stdout)
    return said


@pytest.mark.parametrize("name", REPORTS)
def test_the_symptom_is_still_there(name, printed):
    report = REPORTS[name]
    if reason := other_version(report):
        pytest.skip(reason)
    [shown] = re.findall(r"```text\n(.*?)```", report, re.DOTALL)
    assert printed[name] == shown


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_is_of_the_library_alone(name):
    assert not re.search(r"\b(conformance|reference|impl_torch|impl_jax|ports)\b", REPORTS[name])
    assert "**Expected.**" in REPORTS[name]


def test_every_report_is_listed():
    assert set(re.findall(r"\]\(([\w-]+)\.md\)", (FOLDER / "README.md").read_text(encoding="utf-8"))) == set(REPORTS)
