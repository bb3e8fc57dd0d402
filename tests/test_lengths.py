"""Files stay short enough to be read at one sitting."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = ("rlhf_jax", "experiments", "tests", "tpu")
TEXT = {".py", ".sh", ".js", ".css", ".html", ".md"}
LIMIT, SCRIPT_LIMIT = 400, 200  # lines
IS_SCRIPT = '\nif __name__ == "__main__":\n'


def too_long(root: Path) -> Iterator[str]:
    """The files that are longer than they may be; scripts of experiments/ first."""
    for part in PARTS:
        for path in sorted((root / part).rglob("*")):
            if path.suffix not in TEXT:
                continue
            text = path.read_text(encoding="utf-8")
            script = part == "experiments" and IS_SCRIPT in text
            limit, lines = SCRIPT_LIMIT if script else LIMIT, len(text.splitlines())
            if lines > limit:
                yield f"{path.relative_to(root)}: {lines} lines, at most {limit}"


def test_no_file_is_too_long():
    found = list(too_long(ROOT))
    assert not found, "\n".join(found)


def test_scripts_are_the_shorter_ones(tmp_path):
    for part in PARTS:
        (tmp_path / part / "deeper").mkdir(parents=True)
        (tmp_path / part / "deeper" / "a.py").write_text("x = 1\n" * LIMIT)
        (tmp_path / part / "b.py").write_text("x = 1\n" * SCRIPT_LIMIT + IS_SCRIPT)
    assert list(too_long(tmp_path)) == ["experiments/b.py: 202 lines, at most 200"]
    for part in PARTS:
        (tmp_path / part / "deeper" / "a.py").write_text("x = 1\n" * (LIMIT + 1))
    assert len(list(too_long(tmp_path))) == 1 + len(PARTS)
