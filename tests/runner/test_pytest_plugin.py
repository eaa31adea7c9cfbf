"""The pytest plugin in someone else's project: a test for every case of a port, and cases for tests of one's own."""

import os
import re
import sys
import xml.etree.ElementTree as xml
from importlib.util import find_spec
from pathlib import Path

import pytest

import conformance.tools.testing.pytest_port
import conformance.tools.testing.trial
from benchmarks.counts import without_measurements
from conformance.ops.cases import select

pytest_plugins = "pytester"

ROOT = Path(__file__).parents[2]
FLOAT32 = "rms_norm/either_order/float32"
VICTIM = f"{FLOAT32}/zero_rows"
TWO = f"{FLOAT32}/[rz][ae]*[ms]"  # random, and the victim of bad ports
LOADED = (
    conformance.tools.testing.pytest_port,
    conformance.tools.testing.trial,
)  # before there is pytest within pytest, which must not load NumPy again
PLUGIN = ("-p", "conformance.pytest_plugin", "-p", "no:cacheprovider")
RMS_NORM = """
    import numpy as np
    import pytest

    @pytest.mark.conformance("rms_norm/either_order/float32/r*_eps", "*/either_order/float32/no_weight", op="rms_norm")
    def test_rms_norm(conformance_case):
        case = conformance_case
        y = case.x / {root}
        case.check(y=y if case.weight is None else y * case.weight)
"""
RIGHT = "np.sqrt(np.mean(case.x * case.x, axis=-1, keepdims=True) + np.float32(case.eps))"
WRONG = "(np.sqrt(np.mean(case.x * case.x, axis=-1, keepdims=True)) + np.float32(case.eps))"


@pytest.fixture(autouse=True)
def project(pytester, nothing_is_left_behind, monkeypatch):
    """A project elsewhere, from which the kit and its bad ports can be imported."""
    monkeypatch.chdir(pytester.path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # nor load everyone's plugins
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)
    return pytester


def bad(name: str) -> str:
    return f"--conformance-port=tests.runner.bad_ports:{name}"


def run(project, *arguments: object):
    return project.runpytest_inprocess(*PLUGIN, *map(str, arguments))


def test_without_a_port_nothing_is_added(project):
    project.makepyfile("def test_it(): pass")
    result = run(project)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*conformance:*")


def test_an_honest_port_passes_a_test_for_every_case(project):
    result = run(project, bad("Honest"), "--conformance-case", f"{FLOAT32}/w*", "-v")
    cases = [case.id for case in select(f"{FLOAT32}/w*")]
    result.assert_outcomes(passed=len(cases))
    result.stdout.fnmatch_lines([f"tests.runner.bad_ports:Honest::{case} PASSED*" for case in cases])
    result.stdout.fnmatch_lines(["conformance: tests.runner.bad_ports:Honest, jit, cpu, seed 0"])


def test_a_failure_says_what_was_done_where_and_how_to_see_it_again(project):
    case = f"{FLOAT32}/rows_near_eps"
    result = run(
        project, bad("EpsOutsideRoot"), "--conformance-case", case, "--conformance-seed", 7, "--conformance-mode", "eager"
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            f"_*_ {case} _*_",
            "eps is added to the root, not under it",
            "  diagnosis   eps_outside_root explains all 3 failing outputs*and agrees with 1 of 1 case",
            "  worst       *[[]*[]]  expected * got *",
            f"  reproduce   conformance run tests.runner.bad_ports:EpsOutsideRoot --case '{case}' --seed 7 --mode eager",
            "=* conformance: what went wrong =*",
            "tests.runner.bad_ports:EpsOutsideRoot: eps is added to the root, not under it  (1 case: float32)",
        ]
    )
    assert "Traceback" not in result.stdout.str()
    assert "pytest_port.py" not in result.stdout.str()


