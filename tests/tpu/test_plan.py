"""Plans: what phases hold, move and send, and what is said where they do not fit."""

import dataclasses
import importlib.util
import json

import jax
import pytest

from experiments.runs import LoraOptions
from rlhf_jax.errors import UserError
from rlhf_jax.models import TransformerConfig, lora
from rlhf_jax.sharding import make_mesh, state_shardings
from tpu import memory, plan, table
from tpu.chips import CHIPS, find_slice
from tpu.counts import Count, Refused, bytes_a_chip, count_phase
from tpu.decoders import DECODERS, find_decoder
from tpu.hlo import parse
from tpu.phases import Work, make_iteration
from tpu.planning import Config, Plan, make_plan, make_work
from tpu.traffic import traffic

MODEL = TransformerConfig(
    vocab_size=96,
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    d_head=8,
    d_ff=24,
    max_length=16,
)
WORK = Work("ppo", MODEL, 8, 8, 8)
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="pip install '.[tpu]'"
)


def test_phases_are_those_of_the_algorithm():
    names = lambda **change: [
        phase.name for phase in make_iteration(dataclasses.replace(WORK, **change))[0]
    ]
    assert names() == ["sample", "score", "compare", "update"]
    assert names(algorithm="grpo", completions=4, judged=False) == [
        "sample",
        "compare",
        "update",
    ]
    for algorithm in ("sft", "reward", "dpo"):
        assert names(algorithm=algorithm) == ["update"]


def test_adapters_share_their_base():
    """The base of policy and reference is there once; judge and critic have another."""
    size = lambda work: bytes_a_chip(
        make_iteration(work).resident, make_mesh(jax.devices()[:1])
    )
    whole = size(WORK)
    adapted = size(dataclasses.replace(WORK, adapters=lora.LoraConfig(rank=1)))
    weights = size(dataclasses.replace(WORK, algorithm="sft")) / 3  # and two moments
    assert whole == pytest.approx(8 * weights, rel=0.25)  # 3 · 2 trained, 2 frozen
    assert adapted == pytest.approx(2 * weights, rel=0.25)


def test_a_chip_has_its_part_of_what_is_there():
    mesh = make_mesh(jax.devices()[:4], fsdp=4)
    resident = make_iteration(WORK).resident
    parts = zip(
        jax.tree.leaves(resident),
        jax.tree.leaves(state_shardings(resident, mesh)),
        strict=True,
    )
    size = sum(
        leaf.dtype.itemsize * jax.numpy.prod(jax.numpy.array(s.shard_shape(leaf.shape)))
        for leaf, s in parts
    )
    assert bytes_a_chip(resident, mesh) == size


@pytest.fixture(scope="module")
def counted():
    """PPO's update on four simulated devices."""
    mesh, iteration = make_mesh(jax.devices()[:4], fsdp=4), make_iteration(WORK)
    return count_phase(iteration.phases[-1], mesh, iteration.resident)


def test_what_waits_is_counted_beside_an_update(counted):
    """The reference and the judge are no arguments of the update, and stay there."""
    mesh, iteration = make_mesh(jax.devices()[:4], fsdp=4), make_iteration(WORK)
    _, reference, judge = iteration.resident
    waiting = bytes_a_chip((reference, judge), mesh)
    alone = count_phase(iteration.phases[-1], mesh, iteration.resident[:1])
    assert isinstance(alone, Count) and counted.peak == alone.peak + waiting


def test_the_busiest_resource_bounds_a_phase():
    chip = CHIPS["v5e"]
    count = Count(1.0, flops=chip.flops, moved=3 * chip.bandwidth, sent={})
    assert count.seconds(chip) == 3 and count.bound(chip) == "memory"
    sent = {"all-gather": 2 * chip.links, "all-reduce": 2 * chip.links}
    count = count._replace(sent=sent)
    assert count.seconds(chip) == 4 and count.bound(chip) == "links"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v9-8", "expected one of v4, v5e, v5p, v6e"),
        ("v5p-12", "no such size of v5p; expected one of v5p-2, v5p-8"),
        ("v5e", "no such size of v5e"),
    ],
)
def test_slices_that_are_not_there(name, words):
    with pytest.raises(UserError, match=words):
        find_slice(name)


def test_a_decoder_from_its_config_json(tmp_path):
    """Of DECODERS, Llama 3.1's from what its checkpoint says."""
    raw = {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": 4_096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8_192,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert find_decoder(str(tmp_path)) == DECODERS["Llama-3.1-8B"]


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen3-0.6B", 0.596),
        ("Llama-3.2-1B", 1.236),
        ("Llama-3.1-8B", 8.030),
        ("Llama-3.1-70B", 70.554),
    ],
)
def test_decoders_have_as_many_parameters_as_their_cards_say(name, billions):
    work = make_work(Config(model=name, algorithm="sft"))
    state, _ = make_iteration(work).resident
    found = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert found / 1e9 == pytest.approx(billions, abs=6e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"rows": 12}, "completions = 8"), ({"micro_batches": 3}, "micro_batches = 3")],
)
def test_rows_that_are_left_over(change, words):
    with pytest.raises(UserError, match=f"rows = .*: expected a multiple of {words}"):
        Config(**change)


