"""A page in a real browser, without a network: a script runs in it, and gives back JSON."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")

#: Pixels: a window is no narrower, a frame in it can be.
_NARROWEST = 500
#: In front of all: what goes wrong in the page is kept.
_WATCH = """<script>
  window.wrong = [];
  for (const kind of ["error", "warn"]) console[kind] = (...all) => wrong.push(all.join(" "));
  addEventListener("error", (event) => wrong.push(event.message));
  document.addEventListener("securitypolicyviolation", (event) => wrong.push(event.blockedURI));
</script>"""


def visit(page: str, folder: Path, script: str, width: int = 1280) -> Any:
    """Run ``script``, the body of an async function, in the page; gives what it returns.

    What the page logs as an error, throws, or asks a network for fails the test.
    """
    probe = f"""<script>(async () => {{
      const result = await (async () => {{ {script} }})();
      const asked = performance.getEntriesByType("resource").map((each) => each.name);
      const found = document.createElement("pre");
      found.id = "found";
      found.textContent = JSON.stringify({{ result, wrong, asked }});
      top.document.body.append(found);
    }})()</script>"""
    watched = page.replace("<head>", f"<head>{_WATCH}", 1).replace("</body>", f"{probe}</body>")
    if width < _NARROWEST:
        watched = f'<body><iframe width="{width}" height="900" srcdoc="{html.escape(watched)}"></iframe></body>'
    done = _run(watched, folder, ["--virtual-time-budget=3000", f"--window-size={width},900"])
    shown = re.search(r'<pre id="found">(.*?)</pre>', done, re.DOTALL)
    assert shown, done[-2000:]
    found = json.loads(html.unescape(shown[1]))
    assert found["wrong"] == [] and found["asked"] == []
    return found["result"]


def _run(page: str, folder: Path, options: list[str]) -> str:
    """The page's elements as they are in the end."""
    assert BROWSER is not None
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    always = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    always += ["--hide-scrollbars", "--dump-dom"]
    command = [BROWSER, *always, *options, f"--user-data-dir={folder / 'profile'}", file.as_uri()]
    return subprocess.run(command, capture_output=True, timeout=120, check=True).stdout.decode("utf-8")


def seconds_to_draw(page: str, folder: Path) -> float:
    """Seconds of real time from opening the page until it is laid out and its scripts have run."""
    told = "<script>document.body.offsetHeight; document.documentElement.dataset.ms = performance.now();</script>"
    done = _run(page.replace("</body>", f"{told}</body>"), folder, [])
    found = re.search(r'data-ms="([\d.]+)"', done)
    assert found
    return float(found[1]) / 1000
