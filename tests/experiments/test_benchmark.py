"""The benchmark runs at toy size, and counts what it says that it counts."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

from experiments import benchmark, curves, logits_memory, peers
from experiments.benchmark_inputs import MODELS, pairs, prompts
from experiments.limits import decode_products, product_shapes, weight_products
from experiments.measure import take_devices, time_workload
from experiments.timing import Case, ForeignCPU, Workload, alternate, report
from experiments.workloads import WORKLOADS
from rlhf_jax.errors import UserError
from rlhf_jax.models import TransformerConfig, num_params
from rlhf_jax.parallel import local_devices

M0 = TransformerConfig(
    vocab_size=96,
    d_model=16,
    n_layers=2,
    n_heads=2,
    n_kv_heads=1,
    d_head=8,
    d_ff=32,
    max_length=256,
)
UNITS = {
    "W1": "new tokens/s",
    "W2": "tokens/s",
    "W3": "pairs/s",
    "W4": "pairs/s",
    "W5": "episodes/s",
    "W6": "completions/s",
}
KEYS = {
    *("workload", "model", "peer", "value", "unit", "spread", "sec_median", "n"),
    *("peak_rss_mb", "foreign_cpu", "jax", "devices"),
}


@pytest.mark.parametrize(("name", "count"), [("M25", 33_563_136), ("M3", 3_049_920)])
def test_models_are_of_the_peers_size(name, count):
    assert num_params(MODELS[name]) == count
    embedding = MODELS[name].vocab_size * MODELS[name].d_model
    norms = (2 * MODELS[name].n_layers + 1) * MODELS[name].d_model
    products = sum(rows * columns for rows, columns in product_shapes(MODELS[name]))
    assert products == count - embedding - norms


def test_ids_are_those_of_the_peers():
    drawn = np.random.default_rng(0).integers(3, 96, size=(2 * 4, 6), dtype=np.int64)
    batches = prompts(M0, 4, 6)
    for rows in (drawn[:4], drawn[4:]):  # each iteration goes on where the last ended
        np.testing.assert_array_equal(next(batches).tokens, rows)
    pair = next(pairs(M0, 2, 8, prompt=3))
    assert (pair.chosen.tokens[:, :3] == pair.rejected.tokens[:, :3]).all()
    assert (pair.chosen.tokens != pair.rejected.tokens).any()
    assert pair.chosen.mask.sum(1).tolist() == [5, 5]


CASES = benchmark.Config(model=("M3",)).cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_workloads_report_a_rate(case):
    line = time_workload(case, M0, local_devices(2), warmup=1, reps=1)
    assert line.keys() >= KEYS
    assert line["value"] > 0 and line["unit"] == UNITS[case.workload]
    assert (line["n"], line["devices"], line.get("beta")) == (1, 2, case.beta)
    json.dumps(line)


def test_decoding_draws_every_token():
    timed = WORKLOADS["W1"](M0, local_devices(1))
    rollout = timed.run()
    assert rollout.batch.tokens.shape == (1, 16, 64 + 128)
    assert rollout.batch.mask.sum() == timed.items


def test_rate_is_items_over_the_median_time():
    calls = []
    a = Workload(lambda: calls.append("a"), 6, "pairs/s")
    b = Workload(lambda: calls.append("b"), 1, "pairs/s")
    times = alternate([a, b], warmup=1, reps=3)
    assert "".join(calls) == "ab" + "ab" * 3 and [len(t) for t in times] == [3, 3]
    line = report("W", "M", "p", a, [1.0, 2.0, 3.0], foreign=ForeignCPU(), more=1)
    assert (line["value"], line["spread"], line["more"]) == (3.0, [2.0, 6.0], 1)


def test_limits_of_decoding():
    timed = weight_products(M0, local_devices(2), rows=4)
    moved = timed.run()
    assert {k: v.shape for k, v in moved.items()} == {16: (2, 2, 16), 32: (2, 2, 32)}
    assert timed.items == 4 * 64
    timed = decode_products(M0, local_devices(2), rows=4, prompt=3, new=5)
    found = timed.run()
    assert {k: v.shape for k, v in found.items()} == {
        k: v.shape for k, v in moved.items()
    }
    assert timed.items == 4 * 5


def test_curves_have_a_point_and_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "QUEUE", 8)
    monkeypatch.setattr(curves, "QUEUE_NEW", 16)
    devices = local_devices(1)
    lines = [
        curves.batch_point("M0", M0, devices, batch=2, reps=1),
        curves.context_point("M0", M0, devices, context=80, reps=1),
        curves.slots_point("M0", M0, devices, slots=4, reps=1),
        curves.memory_point("M0", M0, context=80),
    ]
    assert [line["curve"] for line in lines] == list(curves.PANELS)
    assert all(line["value"] > 0 for line in lines)
    # 2 (keys and values) · 2 layers · 1 head · 8 · 4 bytes, for 4 rows of 80 tokens.
    assert lines[-1]["cache_mb"] == round(128 * 4 * 80 / 1e6, 3)
    assert lines[-1]["value"] >= lines[-1]["cache_mb"]
    curves.draw(lines, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1_000


PEER = """
import json, os, sys
name = os.path.basename(sys.argv[0])
if "static" in sys.argv:
    sys.exit("no static cache today")
