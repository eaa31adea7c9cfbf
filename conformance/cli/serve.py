"""`conformance serve`."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def serve(spec: Annotated[str, typer.Argument(metavar="PORT", help="module:Class, or a package with a port.py.")]) -> None:
    """Serve a Python port on stdin and stdout; `run` starts this by itself."""
    from conformance.port import serve

    sys.path.insert(0, str(Path.cwd()))
    serve(spec)
