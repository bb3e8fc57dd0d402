"""Scripts whose models lie in parts: as on one device, resumed, and read later."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from mesh_stages import forget_last
from pairs import start_pair
from stage_toys import TOY

from experiments import export, policy, preference, reward_model, sft
from experiments.logs import show_plan
from experiments.runs import LoraOptions, MeshConfig
from rlhf_jax import checkpoint, parallel, placement
from rlhf_jax.errors import UserError
from rlhf_jax.models import CausalLM, init_params
from rlhf_jax.sharding import make_mesh
from rlhf_jax.stages import load_stage
from rlhf_jax.tracking import read_metrics

FSDP, BOTH = MeshConfig(fsdp=4), MeshConfig(fsdp=2, tensor=2)
SHAPES = jax.eval_shape(lambda: init_params(CausalLM(TOY), key=jax.random.key(0)))
LARGE = 64  # numbers of their smallest kernel
# Differences of log-probs near 0 are rounding: of 45 nats in float32, some 1e-6.
NEAR: Any = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(autouse=True, scope="module")
def quick_compilation_and_a_host_of_its_own():
    """What is on the host is on a device that no mesh has."""
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(placement, "host_device", lambda: jax.devices()[7])
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def in_parts(main: Callable, config: Any) -> None:
    """Runs it; whenever a batch is placed, each device of the mesh has parts alone.

    Of all arrays with the shape of a weight; not of those that were there before.
    """
    others, place_rows = jax.live_arrays(), placement.place_rows
    known, mesh_devices = {id(x) for x in others}, set(jax.devices()[:4])
    weights = {x.shape for x in jax.tree.leaves(SHAPES) if x.size >= LARGE}
    found = {True: 0, False: 0}

    def look(batch: Any, mesh: Any) -> Any:
        for x in jax.live_arrays():
            if id(x) not in known and x.sharding.device_set & mesh_devices:
                if x.shape in weights:
                    found[x.sharding.shard_shape(x.shape) == x.shape] += 1
        return place_rows(batch, mesh)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(parallel, "place_rows", look)
        main(config)
    assert found[False] > 30 and not found[True]


def metrics(run_dir: Path) -> list[dict[str, float]]:
    return read_metrics(run_dir / "metrics.jsonl")


def assert_near(run_dir: Path, expected: Path) -> None:
    found = metrics(run_dir)
    assert len(found) == len(metrics(expected)) >= 2
    for a, b in zip(found, metrics(expected), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], **NEAR, err_msg=name)


def params_of(run_dir: Path, kind: Any = "policy") -> Any:
    stage = load_stage(run_dir, kind, option="--policy")
    return stage.params, stage.adapters


def on(mesh: MeshConfig, **changes: Any) -> dict[str, Any]:
    return {"devices": 4, "mesh": mesh} | changes


@pytest.fixture(scope="module")
def supervised(toys, tmp_path_factory) -> Path:
    """The toys' run in four parts, two micro-batches an update."""
    folder = tmp_path_factory.mktemp("mesh")
    in_parts(sft.main, toys.sft(folder / "sft", **on(FSDP, micro_batches=2)))
    return folder


def test_sft_in_parts_is_that_of_one_device(toys, supervised):
    assert_near(supervised / "sft", toys.root / "sft")
    found, expected = params_of(supervised / "sft"), params_of(toys.root / "sft")
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
    export.main(export.Config(supervised / "sft", supervised / "exported"))
    assert (supervised / "exported/model.safetensors").is_file()


@pytest.mark.slow
def test_sft_is_resumed_in_the_same_parts_in_others_and_in_none(toys, supervised):
    began = supervised / "sft"
    for name, changes in {
        "same": on(FSDP, micro_batches=2),
        "both": on(BOTH, micro_batches=2),
        "none": {"micro_batches": 2},
    }.items():
        forget_last(began, supervised / name)
        config = toys.sft(supervised / name, resume=True, **changes)
        in_parts(sft.main, config) if name != "none" else sft.main(config)
        assert_near(supervised / name, toys.root / "sft")
    read = lambda run_dir: (run_dir / "metrics.jsonl").read_bytes()
    assert read(supervised / "same") == read(began)
    moments = lambda run_dir: checkpoint.restore_params(
        run_dir / "checkpoints", "opt_state"
    )
    chex.assert_trees_all_equal(moments(supervised / "same"), moments(began))
    chex.assert_trees_all_equal(params_of(supervised / "same"), params_of(began))


@pytest.fixture(scope="module")
def alone(toys, tmp_path_factory) -> Callable[[str], Path]:
    """The run directory of a later stage on one device, by its name."""
    folder = tmp_path_factory.mktemp("alone")

    def run(name: str) -> Path:
        if not (folder / name).exists():
            main, config = later(toys, folder / name)[name]
            main(config)
        return folder / name

    return run


