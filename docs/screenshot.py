"""Takes the picture of a report that the README shows: docs/images/report.png. Needs chromium and its driver.

understudy demo --out runs/demo
python docs/screenshot.py runs/demo/report.html
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver

PICTURE = Path(__file__).resolve().parent / "images" / "report.png"
WIDTH, HEIGHT, SCALE = 1180, 1250, 1.25


def screenshot(page: Path) -> bytes:
    """The first screen of a page as a PNG, light, once its charts are drawn."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    with tempfile.TemporaryDirectory() as profile:
        for argument in (
            "headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars",
            f"force-device-scale-factor={SCALE}", f"window-size={WIDTH},{HEIGHT}", f"user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(f"--{argument}")
        driver = webdriver.Chrome(options, webdriver.ChromeService(executable_path=shutil.which("chromedriver")))
        try:
            driver.get(page.resolve().as_uri())
            time.sleep(3)
            return bytes(driver.get_screenshot_as_png())
        finally:
            driver.quit()


if __name__ == "__main__":
    image = Image.open(io.BytesIO(screenshot(Path(sys.argv[1])))).convert("RGB")
    image.quantize(128, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
