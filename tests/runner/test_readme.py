"""What the README shows is what happens."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from benchmarks import counts, gpu

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = ("", "conformance", "docs", "ports", "benchmarks", "studies", "examples")
COMMANDS = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
PAGES = [
    str(page.relative_to(ROOT)) for folder in FOLDERS for page in sorted((ROOT / folder).glob("**/*.md" if folder else "*.md"))
]


def run(*arguments, cwd=ROOT):
    process = [sys.executable, "-m", "conformance", *arguments]
    return subprocess.run(process, cwd=cwd, env=None, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("page", counts.PAGES)
def test_the_counts_and_the_report_of_a_page_are_those_of_today(page):
    renewed = counts.renewed(page)
    assert renewed == (ROOT / page).read_text(encoding="utf-8"), "run `python -m benchmarks.counts`"


def test_the_page_of_the_gpu_is_that_of_the_reports():
    assert gpu.PAGE.read_text(encoding="utf-8") == gpu.page()


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 80
    assert [line for line in README.splitlines() if len(line) > 120] == []


def test_the_example_conforms_in_eager_mode():
    assert run("run", "examples.llama:Port", "--mode", "eager").returncode == 0


def test_the_port_that_a_newcomer_copies(tmp_path):
    [port] = re.findall(r"```python\n(import numpy.*?)```", README, re.DOTALL)
    (tmp_path / "my_port.py").write_text(port)
    program = "import sys; sys.path.insert(0, sys.argv.pop(1)); from conformance.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, str(ROOT), "run", "my_port:Port"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "\nconforms: " in result.stdout
    assert result.returncode == 0


@pytest.mark.parametrize("arguments", re.findall(r"^    conformance ((?:list|explain) \S+)", COMMANDS, re.MULTILINE))
def test_the_other_commands(arguments):
    result = run(*arguments.split())
    assert result.returncode == 0
    assert result.stdout.strip()


@pytest.mark.parametrize("page", PAGES)
def test_links_and_targets_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text)) if "://" not in link]
    assert [f"{path}#{anchor}" for path, _, anchor in links if not leads_somewhere(ROOT / page, path, anchor)] == []
    makefiles = [each for each in (ROOT / "Makefile", (ROOT / page).parent / "Makefile") if each.exists()]
    targets = {
        target for each in makefiles for target in re.findall(r"^([a-z]+):", each.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert set(re.findall(r"(?:^    |`)make ([a-z]+)", text, re.MULTILINE)) <= targets


def leads_somewhere(page: Path, path: str, anchor: str) -> bool:
    target = page.parent / path if path else page
    return target.exists() and (not anchor or target.suffix != ".md" or anchor in anchors(target))


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page as GitHub makes them: of its headings, those that come again numbered, and its own ids."""
    text = page.read_text(encoding="utf-8")
    found: list[str] = re.findall(r'<a id="([^"]+)">', text)
    for heading in re.findall(r"^#+ +(.+?) *$", without_code(text), re.MULTILINE):
        said = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("\\_", "_")
        slug = re.sub(r"[^\w\- ]", "", said.replace("`", "").lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return frozenset(found)


def without_code(text: str) -> str:
    """A page without its blocks of code; code within a line has no links."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`([^`\n]*)`", lambda code: code[1].replace("](", ""), text)
