"""`--json -`: a line for all that happens, and a program that loops by them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from conformance.report import stream
from tests.runner.test_report_file import everything

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs/stream.schema.json").read_text())


def valid(line: str) -> dict:
    said = json.loads(line)
    jsonschema.validate(said, SCHEMA)
    return said


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Every line of a run of a wrong function, and what it said on stderr."""
    file = tmp_path_factory.mktemp("port") / "norm.py"
    file.write_text("def rms_norm(x, weight, *, eps):\n    return x if weight is None else x * weight\n")
    command = [sys.executable, "-m", "conformance", "run", f"{file}:rms_norm", "--op", "rms_norm", "--dtype", "float32"]
    command += ["--case", "*/random", "--case", "*/no_weight", "--seed", "random", "--json", "-"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 1
    return [valid(line) for line in result.stdout.splitlines()], result.stderr


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_a_run_is_told_from_begin_to_end(run):
    lines, stderr = run
    assert [lines[0]["kind"], lines[-1]["kind"]] == ["begin", "end"]
    verdicts = [line for line in lines if line["kind"] == "verdict"]
    assert len({line["case"] for line in verdicts}) == lines[0]["cases"]
    assert {line["status"] for line in verdicts} == {"fail", "skip"}
    assert "does not conform" in stderr


def test_a_cause_is_an_id_and_words(run):
    [cause] = [line for line in run[0] if line["kind"] == "cause"]
    assert cause["id"] == "not_normalised"
    assert "x is scaled as it is" in cause["what"]


def test_the_seed_is_told_at_the_end_alone(run):
    lines, _ = run
    seed = str(lines[-1]["seed"])
    before = [line for line in lines if line["kind"] in ("begin", "verdict")]
    assert not any(seed in json.dumps(line) for line in before)
    [cause] = [line for line in lines if line["kind"] == "cause"]
    assert f"--seed {seed}" in cause["command"]


def test_what_is_no_known_mistake_has_an_id_too():
    report = everything()
    causes = [valid(stream.cause(report, cause)) for cause in report.causes]
    assert {"error", "unexplained"} <= {cause["id"] for cause in causes}
    assert valid(stream.end(report))["failures"] == {"no_module": "No module named 'no_module'"}


def test_the_example_loops_until_it_conforms(tmp_path):
    page = (ROOT / "docs/loops.md").read_text(encoding="utf-8")
    [shown] = re.findall(r"    \$ python examples/loop\.py\n((?:    .*\n)+)", page)
    command = [sys.executable, str(ROOT / "examples/loop.py"), str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=180)
    assert result.stdout.split() == shown.split()
