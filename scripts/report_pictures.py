"""Pictures of a report: desktop and phone, light and dark. Needs Chromium on the PATH.

python scripts/report_pictures.py RUN/report/report.html OUT_FOLDER
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTHS = {"desktop": 1280, "phone": 390}
SCHEMES = {"light": 1, "dark": 0}  # Blink's preferredColorScheme
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--virtual-time-budget=3000",
)  # fmt: skip


def browser() -> str | None:
    """The path of the first one that is there."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def picture(
    page: Path, out: Path, width: int, height: int, scheme: str = "light", chromium: str = ""
) -> None:
    """A PNG of the page's top. A window is never narrower than 500 pixels: below, the page stands in a frame."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        address = page.resolve().as_uri()
        if width < 500:
            frame = home / "frame.html"
            style = f"border:0;width:{width}px;height:{height}px;display:block"
            frame.write_text(f'<body style="margin:0"><iframe src="{address}" style="{style}"></iframe>')
            address = frame.as_uri()
        command = [
            chromium or browser() or "chromium", *FLAGS, f"--user-data-dir={home / 'profile'}",
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", "--allow-file-access-from-files",
            f"--window-size={max(width, 500)},{height}", f"--screenshot={out.resolve()}", address,
        ]  # fmt: skip
        subprocess.run(
            command, check=True, capture_output=True, timeout=120, env=os.environ | {"HOME": folder}
        )
    if width < 500:
        from PIL import Image

        with Image.open(out) as whole:
            whole.crop((0, 0, width, whole.height)).save(out)


def pictures(page: Path, folder: Path, height: int = 6000) -> list[Path]:
    """The four of them: desktop and phone, light and dark."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for size, width in WIDTHS.items():
        for scheme in SCHEMES:
            made.append(folder / f"{size}-{scheme}.png")
            picture(page, made[-1], width, height, scheme)
    return made


if __name__ == "__main__":
    if len(sys.argv) != 3 or browser() is None:
        sys.exit(
            __doc__ if len(sys.argv) != 3 else "no chromium on the PATH: scripts/install_programs brings one"
        )
    for one in pictures(Path(sys.argv[1]), Path(sys.argv[2])):
        print(one)
