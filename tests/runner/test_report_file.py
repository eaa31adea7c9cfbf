"""The report's JSON: its schema, its classes of errors, and what is said of a file that holds no report."""

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.judging.compare import compare_output
from conformance.numbers.expected import Expected
from conformance.ops.cases import select
from conformance.report.building import build
from conformance.report.machine import ReportFileError, as_json, parse, read
from conformance.report.report import Report, Settings
from conformance.report.spread import BEYOND, MAP, PASSES, SCALES, classes, errors, pool
from conformance.running.runner import PortRun
from tests.runner.test_report import HELLO, LARGE, SMALL, judged, one_nan, report, sevens, unjudged

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs/report.schema.json").read_text())


def everything() -> Report:
    """A report with an entry of every kind."""
    verdicts = (
        judged(SMALL, one_nan),
        judged("rms_norm/either_order/float32/spike"),
        judged("layer_norm/cast_then_scale/bfloat16/random", sevens),
        unjudged("rms_norm/either_order/float32/rank_4", "skip", "on Sundays"),
        unjudged(LARGE, "error", "no"),
    )
    runs = PortRun("port", HELLO, verdicts), PortRun("no_module", None, (), "No module named 'no_module'")
    return build(runs, Settings(3, "mars", "eager"), 1.25)


def document() -> dict:
    return json.loads(as_json(everything()))


def test_the_schema_is_one_and_holds():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(document(), SCHEMA)


def test_what_is_written_is_read():
    """By its text: NaN equals nothing."""
    assert as_json(parse(document())) == as_json(everything())
    assert parse(document()).exit_status == everything().exit_status == 3


def test_a_file_is_an_entry_a_line():
    lines = as_json(everything()).splitlines()
    assert sum(line.startswith('  {"port"') for line in lines) == sum(
        len(document()[name]) for name in ("ports", "matrix", "causes", "verdicts")
    )


