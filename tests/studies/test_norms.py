"""The study `norms`: its clockwork and its bytes against what is known by hand, its verdicts against altered figures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from impl_torch import PreLNStack
from reference import layer_norm, rms_norm
from studies.figures import read_figures
from studies.norms import contenders as names
from studies.norms.claims import CLAIMS, RMS_NORMS, judged, saving, timed
from studies.norms.contenders import CONTENDERS, EPS
from studies.norms.measure import PAIRS, Setup, measure, setups
from studies.norms.memory import held_bytes, most_allocated, peak_bytes
from studies.norms.minimind import CONFIG, Model
from studies.norms.step import Step, layer_step, model_step
from studies.norms.study import tables
from studies.norms.turns import PHASES, take_turns
from studies.study import load

FIGURES = read_figures(Path(__file__).parents[2] / "docs" / "studies" / "norms.json")
FORWARD, BACKWARD, TRAINING, MEMORY, ROOT, PARAMETERS, CENTRED, ENOUGH, BATCH_NORM = CLAIMS
CPU = torch.device("cpu")
SAVED = "saves what is claimed"


def altered(change, **wanted):
    """The figures with other values in some rows."""
    rows = [
        {**row, **change(row)} if all(row[name] == value for name, value in wanted.items()) else row for row in FIGURES.rows
    ]
    return replace(FIGURES, rows=tuple(rows))


def held(verdict):
    return [finding.holds for finding in verdict.findings]


@pytest.mark.parametrize("name", [name for name in CONTENDERS if "alone" not in name and name != names.NONE])
def test_a_contender_computes_what_it_is_called(name):
    torch.manual_seed(0)
    x = torch.randn(3, 5, 16, dtype=torch.float64) * 2 + 1
    y = CONTENDERS[name](16)(x.float()).detach().double().numpy()
    rows = x.numpy().reshape(15, 16)
    if name == names.BATCH_NORM:
        expected = layer_norm(rows.T, eps=EPS).y.T
    else:
        expected = (layer_norm if name.startswith("LayerNorm") else rms_norm)(rows, eps=EPS).y
    assert y.reshape(15, 16) == pytest.approx(expected, abs=1e-5)


def test_the_roots_alone_are_one():
    x = torch.rand(100) + 0.1
    one, other = (CONTENDERS[name](1)(x) for name in (names.RSQRT_ALONE, names.ONE_OVER_ALONE))
    assert torch.allclose(one, other)
    assert torch.allclose(one**-2, x)


@pytest.mark.parametrize(("name", "norm"), [(names.TORCHS, "rms_norm"), (names.LAYER_NORM, "layer_norm")])
def test_the_model_is_the_stack_of_impl_torch(name, norm):
    """The same weights under other names, and the same outputs."""
    torch.manual_seed(0)
    model, tokens = Model(CONTENDERS[name], 2), torch.randint(6400, (2, 7))
    stack = PreLNStack(replace(CONFIG, norm=norm), 2)
    theirs = {key.replace("attention.", "").replace("feed_forward.", ""): value for key, value in stack.state_dict().items()}
    assert {f"blocks.{key}" for key in theirs} | {"embedding.weight"} == {
        key for key in model.state_dict() if not key.startswith("norm.")
    }
    model.load_state_dict({f"blocks.{key}": value for key, value in theirs.items()}, strict=False)
    with torch.no_grad():
        expected = model.norm(stack(model.embedding(tokens))) @ model.embedding.weight.T
        assert torch.allclose(model(tokens), expected, atol=1e-5)


class Clock:
    """Time that passes only where a step says so."""

    now = 0.0

    def __call__(self):
        return self.now

    def step(self, log, name, forward, backward, update):
        def passing(seconds):
            log.append(name)
            self.now += seconds() if callable(seconds) else seconds

        return Step(lambda: passing(forward), lambda y: passing(backward), lambda: passing(update), list)


def test_phases_are_told_apart_and_the_warm_up_is_not_counted():
    clock, log = Clock(), []
    slow_once = iter([1000.0, *[1.0] * 9])
    one, other = clock.step(log, "a", lambda: next(slow_once), 2.0, 4.0), clock.step(log, "b", 0.5, 0.25, 0.0)
    its, others = take_turns(one, other, 5, clock)
    assert its.tolist() == [[1000.0, 2000.0, 7000.0]] * 5
    assert others.tolist() == [[500.0, 250.0, 750.0]] * 5
    assert log[6::3] == list("abbaabbaab"), "each is the first of every other round"


def test_a_machine_that_slows_down_slows_both():
    """Steps that are alike, on a machine that takes 2 % longer with every one: ratios of neighbours hardly see it."""
    clock, log = Clock(), []

    def slower():
        return 1.02 ** (len(log) // 3)

    its, others = take_turns(*(clock.step(log, name, slower, slower, slower) for name in "ab"), 20, clock)
    assert np.median(its / others, axis=0) == pytest.approx(1, abs=0.021)
    assert its[-1, 0] > 2 * its[0, 0]


def test_the_peak_is_the_most_that_was_alive_at_once():
    def forward():
        a, b = torch.empty(1000), torch.empty(3000)
        del a
        return [b, torch.empty(500)]

    def backward(y):
        y.append(torch.empty(100))

    kept = torch.empty(7)
    step = Step(forward, backward, lambda: None, lambda: [kept, kept.view(7, 1)])
    assert held_bytes(step) == 28
    assert most_allocated(step) == 4 * 4000
    assert peak_bytes(step, CPU) == 4 * 4007


def test_a_layer_norm_holds_its_input_its_output_and_their_gradients():
    batch, width = (2, 128), CONFIG.d_model
    step = layer_step(names.LAYER_NORM, "eager", torch.float32, batch, CPU)
    tensor = 4 * 256 * width
    statistics, parameters = 4 * 2 * 256, 4 * 2 * width
    assert held_bytes(step) == 2 * tensor + parameters
    assert peak_bytes(step, CPU) == pytest.approx(4 * tensor + 2 * parameters + statistics, rel=0.01)
    formula = layer_step(names.NOTED, "eager", torch.float32, batch, CPU)
    assert peak_bytes(formula, CPU) > 6 * tensor, "autograd keeps what the steps of a formula make"


def test_a_model_holds_weights_and_both_moments():
    step = model_step(names.LAYER_NORM, "eager", 1, (1, 8), CPU)
    step()
    weights = 4 * sum(p.numel() for p in Model(CONTENDERS[names.LAYER_NORM], 1).parameters())
    assert held_bytes(step) == pytest.approx(3 * weights, rel=1e-3)
    assert most_allocated(step) > weights, "gradients"


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # looked at by the compiler itself
def test_what_is_compiled_is_compiled(monkeypatch):
    """torch.nn's own modules are not, where their `compile` is called; and a second model is not compiled again."""
    graphs, plain = [], torch.compile

    def backend(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: plain(*args, **kwargs, backend=backend))
    torch.compiler.reset()
    for name, function in {names.LAYER_NORM: "layer_norm", names.TORCHS: "rms_norm"}.items():
        layer_step(name, "compiled", torch.float32, (2, 4), CPU)()
        assert any(function in target for target in graphs.pop())
    for _ in range(2):
        model_step(names.TORCHS, "compiled", 2, (2, 4), CPU)()
    [block] = graphs
    assert sum("rms_norm" in target for target in block) == 2
    torch.compiler.reset()


