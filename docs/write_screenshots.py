"""Photographs the first screen of a report in both languages and themes, with Chromium: `python docs/write_screenshots.py results/demo`."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from pd_control.compare.presets import TITLES

ASSETS: Final = Path(__file__).parent / "assets"
THEMES: Final = {"light": 1, "dark": 0}  # Chromium's own numbers
WINDOW: Final = "1280,1000"


def photograph(report: Path, image: Path, theme: int) -> None:
    """One picture of what a reader sees first."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={WINDOW}"]
    look = f"--blink-settings=preferredColorScheme={theme}"
    command = ["chromium", *options, look, f"--screenshot={image}", report.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def main() -> int:
    """Render the runs that are named, and photograph that."""
    for language in ("en", "zh"):
        with tempfile.TemporaryDirectory() as folder:
            words = ["pd-analysis", "report", *sys.argv[1:], "--lang", language, "--out", folder]
            # The English title is that of `make demo`, the Chinese one that of `pd-analysis --lang zh`.
            title = ["--title", TITLES["sim"]] if language == "en" else []
            subprocess.run([*words, *title], check=True, capture_output=True)
            for theme, number in THEMES.items():
                photograph(Path(folder) / "report.html", ASSETS / f"report.{language}.{theme}.png", number)
    return 0


if __name__ == "__main__":
    sys.exit(main())
