"""Where a failing block parts from the golden, in words: the stage, judged on what it was fed, and how errors grow."""

from conformance.block.cases import BlockCase
from conformance.block.taps import TAP
from conformance.compare import Verdict


def where(verdict: Verdict) -> str:
    """The stage at fault, in words; empty where there are no stages to speak of."""
    if not isinstance(verdict.case, BlockCase) or not verdict.case.is_block:
        return ""
    if not verdict.taps:
        return "not known: the port exports no intermediates"
    if at := verdict.parts_at:
        wrong = sum(not tap.passes for tap in verdict.taps)
        alone = "" if wrong == 1 else f"; {wrong} stages do"
        return f"{at.output.removeprefix(TAP)}, the first stage that is not what its inputs make of it{alone}"
    gradients = [output.output for output in verdict.outputs if not output.passes and output.output.startswith("d")]
    if gradients:
        return f"the backward pass: every stage is right forward; going back, {gradients[-1]} is the first gradient to leave"
    return "between the stages: each is right for what it was fed"


def growth(verdict: Verdict) -> str:
    """Every stage's error as it has grown so far; of a stack, the layers', and the stages of the one that parts."""
    stages = {tap.output.removeprefix(TAP): tap.growth for tap in verdict.taps}
    if verdict.case.op == "pre_ln_stack":
        layer = verdict.parts_at.output.removeprefix(TAP).partition(".")[0] if verdict.parts_at else None
        stages = {name: error for name, error in stages.items() if name.endswith(".out") or name.partition(".")[0] == layer}
    return ", ".join(f"{name} {error:.2g}" for name, error in stages.items())