def test_the_committed_figures_are_what_a_run_finds():
    """What depends on no clock; on a GPU memory is counted by other means."""
    for row in FIGURES.where(asked="output", seed=1) + FIGURES.where(asked="memory", subject="layer", mode="eager"):
        found = measure(Setup(*(row[name] for name in Setup.__dataclass_fields__)))
        if row["asked"] == "output":
            for name in ("row_mean", "row_std", "row_rms", "column_mean", "column_std"):
                assert found[name] == pytest.approx(row[name], abs=0.02)
        elif found["device"] == row["device"]:
            assert found["peak"] == pytest.approx(row["peak"], rel=0.01)
        assert found["parameters"] == row["parameters"]


def test_a_pair_is_timed_as_the_figures_have_it():
    [row, *_] = FIGURES.where(asked="time", subject="layer", mode="eager", dtype="float32", norm=names.RSQRT_ALONE)
    found = measure(Setup(*(row[name] for name in Setup.__dataclass_fields__)))
    assert all(0 < forward < step for forward, _, step in (found["ms"], found["against_ms"]))
    assert np.array(found["ms"]) / found["against_ms"] == pytest.approx(np.array(found["ratio"]), rel=0.5)
    assert row["ratio"][0] / 2 < found["ratio"][0] < row["ratio"][0] * 2, "one pass over memory instead of two"


