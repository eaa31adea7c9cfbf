"""A port on several ranks: its parts, its processes, and what is said where one of them fails."""

import re
import socket
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from conformance.cli import app
from conformance.judging.diagnose import diagnose
from conformance.ops.cases import CASES
from conformance.ops.golden import golden
from conformance.ops.norms.cases import NormCase
from conformance.ops.ranks import on_ranks
from conformance.port.launch import Launch
from conformance.port.parts import PartError, axis, cut, join, whole
from conformance.question.case import split_over_ranks
from conformance.running.runner import PortRun, run_port

TABLE = {case.id: case for case in CASES if isinstance(case, NormCase)}
RANDOM = TABLE["layer_norm/either_order/float32/random"]
FEW = (RANDOM, TABLE["layer_norm/either_order/float32/zero_rows"], TABLE["layer_norm/either_order/float32/eps_1e-6"])
AT = r"\(in \w+, \w+\.py:\d+\)"
HALF = TABLE["layer_norm/scale_then_cast/bfloat16/random"]


def launch(name: str, **how) -> Launch:
    return Launch(f"tests.runner.ranked_ports:{name}", **{"ranks": 2, "timeout": 30.0} | how)


def run(name: str, *cases, split: str = "", **how) -> PortRun:
    asked = on_ranks(cases or FEW, how.get("ranks", 2))
    result = run_port(launch(name, **how), [case for case in asked if split in ("", split_over_ranks(case.layout))])
    assert not result.failure
    return result


def test_every_norm_is_asked_both_ways_but_for_what_cannot_be_split():
    asked = on_ranks(CASES, 4)
    assert {(case.op, split_over_ranks(case.layout)) for case in asked} == {
        (op, split) for op in {case.op for case in asked} for split in ("rows", "features")
    }
    assert len({case.id for case in asked}) == len(asked)
    names = {case.name for case in asked if case.op == "rms_norm"}
    assert {"random.rows", "random.features", "sharded_rows.rows", "width_2.rows", "rows_0.rows"} <= names
    assert not {"strided.rows", "width_2.features", "rank_1.rows", "sharded_rows.features", "sharded_both.rows"} & names


@pytest.mark.parametrize("ranks", [2, 4, 7])
@pytest.mark.parametrize("split", ["rows", "features"])
def test_parts_are_joined_to_what_was_cut(split, ranks):
    (case,) = (case for case in on_ranks([RANDOM], ranks) if split_over_ranks(case.layout) == split)
    outputs = {name: golden(case).outputs[name].value.astype(np.float32) for name in case.outputs}
    parts = cut(case, outputs, ranks)
    joined = join(case, parts, tuple(outputs))
    assert all(np.array_equal(joined[name], outputs[name]) for name in outputs)
    assert set(whole(case, parts, tuple(outputs))) == ({"dweight", "dbias"} if split == "rows" else set())
    sizes = [part["y"].shape[axis(case, case.shape) or 0] for part in parts]
    assert sizes == [len(each) for each in _chunks(case.shape[0 if split == "rows" else -1], ranks)]


