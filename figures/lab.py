"""Take the pictures of the lab that the README and the guide show, as it looks in a browser: `make screenshots`.

python figures/lab.py FOLDER
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

LAB = [sys.executable, "-m", "ivlens", "lab", "--no-browser", "--model", "smollm2", "--task", "third_person"]
LAB += ["--template", "plain", "--n-shots", "5", "--instruction", "none", "--text", "catch"]
# each view of the page: its tab, the name of its picture, and at most so many pixels of its height
VIEWS = [("Head", "lab-head", 900), ("Many inputs", "lab-many", 520), ("By layer", "lab-layers", 900)]
PATIENCE = 600_000  # milliseconds: heads that were never measured take a minute or two
MARGIN = 12


def main(folder: Path) -> None:
    """Start a lab, and photograph the whole page and what its views show."""
    with subprocess.Popen(LAB, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        try:
            url = next(found[1] for line in job.stdout if (found := re.search(r"(http://\S+)", line)))
            photograph(url, folder)
        finally:
            job.terminate()


def photograph(url: str, folder: Path) -> None:
    """Write the pictures of the page at `url`."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900}, color_scheme="light")
        page.goto(url)
        settled(page)
        page.screenshot(path=folder / "lab.png")
        # high enough that no view has to be scrolled, and sharp, since only a part of the page is shown
        page = browser.new_page(
            viewport={"width": 1400, "height": 1500}, device_scale_factor=1.25, color_scheme="light"
        )
        page.goto(url)
        settled(page)
        for tab, name, highest in VIEWS:
            page.get_by_role("tab", name=tab).click()
            page.wait_for_timeout(300)
            settled(page)
            page.screenshot(path=folder / f"{name}.png", clip=clip_of(page, highest))
        browser.close()
    for path in sorted(folder.glob("lab*.png")):
        print(path, path.stat().st_size)


def settled(page: Page) -> None:
    """Wait until everything that the page shows is complete."""
    page.locator('.lab[aria-busy="false"] .card.patched .text:not(.writing)').wait_for(timeout=PATIENCE)
    page.locator('.lab[aria-busy="false"] .view:not([hidden]):not(.old)').first.wait_for(timeout=PATIENCE)
    page.wait_for_timeout(300)


def clip_of(page: Page, highest: int) -> Any:
    """The part of the page that holds the tabs and the open view."""
    box = page.locator(".views").bounding_box()
    end = page.locator(".view:not([hidden])").bounding_box()
    assert box and end
    height = min(end["y"] + end["height"] - box["y"], highest)
    return {"x": box["x"] - MARGIN, "y": box["y"], "width": box["width"] + 2 * MARGIN, "height": height}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