def test_the_page_shows_what_happens(project):
    page = (ROOT / "docs" / "pytest.md").read_text(encoding="utf-8")
    [source] = re.findall(r"```python\n(# test_my_norm.py\n.*?)```", page, re.DOTALL)
    of_a_port = run(project, bad("EpsOutsideRoot"), "--conformance-case", f"{FLOAT32}/rows_near_eps").stdout.str()
    project.makepyfile(test_my_norm=source)
    of_mine = project.runpytest_subprocess(*PLUGIN, "test_my_norm.py")  # torch cannot be loaded twice
    of_mine.assert_outcomes(failed=len(select((f"{FLOAT32}/r*", VICTIM))) - 1, passed=1)
    said = [without_measurements(line) for line in [*of_mine.outlines, *of_a_port.splitlines()]]
    shown = re.findall(r"^    ((?:>  |E  |eps is|  diagnosis|  worst|     +\d+ of|  reproduce).*)$", page, re.MULTILINE)
    assert len(shown) == 11
    page_port = "my_package.port:Port", "tests.runner.bad_ports:EpsOutsideRoot"
    assert [line for line in shown if without_measurements(line.replace(*page_port)) not in said] == []


def test_k_and_m_choose_among_the_cases(project):
    project.makepyfile("def test_width_of_mine(): pass")
    options = bad("Honest"), "--conformance-case", f"{FLOAT32}/*"
    count, widths = (len(select(f"{FLOAT32}/{glob}")) for glob in ("*", "width*"))
    run(project, *options, "-k", "width_1 and not width_12").assert_outcomes(passed=1, deselected=count)
    run(project, *options, "-k", "width", "-m", "not conformance").assert_outcomes(passed=1, deselected=count)
    run(project, *options, "-k", "width", "-m", "conformance").assert_outcomes(passed=widths, deselected=count - widths + 1)


def test_options_add_up_and_what_is_excluded_is_not_asked(project):
    two = "--conformance-case", f"{FLOAT32}/width*", "--conformance-case", f"{FLOAT32}/rank*"
    count = len(select((f"{FLOAT32}/width*", f"{FLOAT32}/rank*"), exclude="*/width_12?"))
    run(project, bad("Honest"), *two, "--conformance-exclude", "*/width_12?").assert_outcomes(passed=count)
    project.makeini(f"[pytest]\nconformance_case = {FLOAT32}/width* {FLOAT32}/rank*\nconformance_exclude = */width_12?")
    run(project, bad("Honest")).assert_outcomes(passed=count)


def test_a_marker_excludes_too(project):
    project.makepyfile(f"""
        import pytest

        @pytest.mark.conformance("{FLOAT32}/width*", op=("rms_norm", "layer_norm"), exclude="*/width_12?")
        def test_it(conformance_case): pass
    """)
    run(project).assert_outcomes(passed=len(select(f"{FLOAT32}/width*", exclude="*/width_12?")))


def test_what_a_port_lacks_is_skipped_with_its_reason(project):
    result = run(project, bad("NoLayerNorm"), "--conformance-case", "[rl]*_norm/either_order/float32/random", "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED *no op layer_norm"])
    result = run(project, bad("SkipsOne"), "--conformance-case", TWO, "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED *no zeros on Sundays"])


def test_a_failure_on_record_is_expected_and_must_fail(project):
    result = run(project, bad("KnowsItsFaults"), "--conformance-case", f"{FLOAT32}/rows_near_eps", "-rx")
    result.assert_outcomes(xfailed=1)
    result.stdout.fnmatch_lines(["XFAIL *rows_near_eps - *eps outside the root"])
    result = run(project, bad("KnowsItsFaults"), "--conformance-case", f"{FLOAT32}/values_near_6e4")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["passes, though it is expected to fail: nothing is wrong here"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Dies", "the port exited with status 7*the last words"),
        ("Raises", "RuntimeError: not today"),
        ("MissesOutput", "output 'dweight' is missing*"),
    ],
)
def test_a_bad_port_costs_its_own_case(name, words, project):
    result = run(project, bad(name), "--conformance-case", TWO)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines([f"_*_ {VICTIM} _*_", f"*{words}"])
    assert "INTERNALERROR" not in result.stdout.str()


def test_a_hung_port_costs_its_own_case(project, wait_for_processes):
    project.makepyfile("def test_it(): pass")
    result = run(project, bad("Hangs"), "--conformance-case", TWO, "--conformance-timeout", 8)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["the port did not answer within 8 s"])
    assert wait_for_processes(0)