if "compile" in sys.argv and "LD_PRELOAD" in os.environ:
    import time; time.sleep(60)
print("some noise")
value = {"bench_trl.py": 10.0, "bench_tunix.py": 20.0}[name]
print(json.dumps({"value": value, "unit": "tokens/s", "argv": sys.argv[1:]}))
"""


@pytest.fixture
def fake_peers(tmp_path):
    """Scripts that answer at once, and environments whose Python is this one."""
    folder, envs = tmp_path / "peers", tmp_path / "envs"
    folder.mkdir()
    for script in peers.SCRIPTS:
        (folder / script).write_text(PEER)
    for env in ("trl", "tunix"):
        (envs / env / "bin").mkdir(parents=True)
        (envs / env / "bin" / "python").symlink_to(sys.executable)
    (envs / "trl_ppo").mkdir()
    (envs / "mkl_amd.so").touch()
    return folder, envs


def test_comparison_takes_medians_and_keeps_failures(
    fake_peers, tmp_path, monkeypatch, capsys
):
    ours = tmp_path / "ours.py"
    ours.write_text(
        "import json, pathlib\n"
        "seen = pathlib.Path('seen')\n"
        "seen.write_text((seen.read_text() if seen.exists() else '') + '.')\n"
        "value = [30, 50, 34][len(seen.read_text()) - 1]\n"
        "print(json.dumps({'value': value, 'unit': 'tokens/s'}))\n"
    )
    variant = peers.Variant(
        "rlhf_jax × 1", "", [sys.executable, str(ours)], {}, tmp_path
    )
    monkeypatch.setattr(peers, "our_variants", lambda *_: [variant])
    folder, envs = fake_peers
    config = benchmark.Config(
        model=("M3",),
        workload=("W1",),
        peers=folder,
        envs=envs,
        rounds=3,
        timeout=2.0,
        quiet=0.0,
        out=tmp_path / "lines.jsonl",
    )
    benchmark.main(config)
    lines = [json.loads(x) for x in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert len(lines) == 3 * (2 * 3 + 1 + 1) + 1
    row = lines[-1]
    assert row["medians"]["rlhf_jax × 1"] == 34
    assert row["medians"]["TRL eager"] == 10 and row["medians"]["Tunix"] == 20
    assert row["medians"]["TRL static"] is None
    assert row["ratio"] == pytest.approx(34 / 20)
    errors = {line["error"] for line in lines if "error" in line}
    assert errors == {
        "exit code 1: no static cache today",
        "no result within 2 s; give --timeout more",
    }
    shown = capsys.readouterr().out
    assert "1.7" in shown and "failed: TRL static, W1 M3, round 1: exit code 1" in shown


def test_peers_get_their_options(fake_peers):
    folder, envs = fake_peers
    case = Case("W6", "M3", 0.0)
    trl, fast, tunix = peers.peer_variants(case, folder, envs, reps=2)
    assert trl.command[2:] == [
        *("--workload", "W6", "--model", "M3", "--reps", "2", "--beta", "0.0")
    ]
    assert fast.env["LD_PRELOAD"].endswith("mkl_amd.so")
    assert tunix.command[:2] == [str(envs / "tunix/bin/python"), "bench_tunix.py"]
    ppo = peers.peer_variants(Case("W5", "M3"), folder, envs, reps=2)
    assert ppo[0].env["PYTHONPATH"].endswith("trl_ppo")
    sft = peers.peer_variants(Case("W2", "M3"), folder, envs, reps=2)
    names = [variant.name for variant in sft]
    assert names == ["", "bare loop", "", "bare loop", ""]


def test_what_is_unknown_or_missing_is_one_line(fake_peers, tmp_path):
    with pytest.raises(UserError, match="--model M7: expected some of M25, M3"):
        benchmark.main(benchmark.Config(model=("M7",)))
    with pytest.raises(UserError, match="--workload W9: expected some of W1, W2"):
        benchmark.main(benchmark.Config(workload=("W9",)))
    with pytest.raises(UserError, match="no common.py there"):
        benchmark.main(benchmark.Config(peers=tmp_path / "nowhere"))
    folder, _ = fake_peers
    config = benchmark.Config(peers=folder, envs=tmp_path / "nowhere")
    with pytest.raises(
        UserError, match="install the peers' environments with setup.sh"
    ):
        benchmark.main(config)


def test_devices_that_are_taken():
    assert len(take_devices(2)) == 2
    assert jax.local_device_count() == 8  # those of the tests: the backend has started


def test_a_step_without_logits_needs_less():
    model = dataclasses.replace(M0, vocab_size=20_000)
    config = logits_memory.Config(model, rows=(1,))
    [(whole, less)] = logits_memory.main(config)
    assert less < 0.8 * whole