def changed(path: str, value: object) -> dict:
    """The document with one thing in it replaced, or taken away where the value is ... ."""
    whole = inner = document()
    *way, last = [int(word) if word.isdigit() else word for word in path.split(".")]
    for word in way:
        inner = inner[word]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return whole


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("format", 1, "format is 1; this kit reads 3"),
        ("format", ..., "it has no field 'format'"),
        ("causes", ..., "causes is missing"),
        ("surplus", 1, "surplus is not a field"),
        ("settings.seed", "3", 'settings.seed is "3"; expected a whole number'),
        ("settings.seed", True, "settings.seed is true; expected a whole number"),
        ("settings.shard", 0, "settings.shard is 0 of 1"),
        ("ports.0.hello", [], "ports[0].hello is []; expected an object"),
        ("verdicts.0.status", "passed", 'verdicts[0].status is "passed"; expected one of pass, fail, expected, skip, error'),
        ("verdicts.0.outputs.0.worst.index", 5, "verdicts[0].outputs[0].worst.index is 5; expected a list"),
        ("verdicts.0.outputs.0.worst.actual", "NaN", 'worst.actual is "NaN"; expected a number'),
        ("verdicts.0.outputs.0.ratio", 10**400, "too large"),
        ("verdicts.0.outputs.0.errors.pooled", [1], "errors.pooled has 1 item; expected 2"),
        ("verdicts.0.outputs.0.errors.map.1", "<b>", "the map of y has a row of another length or letters"),
        ("verdicts.0.port", "other", "verdicts[0].port is 'other'; ports has no such port"),
        ("matrix.0.port", "other", "matrix[0].port is 'other'; ports has no such port"),
        ("causes.0.example", "other", "causes[0]: verdicts has no 'other' of 'port'"),
        ("exit_status", 2, "exit_status is 2; expected 0, 1 or 3"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_report_is_refused_by_its_field(path, value, words):
    with pytest.raises(ReportFileError) as error:
        parse(changed(path, value))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "not readable as JSON"), ("[" * 100_000, "not readable as JSON"), ("[]", "not a report"), ('{"format": NaN}', "NaN")],
    ids=["empty", "deep", "list", "NaN"],
)
def test_a_file_that_is_no_report_is_named(tmp_path, content, words):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ReportFileError, match=r"r\.json: ") as error:
        read(tmp_path / "r.json")
    assert words in str(error.value)
    with pytest.raises(ReportFileError, match=r"none\.json: no such file"):
        read(tmp_path / "none.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def leaves(value: object, at: str = "") -> list[str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [path for key, item in items for path in leaves(item, f"{at}.{key}".strip(".")) if "*" not in path]


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(st.data())
def test_whatever_stands_in_a_field_there_is_an_error_or_a_report(data):
    path = data.draw(st.sampled_from([path for path in leaves(document()) if not path.startswith("ports.0.hello.")]))
    with suppress(ReportFileError):
        assert isinstance(parse(changed(path, data.draw(JSON))), Report)


def test_a_class_is_a_power_of_two_of_the_tolerance():
    """An element that is s tolerances off is admitted by the class of the scale s, and of none below."""
    value = np.ones(len(SCALES) + 2)
    expected = Expected.around(value, np.full_like(value, 2.0**-40), "float64")
    actual = value + 2.0**-40 * np.array([*SCALES, 2.0 * SCALES[-1], np.nan])
    assert classes(expected, actual).tolist() == [*range(len(SCALES)), BEYOND, BEYOND]
    assert SCALES[PASSES] == 1.0
    verdict = compare_output("y", expected, actual)
    assert verdict.outside == len(actual) - PASSES - 1
    assert sum(errors(expected, actual).counts[PASSES + 1 :]) == verdict.outside
    right = Expected.around(np.array([np.nan, 1.0]), np.zeros(2), "float64")
    assert classes(right, np.array([np.nan, np.nan])).tolist() == [0, BEYOND]


def test_a_map_shows_where_an_element_is():
    """However large the output: the one wrong element is in its own cell, and in no other."""
    for shape, index in [((2, 3, 33), (1, 0, 5)), ((2, 4096, 33), (1, 4095, 32)), ((4096,), (70,)), ((1, 1), (0, 0))]:
        value = np.zeros(shape)
        actual = value.copy()
        actual[index] = 1.0
        found = errors(Expected.around(value, np.full(shape, 0.25), "float64"), actual)
        assert sum(found.counts) == value.size
        assert len(found.map) <= MAP[0]
        assert {len(row) for row in found.map} <= set(range(1, MAP[1] + 1))
        row, column = np.ravel_multi_index(index[:-1], shape[:-1]) if len(shape) > 1 else 0, index[-1]
        at = row // found.pooled[0], column // found.pooled[1]
        letters = {(i, j): letter for i, line in enumerate(found.map) for j, letter in enumerate(line) if letter != "0"}
        assert letters == {at: str(PASSES + 2)}
    assert errors(Expected.around(np.zeros((0, 3)), np.zeros((0, 3)), "float64"), np.zeros((0, 3))).map == ()


def test_pooling_keeps_the_largest():
    found, pooled = pool(np.arange(100 * 130).reshape(100, 130) % 36)
    assert (found.shape, pooled) == ((25, 44), (4, 3))
    assert found.max() == 35


def test_only_what_fails_carries_a_map():
    whole = report(judged(SMALL, one_nan), judged("rms_norm/either_order/float32/spike"))
    assert [[bool(output.errors) for output in entry.outputs] for entry in whole.verdicts] == [
        [True, False, False],
        [False] * 3,
    ]
    (failing,) = (output for entry in whole.verdicts for output in entry.outputs if output.errors)
    assert failing.errors.counts[BEYOND] == 1
    assert [row.find("z") for row in failing.errors.map] == [-1, -1, -1, 5, -1, -1]


def test_a_passing_case_is_short():
    verdicts = [judged(case.id) for case in select("*/float32/*", op="rms_norm")[:20]]
    whole = as_json(report(*verdicts))
    assert len(whole) < 1024 * len(verdicts)
    assert asdict(report(*verdicts))["exit_status"] == 0
