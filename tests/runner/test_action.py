"""The action for GitHub: its commands are run as GitHub runs them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
[INSTALL, JUDGE, KEEP] = ACTION["runs"]["steps"]
NORM = """
import numpy as np
from conformance.port import Port as Base

class Port(Base):
    dtypes = ("float32",)
    def rms_norm(self, x, weight, *, eps):
        return weight * x / {root}
"""
RIGHT = "np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + x.dtype.type(eps))"
WRONG = "(np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) + x.dtype.type(eps))"


def filled(text: str, context: dict[str, str]) -> str:
    """A value of the action with its expressions filled in."""
    return re.sub(r"\$\{\{ (.+?) \}\}", lambda found: context[found[1]], text)


@pytest.fixture
def judge(tmp_path):
    """What the step that judges a port does: its exit status, the summary, and the folder of its reports."""

    def run(port: str, arguments: str) -> tuple[int, str, Path]:
        (tmp_path / "my_port.py").write_text(NORM.format(root=port))
        (tmp_path / "random").touch()  # which the glob would find
        context = {"inputs.port": "my_port.py", "inputs.arguments": arguments, "runner.temp": str(tmp_path)}
        context["inputs.name"] = ACTION["inputs"]["name"]["default"]
        environment = {name: filled(value, context) for name, value in JUDGE["env"].items()}
        environment["GITHUB_STEP_SUMMARY"] = str(tmp_path / "summary.md")
        environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment["PYTHONPATH"] = str(ROOT)
        (tmp_path / "step.sh").write_text(JUDGE["run"])
        bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(tmp_path / "step.sh")]  # GitHub's `shell: bash`
        done = subprocess.run(bash, cwd=tmp_path, env=os.environ | environment, capture_output=True, check=False, timeout=120)
        summary = tmp_path / "summary.md"
        return done.returncode, summary.read_text() if summary.exists() else "", Path(filled(KEEP["with"]["path"], context))

    return run


def test_it_installs_itself_and_keeps_its_reports_whatever_they_say():
    assert (ACTION["runs"]["using"], INSTALL["shell"], JUDGE["shell"]) == ("composite", "bash", "bash")
    assert INSTALL["run"].split()[-1] == '"$GITHUB_ACTION_PATH"'  # where GitHub has put the action's own repository
    assert KEEP["if"] == "${{ !cancelled() }}"


def test_a_port_that_conforms(judge):
    status, summary, folder = judge(RIGHT, "--op rms_norm --case */random")
    assert status == 0
    assert summary.startswith("## ✅ Conforms")
    assert {file.name for file in folder.iterdir()} == {"report.json", "report.html", "report.md", "badge.json"}
    badge = {"schemaVersion": 1, "label": "norm-conformance", "message": "conforms", "color": "brightgreen"}
    assert json.loads((folder / "badge.json").read_text()) == badge


def test_a_port_that_does_not(judge):
    status, summary, folder = judge(WRONG, "--op rms_norm --case */rows_near_eps --case */random")
    assert status == 1
    assert "eps is added to the root, not under it" in summary
    assert json.loads((folder / "badge.json").read_text())["message"] == "does not conform"


def test_wrong_usage_has_no_summary(judge):
    assert judge(RIGHT, "--no-such-option")[:2] == (2, "")
