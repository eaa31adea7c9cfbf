"""`conformance serve`."""

from typing import Annotated

import typer

from conformance.cli.options import PORT_FORMS


def serve(name: Annotated[str, typer.Argument(metavar="PORT", help=PORT_FORMS)]) -> None:
    """Serve a Python port on stdin and stdout; `run` starts this by itself."""
    from conformance.port.serving import serve_named

    serve_named(name)
