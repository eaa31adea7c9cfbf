"""What an op says of itself holds for every case of it, and for what a port's author reads."""

import re

import pytest

from conformance.ops.golden import golden
from conformance.ops.table import OPS
from conformance.port import Port
from conformance.port.session import call_of

each = pytest.mark.parametrize("op", OPS.values(), ids=OPS)


def some(op):
    """A case of every kind and dtype, and those that differ in the tensors they have."""
    return {(case.id.rpartition("/")[0], *golden(case).inputs): case for case in op.cases if case.has_fixture}.values()


@each
def test_its_cases_have_its_tensors(op):
    for case in some(op):
        given = golden(case).inputs.keys() - set(op.cotangents)
        known = {tensor.name for tensor in op.tensors}
        assert {name for name in given if "." not in name} <= known  # a parameter has its layer's name before its own
        assert "parameters" in known or not any("." in name for name in given)
        assert {tensor.name for tensor in op.tensors[:1]} <= given


@each
def test_its_cases_ask_for_its_outputs_and_for_the_gradients_of_what_is_differentiable(op):
    for case in some(op):
        assert case.made == tuple(output.name for output in op.outputs if output.name in case.made)
        assert case.made[0] == op.outputs[0].name
        assert [case.outputs[output.name] for output in case.returned] == [output.dtype(case) for output in case.returned]
        given = golden(case).inputs.keys() - set(op.cotangents)
        fixed = {tensor.name for tensor in op.tensors if not tensor.differentiable}
        assert case.outputs.keys() - set(case.made) == {f"d{name}" for name in given - fixed}


@each
def test_its_cases_have_its_constants(op):
    known = {constant.name for constant in op.constants}
    required = {constant.name for constant in op.constants if not (constant.offered or constant.sometimes)}
    for case in some(op):
        assert case.settings.keys() <= known
        assert required - {"eps"} <= case.settings.keys()


class Called(Exception):
    """A method was called as its author wrote it."""


class Forward(Port):
    """A port that only evaluates."""

    def vjp(self, function, inputs, dy, constants):
        return self.evaluate(function, inputs, constants), ()


@each
def test_a_method_with_its_signature_takes_whatever_it_is_called_with(op):
    """As the skeleton writes it: none of what a port is passed is unexpected, and all that has no default is passed."""
    methods: dict = {"Called": Called}
    exec(f"def {op.signature}: raise Called", methods)
    port = type("Written", (Forward,), {op.name: methods[op.name]})()
    for case in some(op):
        given = dict(golden(case).inputs)
        call = call_of(case, tuple(case.outputs), given, taps=False)
        if not (case.weight_offset or ("group_size" in case.settings and "group_size" not in op.signature)):
            with pytest.raises(Called):
                port.run(call, given)


@each
def test_the_base_port_says_how_it_is_called(op):
    [said] = re.findall(rf"^ +{op.name}\((.*?)\) ->", Port.__doc__ or "", re.MULTILINE)
    names = [name.strip() for name in said.split(",") if name.strip() != "*"]
    keywords = [tensor.name for tensor in op.tensors if tensor.by_name]
    said_of = [constant.name for constant in op.constants if not constant.offered or constant.name in ("sum", "y")]
    assert names == [*op.arguments, *keywords, *said_of]
