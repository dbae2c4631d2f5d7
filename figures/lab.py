"""Take the README's picture of the lab, as it looks in a browser: `make screenshots`."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

LAB = [sys.executable, "-m", "ivlens", "lab", "--no-browser", "--task", "antonym", "--text", "happy"]


def main(target: Path) -> None:
    """Start a lab, show a random vector beside, and write what is seen."""
    with subprocess.Popen(LAB, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        try:
            url = next(found[1] for line in job.stdout if (found := re.search(r"(http://\S+)", line)))
            photograph(url, target)
        finally:
            job.terminate()
    print(target)


def photograph(url: str, target: Path) -> None:
    """Write the page at `url` to a PNG."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 600}, device_scale_factor=1.5)
        page.goto(url)
        page.get_by_text("s in all").wait_for(timeout=60_000)
        page.get_by_role("checkbox", name="Random vector of equal norm").check()
        page.locator('[data-column="random"] .text:not(.writing)').wait_for(timeout=60_000)
        page.get_by_text("s in all").wait_for()
        page.wait_for_timeout(300)
        page.screenshot(path=target, full_page=True)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
