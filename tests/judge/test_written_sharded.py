"""What goes wrong where arrays are split over devices is rejected, by the numbers of real devices, and has its name or none."""

import pytest

from conformance.judging.compare import compare
from conformance.judging.diagnose import diagnose
from conformance.judging.simulation import STYLES, play
from conformance.ops.cases import select
from conformance.ops.golden import golden
from tests.judge.written.fault import judged
from tests.judge.written.jax_sharded import FAULTS, HONEST

# Of 40 rows a device has 10. What has no name here has none in the catalogue of one device's mistakes.
NAMED = {
    "jax/rms_dweight_of_own_rows": ["dweight_without_rows_10_to_39"],
    "jax/rms_dweight_averaged": ["dweight_times_0.25"],
    "jax/rms_dweight_summed_twice": ["dweight_times_4"],
    "jax/rms_eps_on_every_device": ["eps_of_4e-05"],
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
    assert [diagnosis.mistake.id for diagnosis in diagnose(verdicts, seed=0)] == NAMED.get(fault.id, [])


def test_what_passes_with_whole_arrays_does_not_hide_the_name():
    """Split arrays are run by code of their own: a factor that whole ones do not have is theirs all the same."""
    [fault] = [fault for fault in FAULTS if fault.id == "jax/rms_dweight_summed_twice"]
    whole = [case for case in select(op="rms_norm", dtype="float32") if case.has_fixture and case.dialect.is_plain][:8]
    passing = [compare("port", golden(case, 0), play(case, 0, STYLES[0]), tuple(case.outputs)) for case in whole]
    assert {verdict.status for verdict in passing} == {"pass"}
    [diagnosis] = diagnose([*passing, *judged(fault, "float32")], seed=0)
    assert diagnosis.mistake.id == "dweight_times_4"
