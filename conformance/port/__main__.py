"""`python -m conformance.port PORT [OP]` serves a Python port; a function is served as this op.

A run starts it: nothing of the kit's command line is loaded.
"""

import sys

from conformance.port.serving import serve_named

if __name__ == "__main__":
    serve_named(*sys.argv[1:])
