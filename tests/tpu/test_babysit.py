"""tpu/vm.sh babysit, with a stand-in for gcloud whose workers are processes here."""

import re
import subprocess
import time
from pathlib import Path

import pytest
from slices import HERE, checkout, make_slices

BUSY = "UNAVAILABLE: The service is currently unavailable."
ENDS = "error: {}, attempt {} of {} without a new checkpoint; the last is of step {}\n"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkout(tmp_path_factory.mktemp("toy") / "tree", HERE / "standin_run.py")


def said(done: subprocess.CompletedProcess[str], status: int) -> str:
    assert done.returncode == status, done.stdout + done.stderr
    return done.stderr


def test_a_run_finishes_on_the_third_slice(tmp_path: Path, tree: Path):
    """gcloud fails now and then; slices are taken, one without a word."""
    slices = make_slices(
        tmp_path,
        tree,
        queue=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"],
        fail={
            "create": [BUSY],
            "describe": ["", BUSY],
            "scp": [BUSY],
            "ssh": ["", BUSY],
        },
        taken=["preempted", "silent"],
    )
    told = said(slices.babysit("hold@1 hold@3"), 0)
    assert slices.steps() == [1, 2, 3, 4, 5]  # each once, in order
    assert slices.runs(0) == slices.runs(1) == 3
    assert slices.state()["slices"] == 3 and slices.state()["queue_now"] == []
    assert slices.asked().count("create") == 4  # one of them failed
    assert slices.asked()[-1] == "delete"
    assert re.search(r"to be ACTIVE: WAITING_FOR_RESOURCES \(for \d+ s\)", told)
    assert f"creating grpo-1 failed: (gcloud.compute.tpus.create) {BUSY}; again" in told
    assert "grpo-1 does not answer (1 of 3)" in told
    assert "grpo-1 is lost: SUSPENDING" in told
    assert "lost; going on from step" in told


def test_what_a_person_must_mend_ends_it(tmp_path: Path, tree: Path):
    slices = make_slices(tmp_path, tree)
    told = said(slices.babysit("2@3"), 2)
    assert told.splitlines()[-1] == "error: --lr -1: expected > 0 (at 3)"
    assert slices.runs() == 1 and slices.asked()[-1] == "delete"


def test_a_run_that_saves_goes_on(tmp_path: Path, tree: Path):
    slices = make_slices(tmp_path, tree, queue_now=["DELETING", ""])
    told = said(slices.babysit("75@1 1@3", RLHF_TPU_ATTEMPTS="1"), 0)
    assert slices.runs() == 3 and slices.steps() == [1, 2, 3, 4, 5]
    assert re.search(r"waiting for the old grpo-1 to be deleted \(for \d+ s\)", told)
    assert "stopped; going on from step 1" in told
    assert "crashed; going on from step 3" in told
    assert slices.state()["slices"] == 1  # the machine was not to blame
    assert slices.asked().count("scp") == 1


def test_crashes_without_a_new_checkpoint_are_counted(tmp_path: Path, tree: Path):
    slices = make_slices(tmp_path, tree)
    told = said(slices.babysit(9 * "1@1 ", RLHF_TPU_ATTEMPTS="4"), 1)
    # The first one has saved step 1, the four after it nothing.
    assert slices.runs() == 5
    crashed = "crashed, attempt {} of 4 without a new checkpoint; again in {} s"
    for attempt, seconds in enumerate([0.05, 0.1, 0.2], 1):
        assert crashed.format(attempt, seconds) in told
    assert ENDS.format("crashed", 4, 4, 1) in told
    assert "w-1: == " in told  # every worker's log
    assert slices.state()["slices"] == 2  # the fourth one had another machine


def test_stops_without_a_new_checkpoint_are_counted(tmp_path: Path, tree: Path):
    slices = make_slices(tmp_path, tree)
    told = said(slices.babysit("75@0", RLHF_TPU_ATTEMPTS="1"), 75)
    assert ENDS.format("stopped", 1, 1, 0) in told


@pytest.mark.parametrize(
    ("fail", "status", "message"),
    [
        (
            {"create": 9 * [BUSY]},
            69,
            f"failed 4 times: (gcloud.compute.tpus.create) {BUSY}",
        ),
        ({"describe": ["PERMISSION_DENIED: no"]}, 2, "asking for grpo-1: (gcloud."),
        ({"scp": ['Please run "ssh-add k" to add it']}, 2, 'Please run "ssh-add k"'),
    ],
    ids=["busy", "denied", "key"],
)
def test_gcloud_fails(
    fail: dict, status: int, message: str, tmp_path: Path, tree: Path
):
    slices = make_slices(tmp_path, tree, fail=fail)
    assert message in said(slices.babysit(), status).splitlines()[-1]


