"""What a port is called on the command line: paths, modules, entry points, and what is said of a name that is none."""

import os
import sys
from pathlib import Path

import pytest

from conformance.port import naming
from conformance.port.launch import Launch
from conformance.port.naming import PortNameError

ROOT = Path(__file__).parents[2]
IMPORTS = "from conformance.port import Port as Base, Port as Renamed\n"
ONE = IMPORTS + "class Mine(Base):\n    name = 'mine'\n"
TWO = ONE + "class Other(Base):\n    name = 'other'\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """In another project's folder, where Python itself does not look."""
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", str(ROOT))] + [str(ROOT)])
    monkeypatch.chdir(tmp_path)
    loaded = set(sys.modules)
    yield
    for name in set(sys.modules) - loaded:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in sys.modules[name].__file__:
            del sys.modules[name]


def write(path: str, text: str, *, executable: bool = False) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755 if executable else 0o644)
    return file


def install(name: str, value: str) -> None:
    """A package that ships a port, as pip leaves it: its metadata beside it, on sys.path."""
    metadata = f"Metadata-Version: 2.1\nName: {name}-conformance\nVersion: 1.2\n"
    write(f"site/{name}_conformance-1.2.dist-info/METADATA", metadata)
    write(f"site/{name}_conformance-1.2.dist-info/entry_points.txt", f"[conformance.ports]\n{name} = {value}\n")
    sys.path.append(str(Path("site").absolute()))


@pytest.mark.parametrize("name", ["mine.py", "./mine.py", "mine.py:Mine", "sub/../mine.py"])
def test_a_file_is_a_port(name):
    write("mine.py", ONE)
    Path("sub").mkdir()
    assert naming.load(name).name == "mine"
    assert naming.by_name(name) == Launch(name)


def test_an_absolute_path_may_be_anywhere(tmp_path, monkeypatch):
    file = write("here/mine.py", ONE).absolute()
    monkeypatch.chdir(tmp_path.parent)
    assert naming.load(str(file)).name == "mine"


def test_a_folder_has_its_port_in_port_py():
    write("some/folder/port.py", TWO + "class Port(Other):\n    name = 'folder'\n")
    assert naming.load("some/folder").name == naming.load("some/folder/").name == "folder"
    assert naming.load("some/folder:Other").name == "other"


def test_a_file_may_import_what_is_beside_it_and_hides_nothing():
    write("some/beside.py", "NAME = 'mine'")
    write("some/numpy/__init__.py", "raise ImportError('hidden')")
    write("some/safetensors.py", "import beside, numpy.linalg, safetensors.numpy\n" + ONE)
    assert naming.load("some/safetensors.py").__module__ == "port_safetensors"


def test_a_program_is_run_itself():
    for name in ("./port.js", "port.js"):
        file = write("port.js", "#!/usr/bin/env node\n", executable=True)
        assert naming.by_name(name) == Launch(name, (str(file.absolute()),))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine.py.py", r"there is no file mine\.py\.py; did you mean mine\.py\?"),
        ("no/such/file.py:Port", r"there is no file no/such/file\.py$"),
        ("./port.js", r"\./port\.js is not executable: chmod \+x \./port\.js, or name what runs it: --exec 'node \./port\.js'"),
        ("empty/", "the folder empty/ has no port.py"),
        ("./run.sh:Port", "is a program; only a port in Python has a class"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_before_anything_is_run(name, said):
    write("mine.py", ONE)
    write("port.js", "")
    write("run.sh", "#!/bin/sh\n", executable=True)
    write("empty/nothing.txt", "")
    with pytest.raises(PortNameError, match=said):
        naming.by_name(name)


def test_a_command_is_read_as_a_shell_reads_it():
    launch = naming.by_command("node 'my port.js'")
    assert (launch.program, launch.argument) == (("node", "my port.js"), """--exec 'node '"'"'my port.js'"'"''""")
    assert not launch.is_python
    for line, said in {"node 'port.js": "No closing quotation", " ": "the command is empty"}.items():
        with pytest.raises(PortNameError, match=said):
            naming.by_command(line)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.py", r"none\.py has no port: a subclass of conformance\.port\.Port, or functions with the names of ops"),
        ("two.py", r"two\.py has the ports Mine, Other; name one: two\.py:Mine"),
        ("two.py:Third", r"two\.py has nothing named 'Third'"),
        ("two.py:IMPORTS", r"two\.py:IMPORTS is neither a function nor a subclass"),
        ("two.py:Base", r"two\.py:Base is neither a function nor a subclass"),
        ("two", r"two has no port\.py, and no entry point has its name; did you mean two\.py\?"),
        ("pack", r"pack has no port\.py, and no entry point has its name; a class of its own is pack:Class"),
        ("nothing_here", "No module named 'nothing_here'"),
        (":Port", "names no module"),
    ],
)
def test_a_name_without_a_port_says_what_is_missing(name, said):
    write("none.py", IMPORTS)
    write("two.py", TWO + "IMPORTS = 1\n")
    write("pack/__init__.py", "")
    with pytest.raises((PortNameError, ImportError, TypeError), match=said):
        naming.load(name)


def test_a_module_and_a_package():
    write("pack/__init__.py", "")
    write("pack/port.py", ONE.replace("Mine", "Port"))
    assert naming.load("pack").name == naming.load("pack.port:Port").name == "mine"


def test_an_entry_point_is_found_by_its_name():
    install("framework", "framework_conformance.ports:Mine")
    write("site/framework_conformance/ports.py", ONE)
    assert naming.load("framework").name == "mine"
    assert naming.entry_points_by_name()["framework"].dist.version == "1.2"


def test_a_package_here_comes_before_an_entry_point_and_a_library_does_not():
    """The library that an entry point is named after can be imported too, and has no port.py."""
    install("framework", "framework_conformance.ports:Mine")
    write("site/framework_conformance/ports.py", ONE)
    write("site/framework/__init__.py", "raise ImportError('not to be imported')")
    assert naming.load("framework").name == "mine"
    write("framework/__init__.py", "")
    write("framework/port.py", ONE.replace("'mine'", "'local'").replace("Mine", "Port"))
    sys.path_importer_cache.clear()
    assert naming.load("framework").name == "local"


def test_what_is_missing_is_found_without_an_import():
    write("pack/__init__.py", "raise ImportError('not to be imported')")
    write("pack/port.py", "")
    sys.path.insert(0, os.getcwd())
    assert naming.missing_module("pack.port") == ""
    assert naming.missing_module("pack.other.port") == "pack.other"
    assert naming.missing_module("no_such.pack") == "no_such"
