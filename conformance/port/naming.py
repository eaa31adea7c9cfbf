"""What the name of a port on the command line stands for.

The first of these that fits:

1. a path, where the name has a slash, ends in .py, or is that of a file here: a Python file (`my_port.py`), a folder with a
   `port.py`, or a program in any language that may be executed (`./port.js`);
2. a module and its class (`my_package.port:Port`), or a package with a `port.py` (`impl_torch`);
3. the entry point of that name in the group `conformance.ports`, of any package that is installed.

A class is named after a colon. Without one it is `Port`, or a file's only port. A function may stand for a class: it is a port
of one op. So may a file without a class, whose functions are called as ops are.

After an at sign stands which config of its autotuned kernels a port is to take: `my_port.py@2`.
"""

import importlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from conformance.numbers.nearest import did_you_mean
from conformance.ops.table import OPS
from conformance.port.base import Port
from conformance.port.function import op_of, port_of
from conformance.port.launch import Launch

GROUP = "conformance.ports"


class PortNameError(ValueError):
    """A name or a command that no port can have; the message says what is wrong with it, and what would be right."""


def by_name(name: str) -> Launch:
    """The port of that name, to be launched. Raises `PortNameError` where a path leads to none."""
    path, _ = _as_path(_without_config(name)[0])
    return Launch(name) if path is None or path.suffix == ".py" else Launch(name, (str(path),))


def by_command(line: str) -> Launch:
    """The program that a command line starts, in any language, to be launched. Raises `PortNameError` where it is none."""
    try:
        words = tuple(shlex.split(line))
    except ValueError as error:
        raise PortNameError(f"{line!r}: {error}") from None
    if not words:
        raise PortNameError("the command is empty")
    return Launch(line, words, exec=True)


def load(name: str, op: str = "") -> type[Port]:
    """The class that a name stands for, looked for in the working folder too; `op` is the one that a function is.

    Raises `PortNameError`, `ImportError` or `TypeError`, with the part of the name that is wrong.
    """
    name, config = _without_config(name)
    port = _load(name, op)
    return port if config is None else type(port.__name__, (port,), {"config": config})


def _load(name: str, op: str) -> type[Port]:
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))
    path, class_name = _as_path(name)
    if path is not None:
        if path.suffix != ".py":
            raise PortNameError(f"{name} is a program; only a port in Python has a class")
        module = _load_file(path)
        if not class_name and (functions := _functions(module)) and not _ports(module):
            return port_of(functions, path.name)
        return _class_of(module, class_name or _default_class(module, path.name), path.name, op)
    module_name, class_name = _as_module(name)
    return _class_of(importlib.import_module(module_name), class_name, f"module {module_name}", op)


def _without_config(name: str) -> tuple[str, int | None]:
    """A port's name, and the config of its kernels, if one is named."""
    stem, at, config = name.rpartition("@")
    return (stem, int(config)) if at and config.isdecimal() else (name, None)


def entry_points_by_name() -> dict[str, EntryPoint]:
    """The ports of the packages installed, sorted by name."""
    return {each.name: each for each in sorted(entry_points(group=GROUP), key=lambda each: each.name)}


def missing_module(name: str) -> str:
    """The first part of a module's name that is not there; empty if all of it is. Nothing is imported."""
    parts = name.split(".")
    folders: Sequence[str] | None = None
    for count in range(1, len(parts) + 1):
        spec = _find(".".join(parts[:count]), folders)
        if spec is None:
            return ".".join(parts[:count])
        folders = spec.submodule_search_locations or []
    return ""


def _find(module: str, folders: Sequence[str] | None) -> ModuleSpec | None:
    """A module's spec among the folders of its package; `importlib.util.find_spec` would import the package."""
    finders = (finder.find_spec for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return next((spec for find in finders if (spec := find(module, folders)) is not None), None)


def _as_module(name: str) -> tuple[str, str]:
    """The module and the class that a name stands for, if it is no path."""
    module_name, _, class_name = name.partition(":")
    if not module_name:
        raise PortNameError(f"{name!r} names no module: a port is module:Class, a path, or a package with a port.py")
    if class_name:
        return module_name, class_name
    missing = missing_module(f"{name}.port")
    entry_point = entry_points_by_name().get(name) if missing else None
    if entry_point is not None:
        return entry_point.module, entry_point.attr or "Port"
    if missing == f"{name}.port":
        meant = f"did you mean {name}.py?" if Path(f"{name}.py").is_file() else f"a class of its own is {name}:Class"
        raise PortNameError(f"{name} has no port.py, and no entry point has its name; {meant}")
    return f"{name}.port", "Port"


def _as_path(name: str) -> tuple[Path | None, str]:
    """The Python file or program that a name is the path of, and the class named after it; None where it is no path."""
    stem, _, class_name = name.rpartition(":")
    if not stem or not class_name.isidentifier() or Path(name).exists():
        stem, class_name = name, ""
    path = Path(stem)
    if not (os.sep in stem or path.suffix == ".py" or path.is_file()):
        return None, class_name
    if path.is_dir():
        path = path / "port.py"
        if not path.is_file():
            raise PortNameError(f"the folder {stem} has no port.py")
    if not path.exists():
        beside = (each.name for each in path.parent.glob("*"))
        raise PortNameError(f"there is no file {stem}{did_you_mean(path.name, beside)}")
    if path.suffix != ".py":
        if not os.access(path, os.X_OK):
            raise PortNameError(f"{stem} is not executable: chmod +x {stem}, or name what runs it: --exec 'node {stem}', say")
        if class_name:
            raise PortNameError(f"{stem} is a program; only a port in Python has a class")
    return path.absolute(), class_name


def _load_file(path: Path) -> ModuleType:
    """A file as a module; those beside it can be imported, after all others."""
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # at the end: a folder `torch` beside it must not be taken for torch
    name = f"port_{path.parent.name if path.stem == 'port' else path.stem}"  # nor a file torch.py
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _default_class(module: ModuleType, file: str) -> str:
    """`Port`, or the only port among a file's own classes."""
    ports = _ports(module)
    if "Port" in ports or len(ports) == 1:
        return "Port" if "Port" in ports else ports[0]
    if not ports:
        raise PortNameError(
            f"{file} has no port: a subclass of conformance.port.Port, or functions with the names of ops; "
            f"another function is named, with its op: {file}:my_function --op OP"
        )
    raise PortNameError(f"{file} has the ports {', '.join(ports)}; name one: {file}:{ports[0]}")


def _ports(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if _is_port(value) and value.__module__ == module.__name__]


def _functions(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """A file's own functions that have the name of an op."""
    return {name: value for name, value in vars(module).items() if name in OPS and callable(value)}


def _class_of(module: ModuleType, name: str, where: str, op: str) -> type[Port]:
    found = getattr(module, name, None)
    if found is None:
        raise ImportError(f"{where} has nothing named {name!r}{did_you_mean(name, vars(module))}")
    if _is_port(found):
        return found
    where = f"{where.removeprefix('module ')}:{name}"
    if isinstance(found, type) or not callable(found):
        raise PortNameError(
            f"{where} is not a subclass of conformance.port.Port, nor a function; for a module with weights of its own, "
            "name a function that takes them: def my_norm(x, weight, eps)"
        )
    if not (op := op_of(name, op)):
        raise PortNameError(f"{where} is a function, and its name is no op's: say which with --op, one of {', '.join(OPS)}")
    return port_of({op: found}, where)


def _is_port(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Port) and value is not Port
