"""The HTML report in a real browser, headless; skipped where no chromium is on PATH."""

import base64
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from conformance.report.html import as_html
from tests.runner.test_report_pages import EVIL, everything

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium here")

AXE = """
axe.run(document, { resultTypes: ["violations"] }).then((found) => {
  const said = found.violations.map((each) => [each.id, each.nodes.map((node) => [node.html, node.failureSummary])]);
  document.body.innerHTML = "<pre id='axe'></pre>";
  document.getElementById("axe").textContent = btoa(unescape(encodeURIComponent(JSON.stringify([found.passes.length, said]))));
});
"""


def browse(tmp_path: Path, page: str, *options: str) -> tuple[str, list[str]]:
    """The page as the browser has it, and what it says on its console."""
    (tmp_path / "page.html").write_text(page)
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=8000", "--dump-dom", *options]
    result = subprocess.run([*command, f"file://{tmp_path}/page.html"], capture_output=True, text=True, timeout=120, check=True)
    return result.stdout, re.findall(r"CONSOLE.*", result.stderr)


def axe() -> str:
    spec = importlib.util.find_spec("axe_core_python")
    if spec is None or spec.origin is None:
        pytest.skip("axe_core_python is not installed")
    return Path(spec.origin).with_name("axe.min.js").read_text()


def with_script(page: str, script: str) -> str:
    """The page with one more script in it, which its own policy is told to let run."""
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src 'sha256-{allowed}' ", 1)
    return page.replace("</body>", f"<script>{script}</script></body>")


def test_the_page_is_quiet_asks_for_nothing_and_runs_no_stranger(tmp_path):
    """With names and messages in it that would be scripts; its own script shows the buttons."""
    asked = "addEventListener('load', () => console.log('asked for ' + performance.getEntriesByType('resource').length));"
    dom, console = browse(tmp_path, with_script(as_html(everything(EVIL, EVIL)), asked))
    assert [re.search('"(.*)"', line)[1] for line in console] == ["asked for 0"]
    assert dom.count("<script") == 2
    assert '<button class="copy"' in dom
    assert "hidden" not in re.search('<button class="copy"[^>]*>', dom)[0]


def test_the_policy_stops_a_script_that_is_not_the_pages_own(tmp_path):
    page = as_html(everything()).replace("</body>", "<script>document.title = 'broken into'</script></body>")
    dom, console = browse(tmp_path, page)
    assert "<title>broken into" not in dom
    assert any("Content Security Policy" in line for line in console)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("options", [("0", 1200), ("1", 1200), ("1", 500)], ids=["dark", "light", "narrow"])
def test_nothing_is_in_the_way_of_a_reader(tmp_path, options):
    """By axe-core's rules: contrast, headings, names, tables, scrolling by keyboard; and nothing wider than the screen."""
    scheme, width = options
    wide = "console.log(document.documentElement.scrollWidth > innerWidth ? 'too wide' : 'fits');"
    opened = "document.querySelectorAll('details').forEach((each) => { each.open = true; });"
    page = with_script(as_html(everything()), f"{axe()};{opened}{wide}{AXE}")
    look = (f"--blink-settings=preferredColorScheme={scheme}", f"--window-size={width},2000")
    dom, console = browse(tmp_path, page, *look)
    passes, violations = json.loads(base64.b64decode(re.search(r'id="axe">([^<]+)<', dom)[1]))
    assert violations == []
    assert passes > 15
    assert [line for line in console if "fits" not in line] == []
