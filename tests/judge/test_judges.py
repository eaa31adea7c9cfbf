"""The judges judged: the rules are what they say, and the page is what was found."""

from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest

from conformance.mistakes import MISTAKES
from conformance.ops.cases import select
from conformance.tools.judges.figures import FiguresError, as_json, read
from conformance.tools.judges.judge import Question, questions
from conformance.tools.judges.judges import JUDGES
from conformance.tools.judges.page import as_page
from conformance.tools.judges.picture import as_svg
from conformance.tools.judges.trial import KIT, trial
from tests.runner.test_readme import ROOT

FIGURES = ROOT / "results" / "judges.json"
BY_ID = {judge.id: judge for judge in JUDGES}
SAMPLE = (
    *(("eps_missing", "rms_norm", "float32"), ("other_order", "rms_norm", "float16")),
    *(("dweight_without_first_row", "layer_norm", "float32"), ("one_pass_variance", "layer_norm", "float32")),
)


@pytest.fixture(scope="module")
def figures():
    return read(FIGURES)


def of(name: str, output: str = "y") -> Question:
    [case] = select(name)
    return next(question for question in questions(case) if question.output == output)


def test_the_page_and_the_picture_are_made_of_the_figures(figures):
    assert (ROOT / "docs/judges.md").read_text(encoding="utf-8") == as_page(figures, "judges.svg")
    assert (ROOT / "docs/judges.svg").read_text(encoding="utf-8") == as_svg(figures)


def test_the_figures_are_read_as_they_were_written(figures, tmp_path):
    assert as_json(figures) == FIGURES.read_text(encoding="utf-8")
    (tmp_path / "other.json").write_text('{"format": 1, "trials": [{}]}')
    with pytest.raises(FiguresError, match=r"other\.json"):
        read(tmp_path / "other.json")


@pytest.mark.parametrize(("id_", "op", "dtype"), SAMPLE)
def test_a_sample_of_the_figures_is_found_again(figures, id_, op, dtype):
    [mistake] = [mistake for mistake in MISTAKES if mistake.id == id_]
    [kept] = [each for each in figures.trials if (each.mistake, each.op, each.dtype) == (id_, op, dtype)]
    assert trial(mistake, op, dtype) == kept


def test_the_kit_accuses_nobody(figures):
    assert figures.rejected(KIT, "ours").part == 0
    assert figures.rejected(KIT, "ours").whole > 10_000


@pytest.mark.parametrize("judge", JUDGES, ids=lambda judge: judge.id)
def test_a_judge_lets_the_exact_answer_pass_and_no_zeros(judge):
    question = of("rms_norm/either_order/float32/random")
    exact = question.expected.nearest
    assert judge.passes(question, exact)
    assert not judge.passes(question, np.zeros_like(exact))
    assert not judge.passes(question, exact.astype(np.float64))
    assert not judge.passes(question, np.where(np.arange(exact.shape[-1]) == 3, np.float32(np.nan), exact))


@pytest.mark.parametrize("judge", JUDGES, ids=lambda judge: judge.id)
def test_a_judge_lets_the_exact_answer_pass_on_its_own_inputs(judge):
    for case in judge.own:
        for question in questions(case):
            if judge.asks(question):
                assert judge.passes(question, question.expected.nearest), question


def test_a_tolerance_is_that_of_numpy():
    question = of("layer_norm/either_order/float32/random")
    exact = question.expected.nearest
    for factor in (1 + 1e-6, 1 + 5e-6, 1 + 2e-4, 1.02):
        off = (exact * np.float32(factor)).astype(np.float32)
        assert BY_ID["torch_testing"].passes(question, off) == np.allclose(off, exact, rtol=1.3e-6, atol=1e-5)
        assert BY_ID["kernelbench"].passes(question, off) == np.allclose(off, exact, rtol=1e-4, atol=1e-4)


def test_tosa_sees_a_bias_that_no_element_shows():
    question = of("rms_norm/either_order/float32/width_127")
    exact = question.expected.nearest
    up = np.nextafter(exact, np.float32(np.inf))
    both = np.where(np.arange(exact.size).reshape(exact.shape) % 2, up, np.nextafter(exact, np.float32(-np.inf)))
    assert np.all(question.expected.admits(up.astype(np.float64)))
    assert not BY_ID["tosa"].passes(question, up)
    assert BY_ID["tosa"].passes(question, both)


def test_the_picture_has_a_point_for_every_judge(figures):
    picture = ElementTree.fromstring(as_svg(figures))
    points = [each for each in picture.iter("{http://www.w3.org/2000/svg}circle") if each.get("class") == "point"]
    assert len(points) == len(JUDGES)
    numbers = {each.text: each for each in picture.iter("{http://www.w3.org/2000/svg}text") if each.get("class") == "middle"}
    places = [complex(float(numbers[f"{n}"].get("x")), float(numbers[f"{n}"].get("y"))) for n in range(1, len(JUDGES) + 1)]
    assert min(abs(a - b) for a, b in combinations(places, 2)) > 10  # no number stands on another
    assert "prefers-color-scheme: dark" in as_svg(figures)