def later(toys: Any, folder: Path) -> dict[str, tuple[Callable, Any]]:
    """A reward model, DPO of adapters, PPO with a critic, by their names."""
    lora = LoraOptions(rank=2)
    return {
        "reward": (
            reward_model.main,
            toys.reward(folder, normalize=True, normalize_samples=4),
        ),
        "preference": (preference.main, toys.preference(folder, lora=lora)),
        "ppo": (policy.main, toys.policy(folder)),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mesh"), [("reward", FSDP), ("preference", BOTH), ("ppo", BOTH)]
)
def test_later_stages_in_parts_are_those_of_one_device(
    toys, alone, tmp_path, name, mesh
):
    main, config = later(toys, tmp_path / name)[name]
    in_parts(main, dataclasses.replace(config, **on(mesh)))
    assert_near(tmp_path / name, alone(name))
    kind = "reward" if name == "reward" else "policy"
    found, expected = params_of(tmp_path / name, kind), params_of(alone(name), kind)
    if name == "reward":  # pairs give it no gradient: it goes where rounding does
        for params in (found, expected):
            params[0]["score_head"].pop("bias")
    chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-5)
    if name == "ppo":
        assert completions(tmp_path / name) == completions(alone(name))


@pytest.mark.slow
def test_ppo_in_parts_is_resumed_exactly(toys, tmp_path):
    config = toys.policy(tmp_path / "ppo", **on(BOTH))
    policy.main(config)
    forget_last(tmp_path / "ppo", tmp_path / "resumed")
    again = dataclasses.replace(config, run_dir=tmp_path / "resumed", resume=True)
    in_parts(policy.main, again)
    chex.assert_trees_all_equal(params_of(again.run_dir), params_of(config.run_dir))
    read = lambda run_dir: (run_dir / "metrics.jsonl").read_bytes()
    assert read(again.run_dir) == read(config.run_dir)


def completions(run_dir: Path) -> list[str]:
    """What the policy wrote before and after, and so what it drew."""
    lines = (run_dir / "samples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row[when]["completion"] for row in rows for when in ("before", "after")]


def test_what_cannot_be_is_said_in_a_line(toys, tmp_path):
    refused = {
        "fsdp = 3, sequence = 1 and tensor = 1 on 8 devices": {
            "devices": 8,
            "mesh": MeshConfig(fsdp=3),
        },
        "micro_batches = 4: .* the 2 rows .* each of 4 parts of the mesh": on(
            FSDP, micro_batches=4
        ),
        "the 1.5 rows .* each of 4 parts of the mesh": on(FSDP, batch_size=6),
    }
    for message, changes in refused.items():
        with pytest.raises(UserError, match=message):
            sft.main(toys.sft(tmp_path / "no", **changes))
        shutil.rmtree(tmp_path / "no", ignore_errors=True)
    with pytest.raises(UserError, match="mesh.tensor = 0: expected 1 device or more"):
        MeshConfig(tensor=0)


def test_a_plan_tells_what_each_device_holds(capsys):
    """A quarter of 5440 numbers, and the norms' 24; of two parts, of both, half."""
    plan: Any = {"steps": 1, "rows": 8, "length": 16, "micro_batches": 1}
    plan |= {"trained": SHAPES, "frozen": None}
    devices = jax.devices()[:4]
    show_plan("toy", TOY, devices=make_mesh(devices, fsdp=4), **plan)
    said = capsys.readouterr().out
    assert "4 × cpu: fsdp 4" in said and "weights 5.54 kB" in said
    show_plan("toy", TOY, devices=make_mesh(devices, fsdp=2), **plan)
    said = capsys.readouterr().out
    assert "4 × cpu: data 2 × fsdp 2" in said and "weights 11 kB" in said
    show_plan("toy", TOY, devices=devices, **plan)
    assert "weights 21.9 kB" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_with_a_mesh_over_both_are_as_one_device(toys, alone, tmp_path):
    """SFT, stopped and resumed, and PPO; fsdp 2, tensor 2, two devices each."""
    script = Path(__file__).parent.parent / "mesh_stages.py"
    command = [sys.executable, script, toys.root, tmp_path / "two"]
    pair = start_pair(tmp_path / "out", [command] * 2, heartbeat_s=30, devices=2)
    try:
        for process in range(2):
            assert pair.wait(process, 400) == 0, pair.error(process)
    finally:
        pair.kill()
    two = tmp_path / "two"
    assert_near(two / "sft", toys.root / "sft")
    assert_near(two / "ppo", alone("ppo"))
    assert completions(two / "ppo") == completions(alone("ppo"))
    read = lambda name: (two / name / "metrics.jsonl").read_bytes()
    assert read("resumed") == read("sft")
