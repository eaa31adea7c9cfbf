"""A port in the runner's own process: the same verdicts, and what a debugger needs."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from conformance.ops.cases import select
from conformance.port.in_process import PortInProcess
from conformance.port.launch import Launch
from conformance.port.process import PortFailure
from conformance.running.runner import PortRun, run_port

ROOT = Path(__file__).parents[2]
CASES = select("rms_norm/either_order/float32/*_rows*") + select("layer_norm/cast_then_scale/bfloat16/random")


def here(name: str) -> Launch:
    return Launch(f"tests.runner.bad_ports:{name}", mode="eager", in_process=True)


def run(name: str) -> PortRun:
    return run_port(here(name), CASES)


@pytest.mark.parametrize("name", ["Honest", "EpsOutsideRoot", "NoGradients", "SkipsOne", "WrongDtype", "MissesOutput"])
def test_its_verdicts_are_those_of_a_process(name, capfd):
    assert run(name) == run_port(replace(here(name), in_process=False), CASES)


def test_an_overwritten_input_is_still_found(tmp_path):
    greedy = tmp_path / "greedy.py"
    greedy.write_text(
        "from tests.runner.bad_ports import NoGradients\n"
        "class Greedy(NoGradients):\n"
        "    def rms_norm(self, x, weight, **constants):\n"
        "        y = super().rms_norm(x, weight, **constants)\n"
        "        x[...] = 0\n"
        "        return y\n"
    )
    twice = select("rms_norm/either_order/float32/random") * 2
    result = run_port(Launch(str(greedy), in_process=True), twice)
    assert [verdict.message for verdict in result.verdicts] == ["overwrites its input x"] * 2


def test_an_exception_is_seen_where_it_happens(capfd):
    result = run("Raises")
    assert [verdict.message for verdict in result.verdicts if verdict.status == "error"] == ["RuntimeError: not today"]
    stderr = capfd.readouterr().err
    assert stderr.startswith("rms_norm/either_order/float32/zero_rows:\nTraceback")
    assert "raise RuntimeError" in stderr


PARSES = """
import argparse
import sys

parser = argparse.ArgumentParser()
parser.parse_args()  # as a library does that takes the command line for its own
from conformance.port import Port

class Parses(Port):
    def rms_norm(self, x, weight, *, eps):
        parser.parse_args()
        raise RuntimeError(f"given {sys.argv}")
"""


@pytest.mark.parametrize("how", [["--in-process"], []], ids=["here", "as a process"])
def test_the_kits_arguments_are_none_of_the_ports(how, tmp_path):
    (tmp_path / "parses.py").write_text(PARSES)
    command = [sys.executable, "-m", "conformance", "run", "parses.py", *how, "--case", CASES[0].id, "--seed", "7"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False, timeout=120)
    assert "RuntimeError: given ['parses.py']" in result.stdout


def test_the_kit_has_its_arguments_back(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["conformance", "run"])
    run("Raises")
    assert sys.argv == ["conformance", "run"]


def test_to_exit_costs_the_case():
    result = run("Leaves")
    assert [verdict.message for verdict in result.verdicts if verdict.status == "error"] == ["the port exited with status 0"]


def test_a_port_that_cannot_be_made_says_why(capfd):
    with pytest.raises(PortFailure, match="RuntimeError: no mars here, eager or not"):
        PortInProcess(replace(here("RaisesAtBirth"), device="mars"))
    assert "bad_ports.py" in capfd.readouterr().err


def test_breakpoint_stops_and_to_quit_ends_the_run(tmp_path):
    (tmp_path / "stops.py").write_text(
        "import numpy as np\nfrom conformance.port import Port\n"
        "class Stops(Port):\n"
        "    dtypes = ('float32',)\n"
        "    def rms_norm(self, x, weight, *, eps):\n"
        "        print('before')\n"
        "        breakpoint()\n"
        "        return x * np.nan\n"
    )
    command = [sys.executable, "-m", "conformance", "run", "stops.py", "--in-process", "--case", "rms_norm/*/random"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    settings = {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment, "timeout": 60}
    stepped = subprocess.run(command, input="p x.shape\nc\n", check=False, **settings)
    assert stepped.returncode == 1
    assert "before\n" in stepped.stdout
    assert "(2, 3, 33)" in stepped.stdout
    assert "does not conform: 1 failed" in stepped.stdout
    quitted = subprocess.run(command, input="q\n", check=False, **settings)
    assert quitted.returncode == 130
    assert quitted.stderr == "interrupted: nothing was judged\n"


@pytest.mark.parametrize("command", ["run", "identify", "fuzz"])
def test_a_program_cannot_be_run_here(command):
    arguments = [sys.executable, "-m", "conformance", command, "--exec", "true", "--in-process"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 2
    assert "true is a program; only a port in Python" in " ".join(result.stderr.split())
