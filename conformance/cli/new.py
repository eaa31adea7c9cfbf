"""`conformance new`."""

from pathlib import Path
from typing import Annotated

import typer


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the port is of, such as a framework.")],
    block: Annotated[bool, typer.Option("--block", help="With the ops of a Pre-LN block too.")] = False,
    triton: Annotated[bool, typer.Option("--triton", help="Around a Triton kernel that is right, to be replaced.")] = False,
    pallas: Annotated[bool, typer.Option("--pallas", help="Around a Pallas kernel that is right, to be replaced.")] = False,
) -> None:
    """Write a port to begin with, NAME_port.py: it runs at once, and skips what is not written yet.

    Exit status: 0 it is written, 2 it is there already, or the name is none.
    """
    from conformance.numbers.tensors import write_atomically
    from conformance.port.skeleton import skeleton

    if not name.isidentifier():
        raise typer.BadParameter(f"{name!r} is no name: letters, digits and underscores", param_hint="NAME")
    if triton and pallas:
        raise typer.BadParameter("one kernel to begin with: --triton or --pallas", param_hint="--pallas")
    name = name.removesuffix("_port")
    path = Path(f"{name}_port.py")  # a file autograd.py would hide autograd itself
    if path.exists():
        raise typer.BadParameter(f"{path} is there already, and is left as it is", param_hint="NAME")
    kernel = "triton" if triton else "pallas" if pallas else ""
    write_atomically(path, skeleton(name, str(path), block=block, kernel=kernel).encode())
    if kernel:
        interpreted = {"triton": "TRITON_INTERPRET=1 ", "pallas": ""}[kernel]
        natively = {"triton": "cuda        # where a GPU is: without the variable", "pallas": "tpu        # or cuda"}[kernel]
        print(f"""{path} is written, with a kernel that runs. Put yours in its place, then

    {interpreted}conformance run {path} --op rms_norm --quick
    conformance run {path} --op rms_norm --device {natively}
    {interpreted}conformance run {path} --in-process --case '*/float32/random'    # to stop at a breakpoint()""")
        return
    print(f"""{path} is written: it runs, and skips what is not written yet. Write rms_norm, then

    conformance run {path} --op rms_norm --dtype float32
    conformance identify {path}        # which side of the weight it casts on
    conformance run {path} --in-process --case '*/float32/random'    # to stop at a breakpoint()""")