def _chunks(size: int, ranks: int) -> list[range]:
    """What `torch.chunk` makes of a range, and empty ranges for the ranks that it leaves out."""
    part = -(-size // ranks)
    return [range(size)[first * part : (first + 1) * part] for first in range(ranks)]


def test_a_part_of_another_shape_or_dtype_is_named_with_its_rank():
    (case, _) = on_ranks([RANDOM], 2)
    outputs = {name: golden(case).outputs[name].value for name in case.outputs}
    first, second = cut(case, outputs, 2)
    for wrong, words in [
        ({"y": first["y"]}, r"rank 1: y has shape \[3, 3, 33\]; its part is \[2, 3, 33\]"),
        ({"dx": second["dx"].astype(np.float32)}, "rank 1: dx is float32; on rank 0 it is float64"),
    ]:
        with pytest.raises(PartError, match=words):
            join(case, (first, second | wrong), tuple(outputs))
    with pytest.raises(PartError, match="rank 0: output 'dbias' is missing: it returned dweight, dx, y"):
        join(case, ({name: first[name] for name in ("y", "dx", "dweight")}, second), tuple(outputs))


@pytest.mark.parametrize("ranks", [2, 4])
def test_an_honest_port_conforms(ranks):
    result = run("Honest", *FEW, HALF, ranks=ranks)
    assert [verdict.status for verdict in result.verdicts] == ["pass"] * 8


@pytest.mark.parametrize(
    ("port", "message", "timeout"),
    [
        ("Dies", "the port on rank 1 was killed by SIGKILL, as happens where memory runs out", 30.0),
        (
            "Hangs",
            r"the port on rank 0 did not answer within 1 s \(in \w+, .*\), nor on rank 1 \(in fail, ranked_ports.py:\d+\)",
            1.0,
        ),
        ("AnswersAnother", "the port on rank 1 answered request 1 with id 4711", 30.0),
        ("Raises", "rank 1: ValueError: no zeros here", 30.0),
    ],
)
def test_a_rank_that_fails_costs_its_case_and_leaves_nothing_behind(port, message, timeout, wait_for_processes, slow_start):
    result = run(port, split="features", timeout=timeout)
    statuses = {verdict.case.name: (verdict.status, verdict.message) for verdict in result.verdicts}
    status, said = statuses.pop("zero_rows.features")
    assert status == "error"
    assert re.fullmatch(message, said)
    assert set(statuses.values()) == {("pass", "")}
    assert wait_for_processes(0)


def test_a_part_that_is_too_large_is_an_error():
    result = run("WholeY", TABLE["rms_norm/either_order/float32/random"], split="rows")
    assert [verdict.message for verdict in result.verdicts] == ["rank 1: y has shape [4, 3, 33]; its part is [2, 3, 33]"]


@pytest.mark.parametrize("port", ["Honest", "DiesAtBirth"])
def test_a_port_that_cannot_start_on_every_rank_is_not_run(port, monkeypatch, wait_for_processes):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        if port == "Honest":
            monkeypatch.setenv("MASTER_PORT", str(busy.getsockname()[1]))
        said = CliRunner().invoke(app, ["run", launch(port).spec, "--ranks", "2", "--case", f"{RANDOM.id}.*"])
    assert said.exit_code == 3
    why = "OSError: [Errno 98] Address already in use" if port == "Honest" else "exited with status 5"
    assert f"could not be run: on rank {int(port != 'Honest')}: {why}" in " ".join(said.output.split())
    assert wait_for_processes(0)


def test_ranks_are_refused_where_there_are_none():
    for options, words in [
        (["--op", "rope"], "no case of rope matches"),
        (["--in-process"], "several ranks are several processes"),
    ]:
        said = CliRunner().invoke(app, ["run", launch("Honest").spec, "--ranks", "2", *options])
        assert said.exit_code == 2
        assert words in said.output


def test_a_port_that_cannot_be_split_is_asked_nothing():
    result = run_port(replace(launch("Honest"), spec="tests.runner.bad_ports:Honest"), on_ranks([RANDOM], 2))
    assert [verdict.message for verdict in result.verdicts] == [
        f"no {split} that are split over ranks" for split in ("rows", "features")
    ]


MEANS = "a mean over one rank's own features stands for one over the features of all ranks"
WIDTHS = "a sum over the features of all ranks is divided by the number of one rank's own"
NAMES = {
    ("DweightOfOwnRows", "rows", 2): "dweight and dbias are over one rank's own rows, not summed over the 2 ranks",
    ("DweightAveraged", "rows", 2): "dweight and dbias are averaged over the 2 ranks, not summed: 1/2 of what they should be",
    ("DweightAveraged", "rows", 4): "dweight and dbias are averaged over the 4 ranks, not summed: 1/4 of what they should be",
    ("DweightSummedTwice", "rows", 4): "dweight and dbias are reduced over the ranks twice: times 4",
    ("DweightSummedInStorage", "rows", 4): "dweight and dbias are reduced over the ranks in half precision",
    ("OwnStatistics", "features", 2): f"in the statistics {MEANS}; not so in dx",
    ("OwnMeansInBackward", "features", 2): f"in dx {MEANS}",
    ("MeanOfMeans", "features", 2): "the ranks' means are averaged as if each had as many features",
    ("RstdsAveraged", "features", 2): "the ranks' rstds are averaged, not their mean squares",
    ("EpsOnEveryRank", "features", 2): "eps is added by every rank, before the sum: times 2",
    ("OwnWidth", "features", 2): WIDTHS,
}
"""Mistakes that ranks make, in which split, on how many ranks, and what they are called."""


@pytest.mark.parametrize("ranks", [2, 4])
def test_what_goes_wrong_among_ranks_is_rejected_in_its_split_alone(ranks):
    made = {mistake: (split, named) for (mistake, split, of), named in NAMES.items() if of == ranks}
    result = run("Mistaken", *(case for mistake in made for case in _for(mistake)), ranks=ranks)
    for mistake, (split, named) in made.items():
        verdicts = [verdict for verdict in result.verdicts if verdict.case.name.startswith(f"{mistake}-")]
        failing = [verdict for verdict in verdicts if verdict.status != "pass"]
        assert {split_over_ranks(verdict.case.layout) for verdict in failing} == {split}, mistake
        disagree = {verdict.message.partition(":")[0] for verdict in failing}
        assert disagree == {"ranks disagree" if mistake == "DweightOfOwnRows" else ""}, mistake
        assert [found.mistake.sentence for found in diagnose(verdicts, 0)] == [named]


@pytest.mark.parametrize(
    ("mistake", "named"),
    [("EpsTwice", "eps_twice"), ("DweightTwice", "dweight_and_dbias_times_2")],
)
def test_what_is_wrong_in_either_split_is_not_put_down_to_ranks(mistake, named):
    """On two ranks eps of every rank, and a second reduction, give the same numbers where one split alone is asked."""
    verdicts = run("Mistaken", *_for(mistake)).verdicts
    assert {split_over_ranks(verdict.case.layout) for verdict in verdicts if verdict.status == "fail"} == {"rows", "features"}
    assert [found.mistake.id for found in diagnose(verdicts, 0)] == [named]


def _for(mistake: str) -> list[NormCase]:
    """Cases that say in their names which mistake the port is to make."""
    variant = "scale_then_cast/bfloat16" if mistake == "DweightSummedInStorage" else "either_order/float32"
    cases = (TABLE[f"layer_norm/{variant}/{name}"] for name in ("random", "rows_near_eps"))
    return [replace(case, name=f"{mistake}-{case.name}") for case in cases]