def test_every_pair_has_its_layer_norm():
    assert RMS_NORMS.items() <= set(PAIRS)
    settings = timed(FIGURES, *RMS_NORMS.items())
    assert {(s["subject"], s["mode"], s["dtype"]) for s in settings} == {
        *(("layer", mode, dtype) for mode in ("eager", "compiled") for dtype in ("float32", "bfloat16")),
        *(("model", mode, "float32") for mode in ("eager", "compiled")),
    }
    quick = {(s.asked, s.subject, s.mode) for s in setups(True)}
    assert quick == {(s.asked, s.subject, s.mode) for s in setups(False)} - {
        ("time", "model", "compiled"),
        ("memory", "layer", "compiled"),
        ("memory", "model", "compiled"),
    }


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([0.9, 0.94], SAVED),
        ([0.9, 0.96], "saves less than claimed"),
        ([0.9, 1.01], "not told apart"),
        ([1.01, 1.2], "takes more"),
    ],
)
def test_a_saving_is_judged_by_its_worst_repeat(values, word):
    assert judged(np.array(values), 0.1) == word


@pytest.mark.parametrize(("claim", "phase"), [(FORWARD, 0), (BACKWARD, 1), (TRAINING, 2)])
def test_faster_is_faster_in_its_own_phase(claim, phase):
    noted = 1 - saving(PHASES[phase])

    def all_take(ratio, elsewhere=3.0):
        return altered(lambda row: {"ratio": [ratio if at == phase else elsewhere for at in range(3)]}, asked="time")

    assert claim.verdict(all_take(noted)).word == "holds"
    assert claim.verdict(all_take(0.99, elsewhere=0.1)).word == "does not hold"
    once = altered(lambda row: {"ratio": [1.001] * 3}, asked="time", subject="model", mode="eager", seed=3)
    assert not any(held(claim.verdict(once))[at] for at in _settings(claim, "model, eager"))
    assert f"{100 * saving(PHASES[phase]):.1f} %" in claim.text


def _settings(claim, which):
    return [at for at, finding in enumerate(claim.verdict(FIGURES).findings) if finding.figure.startswith(which)]


def test_memory_is_saved_only_where_the_peak_is_lower():
    def lighter(row):
        return {"peak": int(row["peak"] * (0.5 if row["norm"] in RMS_NORMS else 1))}

    def alike(row):
        return {"peak": 1000}

    assert MEMORY.verdict(altered(lighter, asked="memory", subject="model")).findings[-1].holds
    assert MEMORY.verdict(altered(alike, asked="memory")).word == "does not hold"
    assert len(MEMORY.verdict(FIGURES).findings) == 2 * 3 + 2 * 2


def test_a_root_is_judged_by_the_forward_pass():
    assert ROOT.verdict(altered(lambda row: {"ratio": [0.9, 5.0, 5.0]}, asked="time")).word == "holds"
    assert ROOT.verdict(altered(lambda row: {"ratio": [1.0, 0.1, 0.1]}, asked="time")).word == "does not hold"


def test_parameters_are_counted():
    assert PARAMETERS.verdict(FIGURES).word == "holds"
    assert PARAMETERS.verdict(altered(lambda row: {"parameters": 700})).word == "does not hold"


def test_centring_is_seen_in_the_means():
    assert CENTRED.verdict(FIGURES).word == "holds"
    for norm in RMS_NORMS:
        centring = altered(lambda row: {"row_mean": [0.0, 0.0]}, asked="output", norm=norm)
        assert held(CENTRED.verdict(centring)).count(False) == 1
    off = altered(lambda row: {"column_mean": [0.0, 0.2]}, asked="output", norm=names.BATCH_NORM, seed=2)
    assert held(CENTRED.verdict(off)).count(False) == 1


def test_what_no_norm_could_save_is_not_to_be_saved():
    free = altered(lambda row: {"ratio": [0.5] * 3}, norm=names.NONE)
    assert ENOUGH.verdict(free).word == "holds"
    assert ENOUGH.verdict(altered(lambda row: {"ratio": [1.0] * 3}, norm=names.NONE)).word == "does not hold"


def test_batch_norm_is_judged_by_its_step():
    assert BATCH_NORM.verdict(altered(lambda row: {"ratio": [2, 2, 0.9]}, norm=names.BATCH_NORM)).word == "holds"
    assert BATCH_NORM.verdict(altered(lambda row: {"ratio": [0.5, 0.5, 1.1]}, norm=names.BATCH_NORM)).word == "does not hold"


def test_the_page_says_where_it_was_measured():
    assert "cpu; no figure of a GPU among them" in tables(altered(lambda row: {"device": "cpu"}))[0].title
    on_gpu = tables(altered(lambda row: {"device": "NVIDIA H100"}))[0].title
    assert "NVIDIA H100" in on_gpu
    assert "no figure" not in on_gpu
    assert load("norms").method.count("its own\nCPU time") == 1
