"""Ports to a scoreboard: what conforms, forward and backward, what does not and why, and what is not at hand."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conformance.cli import app
from conformance.ops.cases import select
from conformance.tools.scoreboard.report import as_html, as_json, as_markdown, kept, read_json
from conformance.tools.scoreboard.scoreboard import Listed, Row, Score, Scoreboard, ScoreboardError, read_list, score_all
from conformance.tools.scoreboard.trend import changes

CASES = select("rms_norm/either_order/float32/random") + select("rms_norm/either_order/float32/spike")
FAKES = """
import numpy as np
from conformance.port import Port

class Right(Port):
    orders, weight_offsets = (), (0,)
    def to_tensor(self, array): return array
    def to_numpy(self, tensor): return tensor
    def rms_norm(self, x, weight, *, eps):
        self.rstd = 1 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + x.dtype.type(eps))
        return x * self.rstd * weight

class WrongGradient(Right):
    expected = {"*": "dx is left out <b>|"}
    def vjp(self, function, inputs, dy, constants):
        x, weight = inputs
        y = function(x, weight, **constants)
        axes = tuple(range(x.ndim - 1))
        return y, (np.zeros_like(x), np.sum(dy * x * self.rstd, axis=axes))

class Unready(Right):
    def __init__(self, *_, **__): import sys; print("Traceback\\n  at /home\\nno device", file=sys.stderr); sys.exit(1)

class Raises(Right):
    def rms_norm(self, x, weight, *, eps): raise ValueError("eps is too large\\n  [Hint: it is not small]")

