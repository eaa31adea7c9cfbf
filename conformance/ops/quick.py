"""The quick cases: few, in few programs, that reject every mistake which any case rejects, in its op and dtype.

They are chosen by a set cover over the kill matrix: `conformance selftest --quick FILE` chooses them anew.
"""

from pathlib import Path

from conformance.ops.cases import CASES
from conformance.question.case import Case

FILE = Path(__file__).with_name("quick.txt")
IDS = frozenset(FILE.read_text().split())
QUICK: tuple[Case, ...] = tuple(case for case in CASES if case.id in IDS)
