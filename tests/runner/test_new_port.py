"""A newcomer's first hour: the port that `new` writes, what a run of it says, and the methods that it may do without."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from conformance.cli import app
from conformance.ops.cases import select
from conformance.ops.op import Output, Tensor
from conformance.ops.table import OPS
from conformance.port import NOT_WRITTEN, Port, Skip
from conformance.port.launch import Launch
from conformance.port.protocol import Call
from conformance.running.runner import run_ports

ROOT = Path(__file__).parents[2]
RMS_NORM = """        x_hat = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + x.dtype.type(eps))
        return x_hat if weight is None else x_hat * weight
"""
STUB = f'        raise port.Skip("{NOT_WRITTEN}")\n'


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)


def conformance(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, " ".join(result.output.replace("│", " ").split())


def test_what_is_written_runs_and_says_what_to_write_next():
    status, output = conformance("new", "mine")
    assert status == 0
    assert "conformance run mine_port.py --op rms_norm" in output
    status, output = conformance("run", "mine_port.py", "--case", "*/float32/random")
    assert status == 3
    assert f"{NOT_WRITTEN} (" in output
    assert "no op add_rms_norm, add_layer_norm, gated_rms_norm, batch_norm, rope, attention" in output
    assert "nothing to judge yet: " in output
    assert output.endswith("next: write rms_norm, then conformance run mine_port.py --op rms_norm")


def test_the_ops_of_a_block_are_written_if_they_are_asked_for():
    conformance("new", "mine", "--block")
    _, output = conformance("run", "mine_port.py", "--op", "gelu", "--dtype", "float32")
    assert "no op" not in output
    assert output.endswith("next: write gelu, then conformance run mine_port.py --op gelu")


@pytest.mark.parametrize("options", [[], ["--block"], ["--triton"]], ids=["norms", "block", "triton"])
def test_what_is_written_is_clean(options):
    conformance("new", "mine", *options)
    ruff = [Path(sys.executable).with_name("ruff")]
    for settings in (["--isolated"], ["--config", str(ROOT / "pyproject.toml")]):
        subprocess.run([*ruff, "format", "--check", *settings, "mine_port.py"], check=True, capture_output=True)
        subprocess.run([*ruff, "check", *settings, "mine_port.py"], check=True, capture_output=True)


def test_a_port_is_never_overwritten():
    Path("mine_port.py").write_text("mine")
    for name in ("mine", "mine_port"):
        status, output = conformance("new", name)
        assert status == 2
        assert "mine_port.py is there already, and is left as it is" in output
    assert Path("mine_port.py").read_text() == "mine"
    assert conformance("new", "some/where")[0] == 2


def test_one_op_is_enough_and_the_next_step_is_the_dialect():
    """In half precision nothing is asked before the port has said on which side of the weight it casts."""
    conformance("new", "mine")
    Path("mine_port.py").write_text(Path("mine_port.py").read_text().replace(STUB, RMS_NORM, 1))
    status, output = conformance("run", "mine_port.py", "--op", "rms_norm", "--case", "*/random")
    assert status == 0
    assert "no order cast_then_scale" in output
    assert "mine_port.py has no gradients: y alone was judged" in output
    assert output.endswith("next: conformance identify mine_port.py, and say in `orders` which side of the weight it casts on")
    status, output = conformance("identify", "mine_port.py", "--op", "rms_norm")
    assert "scale_then_cast, every step in x's dtype" in output
    declared = Path("mine_port.py").read_text().replace("    # orders = ", "    orders = ")
    Path("mine_port.py").write_text(declared)
    status, output = conformance("run", "mine_port.py", "--case", "*/bfloat16/random")
    assert status == 1
    assert output.endswith("next: write layer_norm, then conformance run mine_port.py --op layer_norm")


def test_ports_that_are_installed_are_listed(monkeypatch):
    for name, module in (("there", "there.port"), ("gone", "gone.ports.norms")):
        folder = Path(f"{name}_ports-1.2.dist-info")
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-ports\nVersion: 1.2\n")
        (folder / "entry_points.txt").write_text(f"[conformance.ports]\n{name} = {module}:Port\n")
    Path("there").mkdir()
    Path("there/port.py").write_text("")
    monkeypatch.syspath_prepend(".")
    listed = CliRunner().invoke(app, ["list", "ports"]).output.splitlines()
    assert [line.split()[0] for line in listed] == ["impl_torch", "impl_jax", "gone", "there"]
    assert listed[2:] == ["gone        needs gone, from gone-ports 1.2", "there       ready, from there-ports 1.2"]


# What a port may leave out.


class Shortest(Port):
    """No conversions, no layouts, no order and no offset; gradients by the one hook."""

    dtypes = ("float32",)

    def rms_norm(self, x, weight, *, eps):
        x_hat = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + x.dtype.type(eps))
        return x_hat if weight is None else x_hat * weight

    def gradients(self, function, tensors, dy):
        x, *weight = tensors
        y = function(*tensors)
        rstd = 1 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(1e-5))
        g = dy * weight[0] if weight else dy
        dx = rstd * (g - x * rstd * np.mean(g * x * rstd, axis=-1, keepdims=True))
        return y, [dx, *((dy * x * rstd).reshape(-1, x.shape[-1]).sum(axis=0) for _ in weight)]


class Offset(Shortest):
    def rms_norm(self, x, weight, *, eps, weight_offset=0.0, **constants):
        return super().rms_norm(x, None if weight is None else weight + np.float32(weight_offset), eps=eps)

    def layer_norm(self, x, weight, bias, *, eps):
        return x


def test_a_short_port_is_judged_with_gradients_and_layouts(monkeypatch):
    monkeypatch.chdir(ROOT)
    spec = "tests.runner.test_new_port:Shortest"
    names = ("random", "no_weight", "sliced", "permuted", "strided", "expanded")
    cases = [case for name in names for case in select(f"rms_norm/either_order/float32/{name}")]
    [run] = run_ports([Launch(spec)], cases)
    assert [verdict.status for verdict in run.verdicts] == ["pass"] * len(names), run
    assert {output.output for output in run.verdicts[0].outputs} == {"y", "dx", "dweight"}


def test_what_a_port_says_of_itself_follows_from_its_methods():
    assert (Shortest().hello().orders, Shortest().hello().weight_offsets) == ((), (0,))
    assert Shortest().hello().gradients
    assert Offset().hello().weight_offsets == (0, 1)
    assert Offset().hello().orders == ("cast_then_scale", "scale_then_cast")  # constants may be anything

    class Told(Shortest):
        orders, weight_offsets = ("scale_then_cast",), (1,)
        gradients = Port.gradients

    assert (Told().hello().orders, Told().hello().weight_offsets) == (("scale_then_cast",), (1,))
    assert not Told().hello().gradients

    class ByDtype(Shortest):
        orders = {"*/bfloat16": ("scale_then_cast",)}  # noqa: RUF012

    assert (ByDtype().hello().orders, ByDtype().hello().orders_by) == ((), {"*/bfloat16": ("scale_then_cast",)})


def test_an_offset_that_a_norm_does_not_take_is_skipped():
    x = np.ones((2, 3), np.float32)
    call = Call(1, "layer_norm/…", "layer_norm", "float32", "either_order", 1, 1e-5, "contiguous", ("y",), (), (), "", "")
    with pytest.raises(Skip, match="no weight offset 1"):
        Offset().run(call, {"x": x})


class Triples(Port):
    """Two outputs, each of which may be given a cotangent; the gradients by differences, which are exact here."""

    def add_and_triple(self, x, residual):
        return 3 * (x + residual), x + residual

    def gradients(self, function, tensors, dy):
        def product(*tensors):
            y = function(*tensors)
            return sum(map(np.vdot, y, dy)) if isinstance(y, tuple) else np.vdot(y, dy)

        def gradient(place):
            moved = ([each + unit * (at == place) for at, each in enumerate(tensors)] for unit in np.eye(tensors[0].size))
            return np.array([product(*each) - product(*tensors) for each in moved])

        return function(*tensors), [gradient(place) for place in range(len(tensors))]


@pytest.mark.parametrize("cotangents", [("dy",), ("dresidual_out",), ("dy", "dresidual_out")], ids=" and ".join)
def test_gradients_add_up_over_the_outputs_whose_cotangent_is_there(cotangents, monkeypatch):
    outputs = Output("y"), Output("residual_out"), Output("unused", cotangent=False)
    tensors = Tensor("x"), Tensor("residual")
    monkeypatch.setitem(OPS, "add_and_triple", replace(OPS["gelu"], tensors=tensors, outputs=outputs, constants=()))
    dys = {"dy": np.array([1.0, 4.0]), "dresidual_out": np.array([8.0, 2.0])}
    given = {"x": np.array([1.0, 2.0]), "residual": np.array([3.0, 5.0])} | {name: dys[name] for name in cotangents}
    asked, gradients = ("y", "residual_out", "dx", "dresidual"), ("dx", "dresidual")
    call = Call(1, "…", "add_and_triple", "float64", "either_order", 0, 0.0, "contiguous", asked, gradients, cotangents, "", "")
    answer = Triples().answer(call, given)
    expected = sum({"dy": 3, "dresidual_out": 1}[name] * dys[name] for name in cotangents)
    assert list(answer.outputs) == list(asked)
    np.testing.assert_array_equal(answer.outputs["y"], [12.0, 21.0])
    np.testing.assert_array_equal(answer.outputs["residual_out"], [4.0, 7.0])
    for name in gradients:
        np.testing.assert_array_equal(answer.outputs[name], expected)


def test_gradients_are_put_back_where_their_tensors_were():
    """An absent tensor has none, and those of a block's parameters go by name."""

    class Sums(Port):
        def gradients(self, function, tensors, dy):
            return function(*tensors), [10 * tensor for tensor in tensors]

    def function(x, parameters, cache, *, scale):
        assert cache is None
        return scale * (x + parameters["a"] + parameters["b"])

    y, gradients = Sums().vjp(function, (1.0, {"a": 2.0, "b": 3.0}, None), 1.0, {"scale": 2.0})
    assert (y, gradients) == (12.0, (10.0, {"a": 20.0, "b": 30.0}, None))