class Dies(Right):
    def rms_norm(self, x, weight, *, eps): raise SystemExit(1)
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> tuple[Row, ...]:
    folder = tmp_path_factory.mktemp("fakes")
    (folder / "fake_ports.py").write_text(FAKES)
    listed = [
        *(Listed(name, f"fake_ports:{name}") for name in ("Right", "WrongGradient", "Dies", "Missing", "Unready")),
        Listed("elsewhere", "fake_ports:Right", needs=("no_such_module",), programs=("no-such-program",)),
        Listed("Raises", "fake_ports:Raises"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", f"{folder}:{Path(__file__).parents[2]}")
        return score_all(listed, CASES, seed=1, timeout=60, on_row=lambda row: None)


def test_what_is_right_conforms_and_has_no_gradients_to_show(rows):
    [score] = rows[0].scores
    assert (score.op, score.dtype, score.direction, score.passed, score.judged) == ("rms_norm", "float32", "forward", 2, 2)
    assert score.ratio <= 1
    assert rows[0].dialects["rms_norm"]


def test_forward_and_gradient_are_told_apart_and_a_failure_on_record_is_a_failure(rows):
    forward, gradient = rows[1].scores
    assert forward.conforms
    assert (gradient.direction, gradient.passed, gradient.judged) == ("gradient", 0, 2)
    assert gradient.ratio > 1
    assert gradient.reasons == {"dx is left out <b>|": 2}


def test_a_port_that_dies_or_is_not_there_costs_its_own_row(rows):
    assert [score.passed for score in rows[2].scores] == [0]
    assert "has nothing named" in rows[3].absent
    assert rows[4].absent == "could not be run: exited with status 1: no device"
    assert rows[5].absent == "no module no_such_module; no program no-such-program"


def test_a_reason_is_the_first_line_of_what_was_said(rows):
    assert rows[6].scores[0].reasons == {"ValueError: eps is too large": 2}


def board(rows: tuple[Row, ...]) -> Scoreboard:
    return Scoreboard(rows, "0", 1, "2000-01-01", "a CPU")


def test_it_can_be_rendered_again_from_its_json(rows, tmp_path):
    unbounded = Row("NaN", "a:B", "eager", scores=(Score("gelu", "float32", "forward", 0, 1, float("inf"), {"NaN": 1}),))
    made = board((*rows, unbounded))
    (tmp_path / "scores.json").write_text(as_json(made))
    assert read_json(tmp_path / "scores.json") == made


def test_the_pages_say_who_does_not_conform_and_escape_what_they_are_told(rows):
    markdown, html = as_markdown(board(rows)), as_html(board(rows))
    assert "| [WrongGradient](#wronggradient) | ✓ 2/2 · ✗ 0/2 |" in markdown
    assert r"dx is left out \<b\>\| (2)" in markdown
    assert "dx is left out &lt;b&gt;| (2)" in html
    assert "<b>" not in html
    assert "no module no" in markdown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no [[port]]"),
        ("[[port]]\ntitle = 'a'", "it needs a title, and a port or an exec"),
        ("[[port]]\ntitle = 'a'\nport = 'b'\nmode = 'fast'", "must be jit or eager"),
        ("[[port]]\ntitle = 'a'\nprot = 'b'", "no field 'prot'"),
        ("port = 3", "no [[port]]"),
        ("[[port]]\ntitle = 'a'\nport = 'b'\nneeds = 'torch'", "needs must be a list of strings"),
        ("[[port]]\ntitle = 1\nport = 'b'", "title must be a string"),
        ("[[port", "array declaration"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused_by_field(tmp_path, text, said):
    (tmp_path / "ports.toml").write_text(text)
    with pytest.raises(ScoreboardError) as refused:
        read_list(tmp_path / "ports.toml")
    assert said in str(refused.value)


def test_scores_that_are_none_are_refused(tmp_path):
    for text in ("[]", "{}", json.dumps({"format": 1}), "not json"):
        (tmp_path / "scores.json").write_text(text)
        with pytest.raises(ScoreboardError):
            read_json(tmp_path / "scores.json")


def test_the_command_renders_scores_without_running_anything(rows, tmp_path):
    (tmp_path / "scores.json").write_text(as_json(board(rows)))
    told = ["scoreboard", "--render", str(tmp_path / "scores.json"), "--out", str(tmp_path / "page.md")]
    told += ["--html", str(tmp_path / "page.html"), "--runs", str(tmp_path / "none")]
    assert CliRunner().invoke(app, told).exit_code == 0
    assert (tmp_path / "page.md").read_text() == as_markdown(board(rows))
    assert (tmp_path / "page.html").read_text() == as_html(board(rows))
    assert CliRunner().invoke(app, ["scoreboard", "--render", str(tmp_path / "none.json")]).exit_code == 2


def of_library(version: str, date: str, passed: int, judged: int = 4) -> Scoreboard:
    """A run in which a library of a version had so many cases right, in one op."""
    score = Score("rope", "float32", "forward", passed, judged, 1.0, {})
    return Scoreboard((Row("Library", "a:B", "eager", versions={"lib": version}, scores=(score,)),), "0", 0, date, "a CPU")


def test_what_changed_between_versions_is_told():
    first, same, later = of_library("1", "2000-01-01", 2), of_library("1", "2000-01-02", 4), of_library("2", "2000-01-03", 3)
    [change] = changes([first, same, later])
    assert (change.title, change.versions, change.date) == ("Library", "lib 1 → 2", "2000-01-03")
    assert change.summary == "rope float32 forward: 4/4 → 3/4"
    assert "| 2000-01-03 | Library | lib 1 → 2 | rope float32 forward: 4/4 → 3/4 |" in as_markdown(later, [change])
    assert "rope float32 forward: 4/4 → 3/4" in as_html(later, [change])


def test_counts_of_other_cases_are_compared_only_where_all_conformed_or_do():
    first = of_library("1", "2000-01-01", 2)
    assert changes([first, of_library("2", "2000-01-02", 3, 6)])[0].summary == "nothing"
    assert changes([first, of_library("2", "2000-01-02", 6, 6)])[0].summary == "rope float32 forward: 2/4 → 6/6"


def test_a_run_that_a_library_was_not_at_hand_in_is_passed_over():
    absent = Scoreboard((Row("Library", "a:B", "eager", absent="no module lib"),), "0", 0, "2000-01-02", "a CPU")
    [change] = changes([of_library("1", "2000-01-01", 2), absent, of_library("2", "2000-01-03", 3)])
    assert change.versions == "lib 1 → 2"


def test_the_page_is_that_of_the_runs_that_are_kept():
    root = Path(__file__).parents[2]
    runs = kept(root / "results" / "scoreboard")
    page = as_markdown(runs[-1], changes(runs))
    assert (root / "docs" / "scoreboard.md").read_text() == page, f"conformance scoreboard --render {runs[-1].date}.json"


def test_the_ports_that_are_listed_can_be_read():
    listed = read_list(Path(__file__).parents[2] / "ports" / "scoreboard.toml")
    assert len({each.title for each in listed}) == len(listed) >= 20
