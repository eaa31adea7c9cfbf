"""Shards of a run, and their reports joined: nothing asked twice, nothing missing, nothing mixed."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from conformance.judging.compare import Verdict
from conformance.mistakes import MISTAKES
from conformance.ops.cases import CASES, select
from conformance.report.building import build, digest
from conformance.report.machine import as_json
from conformance.report.merging import MergeError, merge
from conformance.report.report import CONFORMS, NOT_RUN, Report, Settings
from conformance.running.runner import PortRun
from conformance.running.shard import program, shard
from tests.runner.test_cli import FAILS, HONEST, WRONG, WRONG_USAGE, conformance, read_report
from tests.runner.test_report import HELLO, judged, sevens

(MISSING,) = (mistake for mistake in MISTAKES if mistake.id == "weight_missing")
IDS = [f"{op}/either_order/{dtype}/random" for op in ("rms_norm", "layer_norm") for dtype in ("float32", "float64")]
ASKED = tuple(case for id_ in IDS for case in select(id_))


def verdict(id_: str) -> Verdict:
    """One case is wrong in its own way; the others lack the weight."""
    return judged(id_, sevens) if id_ == IDS[3] else judged(id_, made=MISSING)


def part(number: int, count: int, port: str = "port", **changed) -> Report:
    """A shard of a run in which a port lacks the weight."""
    verdicts = tuple(replace(verdict(case.id), port=port) for case in shard(ASKED, number, count))
    settings = Settings(0, "cpu", "jit", asked=len(ASKED), digest=digest(ASKED), shard=number, shards=count)
    return build([PortRun(port, HELLO, verdicts)], replace(settings, **changed), 1.0)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_every_case_is_in_one_shard_and_a_family_is_whole(count):
    parts = [shard(CASES, number, count) for number in range(1, count + 1)]
    assert Counter(case for each in parts for case in each) == Counter(CASES)
    programs = [{program(case) for case in each} for each in parts]
    assert sum(map(len, programs)) == len(set.union(*programs))
    assert all([case for case in CASES if case in set(each)] == list(each) for each in parts)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_shards_are_even(count):
    """In cases, and in programs, which a compiler takes its time for."""
    parts = [shard(CASES, number, count) for number in range(1, count + 1)]
    sizes, programs = [len(each) for each in parts], [len({program(case) for case in each}) for each in parts]
    assert max(sizes) <= 1.15 * min(sizes)
    assert max(programs) <= 1.25 * min(programs)
    blocks = [len({program(case) for case in each if case.op == "pre_ln_block"}) for each in parts]
    assert max(blocks) - min(blocks) <= 1


def test_shards_together_say_what_one_machine_says():
    whole, joined = part(1, 1), merge({f"{number}.json": part(number, 3) for number in (3, 1, 2)})
    assert joined.settings == whole.settings
    assert joined.matrix == whole.matrix
    assert joined.exit_status == whole.exit_status
    assert {entry.case for entry in joined.verdicts} == {entry.case for entry in whole.verdicts}
    assert [cause.what for cause in joined.causes] == [cause.what for cause in whole.causes]
    mine, its = joined.causes[0], whole.causes[0]
    assert set(mine.cases) == set(its.cases)
    numbers = ("mistake", "outputs")
    assert [getattr(mine.evidence, name) for name in numbers] == [getattr(its.evidence, name) for name in numbers]
    assert (mine.example, mine.output, mine.command) == (its.example, its.output, its.command)
    assert joined.seconds == 3.0
    assert len(as_json(joined)) == pytest.approx(len(as_json(whole)), rel=0.01)


def test_the_evidence_of_one_mistake_is_joined():
    def with_residual(report: Report, residual: float) -> Report:
        cause, *others = report.causes
        return replace(report, causes=(replace(cause, evidence=replace(cause.evidence, residual=residual)), *others))

    one, two = with_residual(part(1, 2), 0.5), with_residual(part(2, 2), 0.25)
    first, second = (report.causes[0].evidence for report in (one, two))
    evidence = merge({"one": one, "two": two}).causes[0].evidence
    assert evidence.residual == 0.5
    for name in ("agreeing", "judged", "outputs", "failing"):
        assert getattr(evidence, name) == getattr(first, name) + getattr(second, name)


def test_different_ports_are_set_side_by_side():
    joined = merge({"a": part(1, 1), "b1": part(1, 2, "other"), "b2": part(2, 2, "other")})
    assert [port.port for port in joined.ports] == ["port", "other"]
    assert [cell.port for cell in joined.matrix] == ["port"] * 4 + ["other"] * 4


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([(1, 3), (3, 3)], "of port, shard 2 of 3 is missing"),
        ([(1, 3)], "of port, shard 2, 3 of 3 is missing"),
        ([(1, 2), (2, 2), (2, 2)], "1.json and 2.json are both shard 2 of 2 of port"),
        ([(1, 2), (2, 3)], "1.json is a shard of 3 of port, 0.json of 2"),
        ([(1, 1), (1, 1)], "0.json and 1.json are both shard 1 of 1 of port"),
        ([(1, 2), (2, 2, {"seed": 7})], "1.json has another seed than 0.json: 7, not 0"),
        ([(1, 2), (2, 2, {"device": "cuda"})], "1.json has another device than 0.json: 'cuda', not 'cpu'"),
        ([(1, 2), (2, 2, {"mode": "eager"})], "1.json has another mode than 0.json: 'eager', not 'jit'"),
        ([(1, 2), (2, 2, {"digest": "?"})], "1.json has another cases than 0.json"),
    ],
    ids=str,
)
def test_reports_that_do_not_belong_together_are_refused(parts, words):
    reports = {f"{place}.json": part(*at, **dict(*changed)) for place, (*at, changed) in enumerate(map(_split, parts))}
    with pytest.raises(MergeError, match=re.escape(words)):
        merge(reports)


def _split(said: tuple) -> tuple:
    return (*said[:2], said[2:])


def test_another_version_and_overlaps_and_gaps_are_refused():
    one, two = part(1, 2), part(2, 2)
    with pytest.raises(MergeError, match="is by version 9 of the kit"):
        merge({"one": one, "two": replace(two, conformance="9")})
    with pytest.raises(MergeError, match=f"one and two both judge {one.verdicts[0].case} of port"):
        merge({"one": one, "two": replace(two, verdicts=(*two.verdicts, one.verdicts[0]))})
    with pytest.raises(MergeError, match="port has verdicts for 3 of the 4 cases"):
        merge({"one": one, "two": replace(two, verdicts=two.verdicts[1:], causes=())})
    other = replace(two.ports[0], hello=replace(HELLO, versions={"lib": "2"}))
    with pytest.raises(MergeError, match="port says other things of itself"):
        merge({"one": one, "two": replace(two, ports=(other,))})


def test_a_shard_that_is_skipped_whole_is_no_failure_but_a_port_that_is_never_judged_is():
    def skipped(number: int, count: int) -> Report:
        cases = shard(ASKED, number, count)
        settings = Settings(0, "cpu", "jit", asked=len(ASKED), digest=digest(ASKED), shard=number, shards=count)
        verdicts = tuple(Verdict("port", case, "skip", message="no op") for case in cases)
        return build([PortRun("port", HELLO, verdicts)], settings, 1.0)

    assert skipped(1, 2).exit_status == CONFORMS
    assert merge({"1": skipped(1, 2), "2": skipped(2, 2)}).exit_status == NOT_RUN
    failed = build([PortRun("port", None, (), "no")], skipped(2, 2).settings, 1.0)
    assert merge({"1": skipped(1, 2), "2": failed}).exit_status == failed.exit_status == NOT_RUN


def test_the_command_joins_what_runs_have_written(tmp_path):
    """With every kind of page, and the exit status of a run."""
    ask = ["run", WRONG, "--case", "rms_norm/*/rows_near_eps", "--seed", "5"]
    files = [tmp_path / f"{number}.json" for number in (1, 2)]
    for number, file in enumerate(files, 1):
        status, said = conformance(*ask, "--shard", f"{number}/2", "--json", file)
        assert (status, f"seed 5, shard {number} of 2" in said) == (FAILS, True)
    pages = {kind: tmp_path / f"all.{kind}" for kind in ("json", "junit", "markdown", "html")}
    status, said = conformance("merge", *files, *(word for kind, page in pages.items() for word in (f"--{kind}", page)))
    assert status == FAILS
    assert "and agrees with 16 of 16 cases" in said
    assert len(read_report(pages["json"])["verdicts"]) == 16
    assert all("eps is added to the root, not under it" in page.read_text() for page in pages.values())
    assert conformance("merge", pages["json"], "--quiet")[1].startswith("does not conform: 16 failed")


def test_what_cannot_be_joined_is_wrong_usage(tmp_path):
    conformance("run", HONEST, "--case", "rms_norm/*/random", "--shard", "1/2", "--json", tmp_path / "1.json")
    for arguments, words in [
        ([tmp_path / "1.json"], "shard 2 of 2 is missing"),
        ([tmp_path / "2.json"], "2.json: no such file"),
        ([], "Missing argument 'FILE'"),
        ([tmp_path / "1.json", "--html", tmp_path / "no" / "page.html"], "there is no folder"),
    ]:
        status, said = conformance("merge", *arguments)
        assert status == WRONG_USAGE
        assert words in said


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("0/2", "'0/2' is not I/N"),
        ("3/2", "is not I/N"),
        ("2", "is not I/N"),
        ("x/y", "is not I/N"),
        ("9/9", "4 cases are too few"),
    ],
)
def test_a_shard_that_is_none_is_wrong_usage(said, words):
    status, output = conformance("run", HONEST, "--case", "*/either_order/float32/rows_near_eps", "--shard", said)
    assert status == WRONG_USAGE
    assert words in output
