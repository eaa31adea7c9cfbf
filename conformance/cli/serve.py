"""`conformance serve`."""

import sys
from functools import partial
from typing import Annotated

import typer

from conformance.cli.options import PORT_FORMS


def serve(name: Annotated[str, typer.Argument(metavar="PORT", help=PORT_FORMS)]) -> None:
    """Serve a Python port on stdin and stdout; `run` starts this by itself."""
    from conformance.port.naming import load
    from conformance.port.serving import serve

    sys.argv = [name]  # the kit's arguments are none of the port's, nor of a library that parses the command line
    serve(partial(load, name))
