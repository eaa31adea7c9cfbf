"""`python -m conformance.port PORT` serves a Python port: what a run starts, which needs no command line of the kit's."""

import sys

from conformance.port.serving import serve_named

if __name__ == "__main__":
    serve_named(sys.argv[1])
