"""The pictures of docs/labelling.md.

PYTHONPATH=.:tests python -m feedback.page.screenshots
"""

import shutil
import tempfile
from pathlib import Path

from feedback.page.browsing import opened
from feedback.page.running import event, serving, write_rows

from rlhf_jax.feedback.page import ServeConfig

DOCS = Path(__file__).parents[3] / "docs"
PROMPT = "How do I stop my cat from scratching the sofa?"
ANSWERS = [
    "Put a scratching post right beside the sofa, tall enough for the cat to stretch, "
    "and rub a little catnip on it. Cover the corner that it likes with double-sided "
    "tape for a few weeks. Praise it when it uses the post.",
    "Cats scratch because they are naughty. Shout at it every time, loudly, and it "
    "will learn within a day or two.",
    "Get a scratching post.",
    "Scratching is natural: it keeps claws healthy. You could try:\n\n1. a sturdy "
    "post, near the sofa\n2. tape on the corner that it likes\n3. a reward when it "
    "uses the post",
]


def main(run_dir: Path) -> None:
    """Judges seven items, and takes pictures of the eighth."""
    from playwright.sync_api import sync_playwright  # absent in a plain installation

    rows = [{"prompt": f"p{i}", "completions": ["a", "b"]} for i in range(20)]
    rows[7] = {"prompt": PROMPT, "completions": ANSWERS}
    file = write_rows(run_dir / "c.jsonl", rows)
    config = ServeConfig(run_dir / "run", completions=file, annotators=("ann",))
    chromium = shutil.which("chromium")
    with serving(config) as page, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        for _ in range(7):
            found = page.task("ann")
            page.ask("ann", "/api/events", event(found, "vote", ranks=[0, 1]))
        desktop = {"viewport": {"width": 1280, "height": 800}}
        window = opened(browser, page.links["ann"], **desktop)
        for key in "134":
            window.keyboard.press(key)
        window.screenshot(path=DOCS / "labelling_desktop.png")
        phone = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2}
        phone |= {"is_mobile": True, "has_touch": True}
        window = opened(browser, page.links["ann"], **phone)
        window.tap("summary")
        window.tap("label[for=place-0-0]")
        window.wait_for_timeout(500)  # the touch has faded
        window.screenshot(path=DOCS / "labelling_phone.png")
        browser.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
