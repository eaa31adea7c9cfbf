"""Where a failing block parts from the golden, in words: the stage, judged on what it was fed."""

from conformance.judging.compare import Verdict
from conformance.ops.block.taps import TAP
from conformance.ops.table import OPS


def where(verdict: Verdict) -> str:
    """The stage at fault, in words; empty where there are no stages to speak of."""
    if not OPS[verdict.case.op].taps:
        return ""
    if not verdict.taps:
        return "not known: the port exports no intermediates"
    if at := verdict.parts_at:
        wrong = sum(not tap.passes for tap in verdict.taps)
        alone = "" if wrong == 1 else f"; {wrong} stages do"
        return f"{at.output.removeprefix(TAP)}, the first stage that is not what its inputs make of it{alone}"
    gradients = [output.output for output in verdict.outputs if not output.passes and output.output not in verdict.case.made]
    if gradients:
        return f"the backward pass: every stage is right forward; going back, {gradients[-1]} is the first gradient to leave"
    return "between the stages: each is right for what it was fed"
