"""The catalogue: a mistake is the golden with exactly one thing altered.

The altered golden has intervals of its own, made by the same budgets and placements as the true one's. So the catalogue
proves that the kit rejects what people really do, and it is the dictionary of a diagnosis: a port whose numbers lie in the
intervals of an altered golden has made that mistake.
"""

from conformance.mistakes import block, norms
from conformance.mistakes.mistake import Mistake

MISTAKES: tuple[Mistake, ...] = norms.MISTAKES + block.MISTAKES
