"""Who may import whom: the reference nothing of ours, the kit no framework, an implementation its framework only."""

import ast
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import conformance
from conformance.ops.table import OPS

ROOT = Path(__file__).parents[2]
KIT = {"jinja2", "ml_dtypes", "numpy", "rich", "safetensors", "typer"}
ON_DEMAND = {  # extras, and the modules that need them
    "hypothesis": {"conformance.tools.fuzzing.fuzz", "conformance.tools.fuzzing.random_cases"},
    "pytest": {"conformance.pytest_plugin", "conformance.tools.testing.pytest_port"},
}
BRIDGE = {"conformance.port", "ml_dtypes", "numpy"}  # what a port.py may import besides
INTERPRETER = "impl_torch.kernels.interpreter"  # which computes in NumPy
PORTED = {
    *("equinox", "fla", "flax", "haiku", "jax", "keras", "liger_kernel", "mlx", "onnx", "onnxruntime", "paddle"),
    *("tensorflow", "tinygrad", "tokamax", "torch", "transformers", "xformers"),
}

MAY_IMPORT = {
    "reference": {"jaxtyping", "numpy"},
    "conformance": {"jaxtyping", "reference"} | KIT | ON_DEMAND.keys(),
    "impl_torch": {"jaxtyping", "safetensors", "torch", "triton"},
    "impl_jax": {"flax", "jax", "jaxtyping", "safetensors"},
    "ports": {"conformance.port.protocol", "reference.block_config", "reference.checkpoints", "impl_jax", "impl_torch"}
    | BRIDGE
    | PORTED,
    "studies": {"conformance", "impl_jax", "impl_torch", "reference"}
    | {"jaxtyping", "matplotlib", "numpy", "rich", "torch", "typer"},
}


FLOORS = ("numbers", "question", "ops", "port", "mistakes", "judging", "running", "report", "tools", "cli")
"""The rooms of the kit, each above those that it may use."""


def modules(package: str) -> dict[str, ast.Module]:
    """The modules of a package by name, parsed."""
    sources = {path: path.relative_to(ROOT).with_suffix("") for path in (ROOT / package).rglob("*.py")}
    return {".".join(name.parts).removesuffix(".__init__"): ast.parse(path.read_text()) for path, name in sources.items()}


ALL = {name: tree for package in MAY_IMPORT for name, tree in modules(package).items()}


