"""The profile adds up, and says where an update's time goes."""

import json
import subprocess
import sys

import pytest

from experiments.traces import ELSE, KINDS, NOTHING, Event, kind_of, spend


def test_a_workload_is_cut_into_kinds_that_add_up(tmp_path):
    picture, out = tmp_path / "profile.png", tmp_path / "lines.jsonl"
    command = [sys.executable, "-m", "experiments.profile", "--warmup", "1"]
    command += ["--model", "M3", "--workload", "W2"]
    command += ["--picture", str(picture), "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    [line] = map(json.loads, out.read_text().splitlines())
    spent = sum(line[kind] for kind in (*KINDS, ELSE, NOTHING))
    assert spent == pytest.approx(line["seconds"], rel=1e-3)
    for kind in ("attention", "products of weights", "log-probs", "optimizer"):
        assert line[kind] > 0
    assert line["decoding"] == 0
    assert line[ELSE] < 0.1 * line["seconds"]
    assert picture.stat().st_size > 5_000


def test_untraced_time_belongs_to_the_product_before_it():
    product, norm = "products of weights", "activations and norms"
    _, spent = spend([Event(0, 1e9, product), Event(3e9, 4e9, norm)])
    assert (spent[product], spent[NOTHING]) == (3, 0)
    _, spent = spend([Event(0, 1e9, norm), Event(3e9, 4e9, product)])
    assert (spent[product], spent[NOTHING]) == (1, 2)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("sft_step jvp(CausalLM)/trunk/blocks/attn/attn._heads/q_proj/dot_general",
         "products of weights"),
        ("sft_step transpose(jvp(CausalLM))/trunk/blocks/attn/mul", "attention"),
        ("sft_step jvp(CausalLM)/trunk/blocks/mlp_norm/mul", "activations and norms"),
        ("sft_step transpose(jvp())/logprobs/dot_general", "products of weights"),
        ("sft_step jvp()/logprobs/exp", "log-probs"),
        ("sample_step jit(main)/while/body/attn/mul", "decoding"),
        ("sample_step jit(main)/CausalLM/attn/mul", "attention"),
        ("sft_step jit(main)/broadcast_in_dim", ELSE),
    ],
)  # fmt: skip
def test_an_operation_is_of_the_kind_that_its_path_says(path, kind):
    assert kind_of(path) == kind
