"""The command line, a module for each command; what a command needs is loaded once it is called."""

import signal

import typer

from conformance.cli.compare import compare
from conformance.cli.fixtures import check, generate
from conformance.cli.fuzz import fuzz
from conformance.cli.identify import identify
from conformance.cli.judge import judge
from conformance.cli.judges import judges
from conformance.cli.knowledge import explain, list_
from conformance.cli.locate import locate
from conformance.cli.merge import merge
from conformance.cli.new import new
from conformance.cli.properties import properties
from conformance.cli.run import run
from conformance.cli.scoreboard import scoreboard
from conformance.cli.selftest import selftest
from conformance.cli.serve import serve
from conformance.cli.speed import speed

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Judge implementations of RMSNorm, LayerNorm and the Pre-LN transformer block against an exact golden.",
)
COMMANDS = (
    *(new, run, compare, judge, merge, identify, properties, speed, fuzz, locate),
    *(list_, explain, selftest, judges, scoreboard, serve),
)
for command in COMMANDS:
    app.command(command.__name__.rstrip("_"))(command)

fixtures = typer.Typer(no_args_is_help=True, help="The committed golden data: generate it, or check it.")
for command in (generate, check):
    fixtures.command()(command)
app.add_typer(fixtures, name="fixtures")


def main() -> None:
    """The console script; asked to end, it ends as it would at Ctrl-C, and takes the ports along."""
    for asked in (signal.SIGINT, signal.SIGTERM):  # a shell's background job would ignore the first
        signal.signal(asked, signal.default_int_handler)
    app()
