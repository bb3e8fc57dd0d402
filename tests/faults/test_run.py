"""The runner: what failed, was skipped or has no test has not passed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults import rows as table
from faults import run as runner

SCRIPT = """
import sys
from pathlib import Path
from faults.run import run
folder = Path(sys.argv[1])
page, rows = folder / "page.md", [int(n) for n in sys.argv[2].split(",")]
raise SystemExit(run(rows, tests=[str(folder)], page=page))
"""
TESTS = """
import os
import pytest

@pytest.mark.fault(1)
@pytest.mark.parametrize("n", [1, 2])
def test_good(n):
    pass

@pytest.mark.fault(2, 3)
def test_bad():
    assert False

@pytest.mark.fault(4)
def test_skipped():
    pytest.skip("no such device")

@pytest.mark.fault(5)
def test_that_breaks_at_its_end(request):
    request.addfinalizer(lambda: 1 / 0)

@pytest.mark.fault(6)
def test_repeats():
    assert os.environ.get("FAULTS_REPEAT") == "7"

def test_of_no_row():
    assert False
"""
PAGE = f"before\n{runner.BEGIN}\nold\n{runner.END}\nafter\n"


def tried(folder: Path, rows: str, repeat: str = "") -> tuple[int, str]:
    """Exit status and what is printed."""
    (folder / "test_toys.py").write_text(TESTS)
    (folder / "page.md").write_text(PAGE)
    env = os.environ | {"FAULTS_REPEAT": repeat, "COLUMNS": "100"}
    env["PYTHONPATH"] = os.pathsep.join([str(runner.ROOT / "tests"), str(runner.ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), rows],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


def cells(printed: str, row: int) -> list[str]:
    lines = [[c.strip() for c in x.split("│")[1:-1]] for x in printed.splitlines()]
    [found] = [line for line in lines if line and line[0] == str(row)]
    return found


def test_rows_that_pass_and_rows_that_do_not(tmp_path):
    assert tried(tmp_path, "1")[0] == 0
    status, printed = tried(tmp_path, "1,2,3,4,5,6,7")
    assert status == 1 and "1 of 7 rows passed, 6 tests" in printed
    found = {row: cells(printed, row)[2:4] for row in range(1, 8)}
    assert found == {
        1: ["2", "2 of 2"],
        2: ["1", "0 of 1"],
        3: ["1", "0 of 1"],
        4: ["1", "0 of 1, 1 skipped"],
        5: ["1", "0 of 1"],
        6: ["1", "0 of 1"],
        7: ["0", "no test"],
    }
    for row in "457":  # alone, too
        assert tried(tmp_path, row)[0] == 1
    assert tried(tmp_path, "6", repeat="7")[0] == 0
    assert (tmp_path / "page.md").read_text() == PAGE  # not all rows were tried


def test_all_rows_write_the_page(tmp_path):
    status, printed = tried(tmp_path, ",".join(map(str, table.ROWS)))
    assert status == 1 and "1 of 31 rows passed" in printed
    text = (tmp_path / "page.md").read_text()
    assert text.startswith(f"before\n{runner.BEGIN}\n| row |")
    assert text.endswith(f" minutes.\n{runner.END}\nafter\n")
    assert "old" not in text and f"| 7 | {table.ROWS[7][0]} | 0 | no test | 0 |" in text


def test_the_page_says_what_each_row_promises():
    text = runner.PAGE.read_text()
    assert text.count(runner.BEGIN) == text.count(runner.END) == 1
    promises = text.split(runner.BEGIN)[0]
    for number, (name, must) in table.ROWS.items():
        assert f"| {number} | {name} | {must} |" in promises


@pytest.mark.parametrize("rows", ["0", "32", "1,x", "", "-1"])
def test_rows_that_are_none(rows, capsys):
    with pytest.raises(SystemExit):
        runner.main(["--rows", rows])
    assert "expected numbers from 1 to 31" in capsys.readouterr().err
    assert runner.as_rows("22,1,1") == [1, 22]
