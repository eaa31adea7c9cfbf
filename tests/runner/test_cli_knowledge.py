"""What the command line knows: the commands that list, explain, and tell a port's dialect."""

import re
from itertools import pairwise

import pytest

from conformance.mistakes import MISTAKES
from conformance.ops.cases import CASES
from tests.runner.test_cli import CONFORMS, HONEST, VICTIM, WRONG_USAGE, conformance, conformance_lines, read_report


def test_list_names_every_case():
    lines = conformance_lines("list")
    assert [re.fullmatch(r"(\S+) +(\[.*?\]) +(.*)", line).groups() for line in lines] == [
        (case.id, str(list(case.shape)), case.exposes) for case in CASES
    ]
    assert conformance("list", "--op", "rms_norm", "--case", "*/float32/width_1")[1].split()[0] == (
        "rms_norm/either_order/float32/width_1"
    )


def test_list_names_every_mistake_under_what_it_alters():
    heading, listed = "", list[tuple[str, str]]()
    for line in conformance_lines("list", "mistakes"):
        if line.startswith("  "):
            listed.append((heading, line.split()[0]))
        else:
            heading = line
    assert sorted(listed) == sorted((", ".join(mistake.change), mistake.id) for mistake in MISTAKES)
    headings = [heading for heading, _ in listed]
    assert sum(one != other for one, other in pairwise(headings)) == len(set(headings)) - 1


def listed(*arguments: object) -> list[str]:
    """The ids that `list` prints."""
    return [line.split()[0] for line in conformance_lines("list", "cases", *arguments)]


def test_ops_dtypes_and_cases_add_up():
    two = listed("--op", "rms_norm", "--op", "layer_norm", "--dtype", "float32", "--dtype", "bfloat16", "--case", "*/random")
    assert {case.split("/")[0] for case in two} == {"rms_norm", "layer_norm"}
    assert {case.split("/")[2] for case in two} == {"float32", "bfloat16"}
    both = listed("--case", VICTIM, "--case", "gelu/erf/float32/*")
    assert set(both) == {VICTIM, *listed("--case", "gelu/erf/float32/*")}


def test_what_is_excluded_is_not_asked(tmp_path):
    ask = ["--op", "rms_norm", "--dtype", "float32", "--exclude", "*_rows*", "--exclude", "*/width_*"]
    every = listed(*ask[:4])
    left = listed(*ask)
    assert left == [case for case in every if "_rows" not in case and "/width_" not in case]
    assert 0 < len(left) < len(every)
    conformance("run", HONEST, *ask, "--case", "*/r*", "--case", VICTIM, "--json", tmp_path / "r.json")
    asked = [verdict["case"] for verdict in read_report(tmp_path / "r.json")["verdicts"]]
    assert asked == [case for case in left if case.rpartition("/")[2].startswith("r")]


@pytest.mark.parametrize(
    ("what", "words"), [("ports", "impl_torch"), ("ports", "impl_jax"), ("dialects", "cast_then_scale_float32_weight x_hat")]
)
def test_list_names_ports_and_dialects(what, words):
    status, output = conformance("list", what)
    assert status == CONFORMS
    assert words in output


def test_explain_says_what_a_case_is_about():
    status, output = conformance("explain", "layer_norm/scale_then_cast/float16/eps_1e-12")
    assert status == CONFORMS
    for words in ("eps underflows in float16", "x float16[2, 3, 33]", "multiplied by the weight, then cast once", "dbias"):
        assert words in output


@pytest.mark.parametrize(
    ("id_", "said"),
    [("scale_x", "required but for rounding"), ("eps_outside_root", "evidence gpt-neox#1342"), ("cast_then_scale", "cases")],
)
def test_explain_knows_properties_mistakes_and_dialects(id_, said):
    status, output = conformance("explain", id_)
    assert status == 0
    assert said in output


def test_explain_finds_the_large_case_where_no_small_one_shows_a_mistake():
    """Only a case of more features than a block has some beyond it."""
    lines = {line.split()[0]: line for line in conformance_lines("explain", "row_cut_at_1024")}
    assert re.search(r"rejected by \d of \d+ large cases, most plainly by \S+/float32/width_4096", lines["float32"])
    assert "hidden: every row has 33 features" in lines["float64"]


def test_explain_suggests_what_was_meant():
    status, output = conformance("explain", "eps_outside_rot")
    assert status == WRONG_USAGE
    assert "did you mean eps_outside_root?" in " ".join(output.split())


def test_identify_tells_a_ports_dialect():
    status, output = conformance("identify", "tests.runner.bad_ports:OneOrder", "--op", "rms_norm")
    assert status == 0
    assert "scale_then_cast; y is bfloat16" in output
    assert "inside the root, as asked" in output


def test_identify_says_that_a_port_could_not_be_run():
    status, output = conformance("identify", "no_such_module:Port")
    assert status == 3
    assert "could not be run" in output


def test_identify_wants_one_port():
    status, output = conformance("identify")
    assert status == WRONG_USAGE
    assert "name one port" in output
