"""The README's picture: the report page of `make demo`, as a browser shows it.

    make demo && python scripts/report_picture.py demo/report/index.html results/mini/report.png

Needs Debian's `chromium` and the development packages (playwright).
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1280, 1640  # CSS pixels: the table, the figures, the first texts
COLOURS = 256  # of the picture's palette: a third of the bytes, and nothing that one sees


def main() -> None:
    """Render the page to a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args()
    browser_path = shutil.which("chromium")
    if browser_path is None:
        parser.error("needs the program chromium (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(given.page.resolve().as_uri())
        page.locator("article").first.wait_for()
        shot = page.screenshot()
        browser.close()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS).save(given.picture, optimize=True)
    print(f"{given.picture}: {given.picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
