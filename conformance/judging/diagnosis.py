"""What a diagnosis says: a mistake, and how well it explains a port's numbers."""

from dataclasses import dataclass

from conformance.judging.compare import Verdict
from conformance.mistakes.mistake import Mistake


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A mistake, and how well it explains a port's numbers for one op.

    Of the port's `failing` outputs it explains `outputs`, nearly all elements of each; they are outputs of the cases
    `explained`. `where` names the outputs that have the mistake, `right` those that it would have changed and that pass.
    `agreeing` counts the verdicts, of those `judged`, whose outputs of that kind lie within the mistake's own intervals,
    passing ones included. `residual` is the largest error left in the outputs explained, in units of the tolerance around the
    mistake's own values. `runner_up` is the next best mistake, and the number of these outputs that it explains, too.
    """

    mistake: Mistake
    explained: tuple[Verdict, ...]
    outputs: int
    failing: int
    agreeing: int
    judged: int
    residual: float
    where: tuple[str, ...]
    right: tuple[str, ...]
    runner_up: tuple[Mistake, int] | None
