"""A mistake that is made is the mistake that is named."""

import numpy as np
import pytest

from conformance.cases import CASES
from conformance.compare import compare
from conformance.diagnose import diagnose
from conformance.golden import golden
from conformance.mistakes import MISTAKES
from conformance.rounding import store

MADE = (
    "eps_outside_root",
    "eps_1e-06",
    "divides_by_n_minus_1",
    "layer_norm_for_rms_norm",
    "other_order",
    "offset_missing",
    "weight_in_storage_dtype",
    "bias_scaled",
    "projection_missing",
    "shift_missing",
    "dweight_without_last_row",
)


@pytest.mark.parametrize("backward", ["autograd", "formula"])
@pytest.mark.parametrize("mistake", [mistake for mistake in MISTAKES if mistake.id in MADE], ids=lambda mistake: mistake.id)
def test_a_mistake_made_with_honest_noise_is_named_first(mistake, backward):
    verdicts = _verdicts(mistake.ops[-1], lambda case: mistake.outputs(case, 0, backward))
    first = diagnose(verdicts, seed=0)[0]
    assert first.mistake.id == mistake.id
    assert len(first.explained) > 0.9 * sum(verdict.status == "fail" for verdict in verdicts)


def test_two_mistakes_in_two_dtypes_are_both_named():
    by_id = {mistake.id: mistake for mistake in MISTAKES}
    made = {"float32": by_id["eps_missing"], "bfloat16": by_id["weight_missing"]}
    verdicts = _verdicts("rms_norm", lambda case: made[case.dtype].outputs(case))
    assert {diagnosis.mistake.id for diagnosis in diagnose(verdicts, seed=0)} == {"eps_missing", "weight_missing"}


def test_nothing_is_named_where_nothing_fails():
    assert diagnose(_verdicts("rms_norm", lambda case: golden(case).outputs), seed=0) == ()


def test_nothing_is_named_that_no_mistake_explains():
    def garbled(case):
        outputs = dict(golden(case).outputs)
        return {
            name: type(output)(output.value[..., ::-1] + 0.5, output.dtype, output.placements)
            for name, output in outputs.items()
        }

    verdicts = _verdicts("rms_norm", garbled, noise=None)
    assert all(verdict.status == "fail" for verdict in verdicts)
    assert diagnose(verdicts, seed=0) == ()


def _verdicts(op, outputs, noise=0.5):
    """A port's verdicts on small cases: its exact values off by a share of what the altered interval admits."""
    rng = np.random.default_rng(0)
    verdicts = []
    for case in CASES:
        if case.op != op or case.dtype not in ("float32", "bfloat16") or not case.has_fixture:
            continue
        made = {}
        for name, output in outputs(case).items():
            value = np.broadcast_to(output.value, golden(case).outputs[name].value.shape)
            if noise is None:
                made[name] = store(value, output.dtype)
                continue
            lower, upper = output.interval(noise)
            made[name] = store(np.where(rng.random(value.shape) < 0.5, lower, upper), output.dtype)
        verdicts.append(compare("port", golden(case), made, tuple(case.outputs)))
    return tuple(verdicts)