def imported(tree: ast.AST, *, at_import: bool = False) -> Iterator[str]:
    """The full names of the modules that a module imports: anywhere in it, or only while it is itself imported."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.Import(names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module, names):
                assert module is not None, "imports are absolute"
                assert node.level == 0, "imports are absolute"
                yield from (name if (name := f"{module}.{alias.name}") in ALL else module for alias in names)
            case ast.If(ast.Name("TYPE_CHECKING")) | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda() if at_import:
                continue
            case _:
                yield from imported(node, at_import=at_import)


def is_within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("name", ALL)
def test_a_module_imports_what_it_may(name):
    package = name.partition(".")[0]
    allowed = {package} | MAY_IMPORT[package] | sys.stdlib_module_names
    if package.startswith("impl_") and name.endswith(".port"):
        allowed |= BRIDGE
    if name == INTERPRETER:
        allowed |= {"ml_dtypes", "numpy"}
    assert [other for other in imported(ALL[name]) if not is_within(other, allowed)] == []


def test_impl_torch_works_without_triton():
    """Which is there where torch is built for CUDA: its kernels are imported by the function that calls one."""
    needs = {name for name, tree in ALL.items() if "triton" in {other.partition(".")[0] for other in imported(tree)}}
    assert "impl_torch.kernels.launch" in needs
    assert [name for name in needs if not name.startswith("impl_torch.kernels.")] == []
    code = "import sys, impl_torch.port; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    assert set(result.stdout.split()) & needs == set()
    assert "impl_torch.kernels" in result.stdout.split()


PRODUCT = {"conformance", "reference", "impl_torch", "impl_jax"}


@pytest.mark.parametrize("package", sorted(PRODUCT))
def test_no_module_is_long(package):
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / package).rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > 300} == {}


KNOW_OPS = {"conformance.ops", "conformance.mistakes"}


@pytest.mark.parametrize("name", [name for name in ALL if is_within(name, {"conformance"}) and not is_within(name, KNOW_OPS)])
def test_an_op_is_named_by_the_table_alone(name):
    """Whoever adds an op need not look for its name in the rest of the kit."""
    literals = [node.value for node in ast.walk(ALL[name]) if isinstance(node, ast.Constant)]
    assert [literal for literal in literals if isinstance(literal, str) and literal in OPS] == []


@pytest.mark.parametrize("name", [name for name in ALL if name.count(".") and name.split(".")[1] in FLOORS])
def test_a_room_uses_those_below_it(name):
    floor = FLOORS.index(name.split(".")[1])
    others = [other.split(".")[1] for other in imported(ALL[name]) if other.startswith("conformance.")]
    assert [other for other in others if FLOORS.index(other) > floor] == []


def test_every_module_of_the_kit_is_in_a_room():
    rooms = {name.split(".")[1] for name in ALL if name.startswith("conformance.")}
    assert rooms == {*FLOORS, "pytest_plugin", "__main__"}


def test_no_module_imports_itself_by_a_detour():
    graph = {name: {other for other in imported(tree, at_import=True) if other in ALL} for name, tree in ALL.items()}
    assert "conformance.question.case" in graph["conformance.ops.golden"]
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_the_kit_loads_no_framework():
    names = [module.name for module in pkgutil.walk_packages(conformance.__path__, "conformance.")]
    assert {"conformance.cli", "conformance.running.runner", "conformance.report.console"} <= set(names)
    code = f"import sys, {', '.join(names)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    loaded = set(result.stdout.split())
    assert KIT | {"conformance", "reference"} <= loaded
    assert loaded & {"flax", "impl_jax", "impl_torch", "jax", "torch"} == set()


def test_what_an_extra_brings_is_imported_on_demand():
    """The command line, and all that it loads before it knows the command, works without the extras."""
    for package, needed_by in ON_DEMAND.items():
        assert {name for name in ALL if package in {other.partition(".")[0] for other in imported(ALL[name])}} == needed_by
    code = "import sys, conformance.cli, conformance.running.runner, conformance.port; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    assert "conformance.cli" in result.stdout.split()
    assert set(result.stdout.split()) & ON_DEMAND.keys() == set()


def test_what_is_imported_is_declared():
    """And nothing else is: a dependency that no module imports is one too many."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = project["dependencies"] + extras["fuzz"] + extras["pytest"]
    declared = {re.match(r"\w+", requirement)[0] for requirement in requirements}
    trees = modules("conformance") | modules("reference")
    others = {other.partition(".")[0] for tree in trees.values() for other in imported(tree)}
    assert others - sys.stdlib_module_names - MAY_IMPORT.keys() == declared


def test_what_a_study_imports_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {
        re.match(r"\w+", each)[0] for each in project["dependencies"] + extras["studies"] + extras["torch"] + extras["jax"]
    }
    others = {other.partition(".")[0] for tree in modules("studies").values() for other in imported(tree)}
    assert "matplotlib" in others
    assert others - sys.stdlib_module_names - MAY_IMPORT.keys() <= declared


def test_nobody_imports_a_study():
    trees = ALL | modules("benchmarks") | modules("examples")
    importing = {
        name.partition(".")[0] for name, tree in trees.items() if any(is_within(o, {"studies"}) for o in imported(tree))
    }
    assert importing == {"studies"}


def test_the_pytest_plugin_costs_nothing_where_it_is_not_used():
    """pytest loads it in every project of an environment that has the kit."""
    code = "import sys, pytest; before = set(sys.modules); import conformance.pytest_plugin; print(*set(sys.modules) - before)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    assert set(result.stdout.split()) == {"conformance", "conformance.pytest_plugin"}
