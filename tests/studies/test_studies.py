"""The studies' foundation: figures come from a run, verdicts and pages from the figures, and from nothing else."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from studies.drawing import write_picture
from studies.figures import FiguresError, gather, read_figures, short, write_figures
from studies.page import as_index, as_page
from studies.study import NAMES, Claim, Finding, Verdict, load, question

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "studies"


def committed(name):
    return read_figures(PAGES / f"{name}.json")


SEEDED = {  # a set-up of each study whose outcome depends on what was drawn
    "depth": {},
    "dialect": {"subject": "normal weights", "dtype": "bfloat16"},
    "eps": {"dtype": "bfloat16", "statistics": "in x's dtype", "scale": 1.0},
    "nan": {"remedy": "Xavier"},
    "norms": {"asked": "output"},
    "placement": {"model": "Post-LN", "layers": 3},
}


def run(*arguments):
    process = [sys.executable, "-m", "studies", *arguments]
    return subprocess.run(process, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def test_list_says_what_each_asks_and_loads_no_framework():
    result = run("list")
    assert result.returncode == 0
    assert [line.split(maxsplit=1) for line in result.stdout.splitlines()] == [[name, question(name)] for name in NAMES]
    assert all(question(name).endswith("?") for name in NAMES)
    code = "import sys, studies.__main__ as m; m.main('list'); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert {"torch", "jax", "matplotlib"} & set(result.stdout.split()) == set()


def test_a_study_that_is_none_is_wrong_usage_and_the_error_names_those_there_are():
    result = run("nonesuch")
    assert result.returncode == 2
    assert all(name in result.stderr for name in NAMES)


def test_a_quick_run_writes_all_there_is(tmp_path):
    result = run("eps", "--quick", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "eps.json", "eps.md", "eps.png", "eps.svg"}
    assert read_figures(tmp_path / "eps.json").quick
    assert "A quick run" in (tmp_path / "eps.md").read_text()
    for claim in load("eps").claims:
        assert claim.text in " ".join(result.stdout.split())
    again = run("eps", "--render", "--out", str(tmp_path))
    assert again.stdout == result.stdout


def test_nothing_to_render_is_said_in_words(tmp_path):
    result = run("eps", "--render", "--out", str(tmp_path))
    assert result.returncode == 2
    assert "python -m studies eps" in " ".join(result.stderr.replace("│", "").split())


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_page_is_what_the_committed_figures_say(name):
    figures = committed(name)
    assert not figures.quick
    assert (PAGES / f"{name}.md").read_text(encoding="utf-8") == as_page(load(name), figures)


def test_the_committed_index_has_every_claim():
    judged = [(load(name), committed(name)) for name in NAMES]
    assert (PAGES / "README.md").read_text(encoding="utf-8") == as_index(judged)


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_figures_are_of_every_set_up(name):
    """None is left out, and none is there twice."""
    figures, setups = committed(name), load(name).setups(False)
    known = list(asdict(setups[0]))
    assert [{column: row[column] for column in known} for row in figures.rows] == [asdict(setup) for setup in setups]


@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run_asks_less_of_the_same(name):
    study = load(name)
    quick, full = study.setups(True), study.setups(False)
    assert len(quick) < len(full)
    assert [*asdict(quick[0])] == [*asdict(full[0])]


@pytest.mark.parametrize("name", NAMES)
def test_a_set_up_is_seeded(name):
    study = load(name)
    setup = next(setup for setup in study.setups(True) if SEEDED[name].items() <= asdict(setup).items())
    assert study.measure(setup) == study.measure(setup)
    assert study.measure(setup) != study.measure(replace(setup, seed=setup.seed + 1))


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_read_as_they_were_written(name, tmp_path):
    write_figures(tmp_path / "figures.json", committed(name))
    assert read_figures(tmp_path / "figures.json") == committed(name)
    document = json.loads((tmp_path / "figures.json").read_text())
    assert document["repeats"] == len(document["seeds"]) > 1
    assert document["versions"]
    assert document["machine"]


def test_figures_of_another_format_are_refused(tmp_path):
    (tmp_path / "eps.json").write_text('{"format": 2}')
    with pytest.raises(FiguresError, match=r"eps\.json: field format is 2.*python -m studies eps"):
        read_figures(tmp_path / "eps.json")


def test_an_undocumented_column_is_refused():
    with pytest.raises(FiguresError, match="documented are seed"):
        gather("eps", True, {"seed": "which"}, [{"seed": 0, "other": 1}], 1.0)


def test_a_number_that_json_lacks_is_not_written(tmp_path):
    figures = committed("eps")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_figures(tmp_path / "x.json", replace(figures, rows=({"seed": float("nan")},)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_without_figures_there_is_no_verdict(name):
    empty = replace(committed(name), rows=())
    for claim in load(name).claims:
        with pytest.raises(FiguresError, match="no figures"):
            claim.verdict(empty)


@pytest.mark.parametrize(
    ("held", "word"), [([True], "holds"), ([True, False], "holds in part"), ([False, False], "does not hold")]
)
def test_a_verdict_follows_from_its_findings(held, word):
    verdict = Claim("a claim", lambda figures: [Finding(each, "a figure") for each in held]).verdict(committed("eps"))
    assert verdict == Verdict(tuple(Finding(each, "a figure") for each in held))
    assert verdict.word == word


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_labelled_and_the_same_figures_give_the_same_files(name, tmp_path):
    figures = committed(name)
    for folder in ("a", "b"):
        drawn = load(name).draw(figures)
        write_picture(tmp_path / folder / name, drawn)
    assert drawn.legends
    assert all(ax.get_xlabel() for ax in drawn.axes if ax.get_subplotspec().is_last_row())
    assert all(ax.get_title(loc="left") for ax in drawn.axes)
    for kind in ("png", "svg"):
        a, b = ((tmp_path / folder / f"{name}.{kind}").read_bytes() for folder in "ab")
        assert a == b
    assert (tmp_path / "a" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(tmp_path / "a" / f"{name}.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"),
        (1e-8, "1e-8"),
        (0.01634, "0.0163"),
        (1.0, "1"),
        (1234.0, "1230"),
        (1.33e11, "1.33e11"),
        (-2e-5, "-2e-5"),
        (float("nan"), "nan"),
    ],
)
def test_a_number_is_short(number, text):
    assert short(number) == text
