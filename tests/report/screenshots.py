"""The pictures of docs/report.md.

PYTHONPATH=.:tests python -m report.screenshots runs/quickstart runs/ppo_kl_0.01
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from chromium import chromium

from rlhf_jax.report import write_page

DOCS = Path(__file__).parents[2] / "docs"
PHONE = {"width": 380, "height": 820}


def main(quickstart: Path, other: Path) -> None:
    """A page of the whole quickstart, and one of its PPO beside another."""
    folder = Path(tempfile.mkdtemp())
    one = write_page([quickstart], folder / "one.html")
    two = write_page([quickstart / "ppo", other], folder / "two.html")
    with chromium() as browser:

        def taken(file: Path, name: str, section: str, **options: Any) -> None:
            window = browser.new_context(**options).new_page()
            window.goto(file.as_uri() + (f"#{section}" if section else ""))
            window.screenshot(path=DOCS / f"report_{name}.png")
            window.context.close()

        desk: Any = {"viewport": {"width": 1280, "height": 1180}}
        taken(two, "desktop", "", **desk)
        taken(one, "samples", "samples", **desk, color_scheme="dark")
        phone: Any = {"viewport": PHONE, "device_scale_factor": 2, "is_mobile": True}
        for section in ("", "samples"):
            taken(one, f"phone{'_' if section else ''}{section}", section, **phone)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