def test_a_slice_that_never_comes(tmp_path: Path, tree: Path):
    slices = make_slices(tmp_path, tree, queue=["PROVISIONING", "FAILED"])
    told = said(slices.babysit(), 75)
    assert ENDS.format("lost", 3, 3, 0) in told
    assert slices.state()["slices"] == 3 and slices.state()["queue_now"] == []


def test_commands_by_hand(tmp_path: Path, tree: Path):
    slices = make_slices(tmp_path, tree)
    vm, hold = slices.vm, ["--run-dir", slices.run_dir, "--plan", "hold@2"]
    toy = ["run", "--", "python", "standin_run.py", *hold]
    said(vm("create"), 0)
    assert said(vm("create"), 2) == (
        "error: --name grpo-1: is there already (ACTIVE): choose another, or delete it "
        "first\n"
    )
    assert "nothing has been pushed" in said(vm(*toy), 2)
    said(vm("push"), 0)
    home = slices.root / "slice-1" / "0"
    (home / "rlhf_jax" / "runs" / "sft").mkdir(parents=True)
    assert "w-0: no Python yet: tpu/vm.sh setup" in said(vm(*toy), 2)
    said(vm("setup"), 0)
    assert "mount -t nfs -o vers=3,nolock" in (home / "machine.log").read_text()
    said(vm("push"), 0)
    assert (home / "rlhf_jax" / "runs" / "sft").is_dir()  # a push leaves runs/
    assert vm(*toy).stdout == "w-0: started\nw-1: started\n"
    assert vm(*toy).stdout == "w-0: runs already\nw-1: runs already\n"
    assert "w-0: a program is under way" in said(vm("push"), 2)
    assert "another program is under way" in said(vm("run", "--", "date"), 2)
    assert "another program is under way" in said(slices.babysit("other"), 2)
    told = vm("status").stdout
    assert "grpo-1: ACTIVE, machines READY\nworker w-0 running - " in told
    assert vm("stop").stdout == "w-0: asked to stop\nw-1: asked to stop\n"
    end = time.monotonic() + 20
    while not re.search(r"worker w-0 ended 75 2 ", vm("status").stdout):
        assert time.monotonic() < end, vm("logs").stdout
    assert "w-0: == " in vm("logs", "--lines", "1").stdout
    assert [vm("delete").returncode for _ in range(2)] == [0, 0]


def test_it_takes_over_what_is_under_way(tmp_path: Path, tree: Path):
    slices = make_slices(tmp_path, tree, taken=["preempted"])
    for command in ("create", "push", "setup"):
        said(slices.vm(command), 0)
    toy = ["python", "standin_run.py", "--run-dir", slices.run_dir]
    plan = ["--plan", "hold@2", "--resume"]
    said(slices.vm("run", "--", *toy, *plan), 0)
    told = said(slices.vm("babysit", "--", *toy, *plan), 0)
    assert told.startswith("grpo-1: the program is under way\n")
    assert slices.runs() == 2 and slices.steps() == [1, 2, 3, 4, 5]
    assert told.endswith("tpu/vm.sh delete --name grpo-1 --zone us-west4-a\n")


def test_a_disk_is_formatted_only_if_it_is_blank(tmp_path: Path, tree: Path):
    slices = make_slices(tmp_path, tree, workers=1)
    own = {"RLHF_TPU_NFS": "", "RLHF_TPU_DISK": "runs", "RLHF_TPU_PROJECT": "rlhf"}
    own |= {"RLHF_TPU_TYPE": "v5litepod-1"}
    for command in ("create", "push"):
        said(slices.vm(command, **own), 0)
    log = slices.root / "slice-1" / "0" / "machine.log"
    for found in ("0", "8"):  # a file system; the disk cannot be read
        said(slices.vm("setup", **own, STANDIN_BLKID=found), 0)
        assert "mount /dev/sdb" in log.read_text() and "mkfs" not in log.read_text()
        (log.parent / "mounted").unlink()
    said(slices.vm("setup", **own, STANDIN_BLKID="2"), 0)
    assert "mkfs.ext4 -q /dev/sdb" in log.read_text()
