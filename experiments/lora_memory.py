"""Peak memory of PPO, all parameters trained against adapters on one shared base.

  python -m experiments.lora_memory

A Llama of 33.6 million parameters with random weights, float32, one device: 16 prompts
of 64 tokens, 64 new ones, 4 epochs of 1 minibatch; policy, reference, critic and reward
model of that size. Each variant is a process of its own, and its peak is what the
system counted; on the CPU that is arrays and program together. Activations are the same
with and without adapters; recomputing them (remat) shows the rest.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from experiments import cli, policy, reward_model
from experiments.benchmark_inputs import MODELS
from experiments.inputs import DataConfig
from experiments.runs import LoraOptions
from rlhf_jax.data import train_tokenizer
from rlhf_jax.models import CausalLM, init_params, num_params
from rlhf_jax.models.hf import save_pretrained
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import PretrainedConfig
from rlhf_jax.steps import PolicyConfig
from rlhf_jax.terminal import print_table

M25 = dataclasses.replace(MODELS["M25"], max_length=256)


@dataclasses.dataclass(frozen=True)
class Config:
    """Peak memory of PPO with and without adapters."""

    rank: int = 16
    """Of the adapters."""


def main(config: Config) -> None:
    """Runs both variants, and prints what their processes took at most."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        prepare(folder)
        program = peak_of("start", folder, None, False)
        peaks: dict[tuple[str, bool], int] = {}
        for name, rank in (("all parameters", None), ("adapters", config.rank)):
            peak_of("train_reward", folder, rank, False)
            for remat in (False, True):
                peak = peak_of("train_policy", folder, rank, remat)
                peaks[name, remat] = peak - program
    print_table(
        "PPO with policy, reference, critic and reward model of "
        f"{num_params(M25):,} parameters each",
        ["trained", "remat", "peak, MB", "share"],
        [
            [name, "yes" if remat else "no", peak / 1e6, peak / whole]
            for (name, remat), peak in peaks.items()
            for whole in [peaks["all parameters", remat]]
        ],
    )
    print(f"above the {program / 1e6:.0f} MB of Python and its libraries")


def prepare(folder: Path) -> None:
    """A base with its tokenizer, and pairs of the right length."""
    tokenizer = train_tokenizer([], vocab_size=259)  # bytes: a letter is a token
    params = init_params(CausalLM(M25), key=jax.random.key(0))
    save_pretrained(folder / "base", params, M25, tokenizer=tokenizer)
    pair = {"prompt": "a" * 63, "chosen": "b" * 63, "rejected": "c" * 63}
    (folder / "rows.jsonl").write_text((json.dumps(pair) + "\n") * 40)


def peak_of(function: str, folder: Path, rank: int | None, remat: bool) -> int:
    """Peak resident memory, in bytes, of one function below in its own process."""
    arguments = f"{str(folder)!r}, {rank}, {remat}"
    program = f"import experiments.lora_memory as m; m.{function}({arguments})"
    # Not the ru_maxrss of the child, which begins with that of its parent (Linux).
    program += f"; m.write_peak({str(folder)!r})"
    subprocess.run([sys.executable, "-c", program], check=True)
    return int((folder / "peak").read_text())


def write_peak(root: str) -> None:
    """Leaves what the kernel has counted for this process (VmHWM, in KiB)."""
    status = Path("/proc/self/status").read_text()
    [peak] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    Path(root, "peak").write_text(str(1024 * int(peak.split()[1])))


def start(root: str, rank: int | None, remat: bool) -> None:
    """Nothing but the program itself."""
    jax.block_until_ready(jax.numpy.zeros(()))


def train_reward(root: str, rank: int | None, remat: bool) -> None:
    """A few updates, so that there is a reward model."""
    reward_model.main(
        reward_model.Config(
            Path(root, f"reward_{rank}"),
            DataConfig(str(Path(root, "rows.jsonl")), eval_fraction=0.4),
            kind="pairwise",
            policy=Path(root, "base"),
            lora=LoraOptions(rank),
            batch_size=8,
            epochs=1,
            devices=1,
        )
    )


def train_policy(root: str, rank: int | None, remat: bool) -> None:
    """Two iterations of PPO."""
    policy.main(
        policy.Config(
            Path(root, f"ppo_{rank}_{remat}"),
            policy=Path(root, "base"),
            reward=str(Path(root, f"reward_{rank}")),
            data=DataConfig(str(Path(root, "rows.jsonl")), eval_fraction=0.4),
            prompt_length=64,
            algorithm=PolicyConfig(
                sampling=SamplingConfig(max_new_tokens=64), epochs=4
            ),
            lora=LoraOptions(rank),
            pretrained=PretrainedConfig(remat=remat),
            episodes=32,
            batch_size=16,
            eval_samples=16,
            devices=1,
        )
    )


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
