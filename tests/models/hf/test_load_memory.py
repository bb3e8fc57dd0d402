"""What loading takes beside the parameters themselves."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from rlhf_jax.models import CausalLM, TransformerConfig, init_params
from rlhf_jax.models.hf import save_pretrained

CONFIG = TransformerConfig(
    vocab_size=8_192,
    d_model=1_024,
    n_layers=4,
    n_heads=8,
    n_kv_heads=4,
    d_head=128,
    d_ff=2_816,
    max_length=64,
)

LOAD = """
import os
import sys

import jax

from rlhf_jax.models.hf import load_pretrained

def peak():
    with open("/proc/self/status") as file:
        return 1024 * int(file.read().split("VmHWM:")[1].split()[0])

jax.block_until_ready(jax.numpy.zeros(3) + 1)
open("/proc/self/clear_refs", "w").write("5")  # forget the peak of the imports
before = peak()
params = load_pretrained(sys.argv[1], param_dtype=sys.argv[2]).params
print(peak() - before - sum(x.nbytes for x in jax.tree.leaves(params)))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "llama"
    params = init_params(CausalLM(CONFIG), key=jax.random.key(0))
    save_pretrained(folder, params, CONFIG)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_beside_the_parameters_there_is_less_than_a_shard(folder, dtype):
    """256 MB, the largest tensor 34 MB; the memory of devices is the host's here.

    The compiler takes about 100 MB whatever the size: a whole file would be too much.
    """
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is measured where Linux tells it")
    [shard] = folder.glob("*.safetensors")
    command = [sys.executable, "-c", LOAD, str(folder), dtype]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 1.2 * shard.stat().st_size


def test_exported_weights_can_be_read_by_others(folder):
    """Every file has the mode that new files have here."""
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