def test_a_port_that_cannot_be_run_fails_every_case_at_once(project):
    project.makepyfile("def test_it(): pass")
    result = run(project, "--conformance-port=no_such_module:Port", "--conformance-case", f"{FLOAT32}/w*")
    result.assert_outcomes(passed=1, failed=10)
    result.stdout.fnmatch_lines(["no_such_module:Port could not be run: *No module named 'no_such_module'*"])
    assert "INTERNALERROR" not in result.stdout.str()
    assert "Traceback" not in result.stdout.str()


def test_a_port_is_imported_as_the_tests_are(project):
    """Though nobody has installed it: `pythonpath` of the ini file is for tests and ports alike."""
    project.makeini(
        "[pytest]\npythonpath = src\nconformance_port = mine:Port\nconformance_case = [rl]*_norm/either_order/float32/random"
    )
    project.mkdir("src").joinpath("mine.py").write_text("from tests.runner.bad_ports import NoLayerNorm as Port")
    run(project).assert_outcomes(passed=1, skipped=1)
    named = project.makepyfile("def test_it(): pass")
    run(project, named).assert_outcomes(passed=1)  # who names a file asks for that file
    run(project, named, bad("Honest"), "--conformance-op", "rms_norm").assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--conformance-op=silu",), "--conformance-op: 'silu' is not one of rms_norm"),
        (("--conformance-dtype=float8",), "--conformance-dtype: 'float8' is not one of"),
        (("--conformance-op=rms_norm", "--conformance-op=silu"), "--conformance-op: 'silu' is not one of rms_norm"),
        ((f"--conformance-exclude={VICTIM}s",), f"--conformance-exclude: no case matches '{VICTIM}s'; did you mean {VICTIM}?"),
        (("--conformance-mode=warp",), "--conformance-mode: 'warp' is not one of jit, eager"),
        (("--conformance-seed=x",), "--conformance-seed: 'x' is not a whole number"),
        (("--conformance-timeout=0",), "--conformance-timeout: '0' is not a number of seconds"),
        ((f"--conformance-case={VICTIM}s",), f"no case matches '{VICTIM}s'; did you mean {VICTIM}?"),
        (("--conformance-exec=node port.js",), "name one port"),
    ],
    ids=lambda value: value[0].partition("=")[0] if isinstance(value, tuple) else "",
)
def test_wrong_usage_is_said_before_anything_runs(arguments, words, project):
    result = run(project, bad("Honest"), *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert words in result.stderr.str()


@pytest.mark.skipif(not find_spec("xdist"), reason="no xdist")
def test_cases_that_share_compiled_code_are_of_one_group(project):
    """That xdist keeps a group on one worker is its own affair; 3.8 does not under pytest 9.2."""
    project.makeconftest("""
        def pytest_collection_modifyitems(items):
            print(*(f"{item.name} of {mark.args[0]}" for item in items for mark in item.iter_markers("xdist_group")), sep="\\n")
    """)
    result = run(project, "-p", "xdist", bad("Honest"), "--conformance-case", "*/width_7", "--collect-only", "--strict-markers")
    lines = [line for line in result.outlines if " of " in line]
    assert lines == [f"{case.id} of {case.id.rpartition('/')[0]} 3 contiguous" for case in select("*/width_7")]


@pytest.mark.parametrize(
    "workers",
    [(), pytest.param(("-p", "xdist", "-n", "1"), marks=pytest.mark.skipif(not find_spec("xdist"), reason="no xdist"))],
    ids=["alone", "xdist"],
)
def test_what_a_port_does_after_its_answer_fails_the_session(workers, project):
    """Its test has passed by then."""
    program = f"{sys.executable} -S {ROOT / 'tests/runner/hostile_ports.py'} exits_after_its_answer"
    options = f"--conformance-exec={program}", "--conformance-case", f"{VICTIM}*"
    result = project.runpytest_subprocess(*PLUGIN, *workers, *options)
    result.assert_outcomes(passed=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*: the port answered, and then exited with status 3  (1 case: float32)"])


@pytest.mark.skipif(not find_spec("xdist"), reason="no xdist")
def test_workers_have_a_port_each_and_report_together(project, wait_for_processes):
    project.makepyfile("def test_it(): pass")
    arguments = ("-n", "2", "--dist", "loadgroup", bad("EpsOutsideRoot"), "--conformance-case", "rms_norm/*/float32/r*_eps")
    result = project.runpytest_subprocess(*PLUGIN, "-p", "xdist", "--strict-markers", "-v", *arguments)
    result.assert_outcomes(passed=1, failed=3)
    result.stdout.fnmatch_lines(
        [
            "tests.runner.bad_ports:EpsOutsideRoot: eps is added to the root, not under it  (3 cases: float32)",
            "  diagnosis   eps_outside_root explains all 9 failing outputs*and agrees with 3 of 3 cases",
        ]
    )
    assert wait_for_processes(0)


def test_junit_has_the_cases(project):
    run(project, bad("EpsOutsideRoot"), "--conformance-case", f"{FLOAT32}/rows_near_eps", "--junit-xml", "r.xml")
    [case] = xml.parse(project.path / "r.xml").iter("testcase")
    assert case.get("name") == f"{FLOAT32}/rows_near_eps"
    assert {each.get("name"): each.get("value") for each in case.iter("property")}["conformance"] == "fail"
    assert "eps is added to the root, not under it" in (case.find("failure").text or "")


def test_a_test_of_ones_own_is_run_for_every_case_it_names(project):
    project.makepyfile(RMS_NORM.format(root=RIGHT))
    result = run(project, "-v")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines([f"*::test_rms_norm[[]{FLOAT32}/rows_near_eps[]] PASSED*"])
    run(project, "--conformance-dtype", "float16").assert_outcomes(skipped=1)
    run(project, "-k", "near_eps").assert_outcomes(passed=1, deselected=2)


def test_a_test_of_ones_own_that_fails_is_told_why(project):
    project.makepyfile(RMS_NORM.format(root=WRONG))
    result = run(project)
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        [
            ">       case.check(y=y if case.weight is None else y * case.weight)",
            "E       AssertionError: eps is added to the root, not under it",
            "E         diagnosis   eps_outside_root *",
            "E         worst       y[[]*[]]  expected * got *",
            "E         exposes     *",
        ]
    )
    assert "reproduce" not in result.stdout.str()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("case.check()", "nothing to judge: rms_norm/either_order/float32/random has the outputs y, dx, dweight"),
        ("case.check(z=case.x)", "has no output 'z'; it has y, dx, dweight"),
        ("case.check(y=None)", "y is NoneType of dtype object; it must be an array of float32"),
        ("case.check(y=case.x[:1])", "y has shape [1, 3, 33]; expected [2, 3, 33]"),
        ("case.check(y=case.x.astype('float64'))", "y is float64; expected float32"),
    ],
)
def test_what_cannot_be_judged_does_not_pass(body, words, project):
    project.makepyfile(f"""
        import pytest

        @pytest.mark.conformance("{FLOAT32}/random")
        def test_it(conformance_case):
            case = conformance_case
            {body}
    """)
    result = run(project)
    result.assert_outcomes(failed=1)
    assert words in result.stdout.str()


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        ("", "conformance_case needs a marker that names cases"),
        (f'@pytest.mark.conformance("{FLOAT32}/randon")', f"did you mean {FLOAT32}/random?"),
        ('@pytest.mark.conformance("*", shape=3)', "'shape' is neither op nor dtype nor exclude"),
    ],
    ids=["none", "unknown", "limit"],
)
def test_a_marker_that_names_no_case_is_an_error(marker, words, project):
    project.makepyfile(f"import pytest\n{marker}\ndef test_it(conformance_case): pass")
    result = run(project)
    result.assert_outcomes(errors=1)
    assert words in result.stdout.str()


def test_a_test_may_write_to_its_inputs(project):
    project.makepyfile(f"""
        import pytest

        @pytest.mark.parametrize("time", range(2))
        @pytest.mark.conformance("{FLOAT32}/random")
        def test_it(conformance_case, time):
            assert conformance_case.x.any()
            conformance_case.x[:] = 0
    """)
    run(project).assert_outcomes(passed=2)


def test_it_is_one_plugin_however_often_it_is_named(project):
    """By its entry point where the kit is installed, by -p in a bare clone, and by a conftest."""
    project.makeconftest('pytest_plugins = ["conformance.pytest_plugin"]')
    project.makepyfile("def test_it(): pass")
    run(project, "--strict-config", "--strict-markers", "-W", "error").assert_outcomes(passed=1)
    assert "conformance.pytest_plugin" in (ROOT / "pyproject.toml").read_text()
