"""What goes wrong where arrays are split over devices is rejected, by the numbers of real devices, and has its name."""

import pytest

from conformance.judging.compare import compare
from conformance.judging.diagnose import diagnose
from conformance.judging.simulation import STYLES, play
from conformance.ops.cases import select
from conformance.ops.golden import golden
from tests.judge.written.fault import judged
from tests.judge.written.jax_sharded import FAULTS, HONEST

NAMED = {
    "jax/rms_dweight_of_own_rows": "dweight_of_own_rows",
    "jax/rms_dweight_averaged": "dweight_averaged",
    "jax/rms_dweight_summed_twice": "dweight_reduced_twice",
    "jax/rms_dweight_summed_in_half_precision": "dweight_rounded_and_reduced",
    "jax/rms_statistics_of_own_features": "statistics_and_dx_of_own_features",
    "jax/rms_mean_of_rstds": "mean_of_rstds_of_features",
    "jax/rms_over_own_width": "statistics_over_own_number_of_features",
    "jax/rms_dx_of_own_features": "dx_of_own_features",
    "jax/rms_eps_on_every_device": "eps_of_every_device_over_features",
}


@pytest.mark.parametrize("fault", HONEST, ids=lambda fault: fault.id)
def test_what_is_summed_over_the_devices_passes(fault):
    assert {verdict.status for verdict in judged(fault, "bfloat16")} == {"pass"}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_what_is_not_is_rejected_and_not_misnamed(fault):
    verdicts = judged(fault, "float32" if "float32" in fault.dtypes else "bfloat16")
    assert {verdict.status for verdict in verdicts} == {"fail"}
    wrong = {output.output for verdict in verdicts for output in verdict.judged if not output.passes}
    assert "y" not in wrong if fault.group == "backward" else "y" in wrong
    assert [diagnosis.mistake.id for diagnosis in diagnose(verdicts, seed=0)] == [NAMED[fault.id]]


def test_what_passes_with_whole_arrays_does_not_hide_the_name():
    """Split arrays are run by code of their own: a factor that whole ones do not have is theirs all the same."""
    [fault] = [fault for fault in FAULTS if fault.id == "jax/rms_dweight_summed_twice"]
    whole = [case for case in select(op="rms_norm", dtype="float32") if case.has_fixture and case.dialect.is_plain][:8]
    passing = [compare("port", golden(case, 0), play(case, 0, STYLES[0]), tuple(case.outputs)) for case in whole]
    assert {verdict.status for verdict in passing} == {"pass"}
    [diagnosis] = diagnose([*passing, *judged(fault, "float32")], seed=0)
    assert diagnosis.mistake.sentence == "dweight is reduced over the devices twice: times 4"