def test_changes_begin_with_what_costs_least():
    config = Config(remat=False, rows=64, algorithm="dpo")
    words = [words for words, _ in plan.smaller(config, rows=4)]
    assert words[:3] == ["--remat", "--micro-batches 2", "--micro-batches 4"]
    assert words[-1] == "--lora.rank 16"
    adapted = dataclasses.replace(config, remat=True, lora=LoraOptions(rank=16))
    assert [words for words, _ in plan.smaller(adapted, rows=1)] == [
        "--param-dtype bfloat16"
    ]


def test_what_is_refused_does_not_fit(counted, capsys):
    config, on = Config(), find_slice("v5e-16")
    found = Plan(config, on, 16, {"sample": counted, "update": Refused(40e9)}, 1e9)
    assert not found.fits and found.peak == 40e9
    plan.show(found)
    assert "refused: 40.0" in capsys.readouterr().out
    assert "| no |" in table.line("8B", found, config)


def test_a_table_keeps_the_lines_of_other_plans(tmp_path, counted, monkeypatch):
    found = Plan(Config(), find_slice("v5e-16"), 16, {"update": counted}, 1e9)
    monkeypatch.setattr(table, "make_plan", lambda config: found)
    out = tmp_path / "plans.md"
    for only in (("8B DPO",), ("8B PPO", "0.6B GRPO"), ("8B PPO",)):
        lines = table.main(table.TableConfig(only, out))
    assert [line.split(" | ")[0] for line in lines] == [
        "| 0.6B GRPO",
        "| 8B PPO",
        "| 8B DPO",
    ]
    assert out.read_text() == table.header() + "\n".join(lines) + "\n"
    with pytest.raises(UserError, match=r"only = 8b: expected 0\.6B GRPO, "):
        table.TableConfig(("8b",))


def test_memory_of_the_chip_alone():
    """What lies in vector memory, S(1), is not moved."""
    text = """
ENTRY %main (x: f32[4], y: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %y = f32[4]{0:S(1)} parameter(1)
  ROOT %z = f32[4]{0} add(%x, %y)
}"""
    assert sum(traffic(parse(text)).values()) == 48
    assert sum(traffic(parse(text, on_chip=False)).values()) == 32


def test_loops_that_count_in_steps():
    text = """
%body (p: (u32[])) -> (u32[]) {
  %p = (u32[]) parameter(0)
  %two = u32[] constant(2)
  %i = u32[] get-tuple-element(%p), index=0
  %next = u32[] add(%i, %two)
  ROOT %t = (u32[]) tuple(%next)
}

%until (q: (u32[])) -> pred[] {
  %q = (u32[]) parameter(0)
  %at = u32[] get-tuple-element(%q), index=0
  %n = u32[] constant(7)
  ROOT %less = pred[] compare(%at, %n), direction=LT
}

ENTRY %main (x: (u32[])) -> (u32[]) {
  %x = (u32[]) parameter(0)
  ROOT %loop = (u32[]) while(%x), condition=%until, body=%body
}"""
    assert dict(parse(text).runs()) == {"main": 1, "body": 4}


def test_of_branches_the_one_with_products():
    text = """
%small (a: f32[2,2]) -> f32[2,2] {
  ROOT %a = f32[2,2] parameter(0)
}

%large (b: f32[2,2]) -> f32[2,2] {
  %b = f32[2,2] parameter(0)
  ROOT %d = f32[2,2] dot(%b, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: f32[2,2], p: s32[]) -> f32[2,2] {
  %x = f32[2,2] parameter(0)
  %p = s32[] parameter(1)
  ROOT %c = f32[2,2] conditional(%p, %x, %x), branch_computations={%small, %large}
}"""
    assert dict(parse(text).runs()) == {"main": 1, "large": 1}


def test_planned_memory_is_measured():
    """Of an update of 6 million parameters on the CPU; 15 % is asked for."""
    ((planned, measured),) = memory.main(memory.Config(("sft",), rows=8)).values()
    assert planned == pytest.approx(measured, rel=0.15)


@needs_libtpu
def test_a_plan_for_a_chip(monkeypatch, capsys):
    """Phases compile for v5e; loops of responses count at their full length."""
    monkeypatch.setitem(DECODERS, "toy", MODEL)
    config = Config(
        "v5e-1", "toy", rows=8, prompt_length=8, new_tokens=8, completions=4, price=1.0
    )
    found = plan.main(config)
    assert found.fits and list(found.phases) == ["sample", "compare", "update"]
    assert all(count.flops > 0 and not count.sent for count in found.counts)
    longer = make_plan(dataclasses.replace(config, new_tokens=16), only=["sample"])
    ratio = longer.counts[0].flops / found.counts[0].flops
    assert 1.6 < ratio < 2.6
    assert "Fits:" in capsys.readouterr().out
