"""A small model learns to add from whether its answers are right: SFT → GRPO.

  python -m experiments.addition --seed 1 --run-dir runs/addition1

The model is trained from scratch on correct sums, and stopped early, while it is wrong
about as often as it is right. From then on it is shown no sum: a response gets 1 where
its final number is the answer, and 0 otherwise. Shao et al. 2024, arXiv:2402.03300.
"""

import dataclasses
import time
from pathlib import Path

from experiments import cli, policy, sft
from experiments.problems import problem_data, write_sums
from rlhf_jax.data.tokenizer import SMALLEST_VOCAB
from rlhf_jax.errors import UserError
from rlhf_jax.models import TransformerConfig
from rlhf_jax.optim import OptimConfig
from rlhf_jax.report import REPORT_FILE
from rlhf_jax.rundir import create_run_dir, save_json
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import POLICY_PRESETS, KLConfig, PolicyConfig
from rlhf_jax.terminal import print_table

MODEL = TransformerConfig(
    vocab_size=SMALLEST_VOCAB,  # bytes, so that every digit is a token
    d_model=128,
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    d_head=32,
    d_ff=384,
    max_length=32,
    scan_unroll=2,
)
SAMPLING = SamplingConfig(max_new_tokens=6, completions=8)
GRPO = POLICY_PRESETS["grpo"](SAMPLING)
GRPO = dataclasses.replace(GRPO, kl=KLConfig(coef=0.0), minibatches=2)


@dataclasses.dataclass(frozen=True)
class Config:
    """Supervised fine-tuning on sums, then GRPO with an exact-answer reward."""

    run_dir: Path = Path("runs/addition")
    """Where the problems and the stages go."""
    digits: int = 3
    """Of each number."""
    problems: int = 20_000
    """That GRPO may ask."""
    held_out: int = 512
    """Others, to evaluate on."""
    model: TransformerConfig = MODEL
    """The network."""
    sft_optim: OptimConfig = OptimConfig(1e-3, schedule="constant", warmup=20)
    """Optimiser of SFT."""
    sft_batch_size: int = 256
    """Sums an update."""
    sft_updates: int = 1_000
    """Most updates; each demonstration is seen once."""
    sft_loss: float = 0.22
    """Held-out loss, in nats a token, at which SFT stops."""
    algorithm: PolicyConfig = GRPO
    """The algorithm."""
    optim: OptimConfig = OptimConfig(3e-4, schedule="linear", warmup=5)
    """Optimiser of GRPO."""
    iterations: int = 600
    """Of GRPO."""
    batch_size: int = 1_024
    """Episodes an iteration."""
    devices: int | None = None
    """Number of devices; none uses all."""
    seed: int = 0
    """Of the problems, too."""
    resume: bool = False
    """Go on where an earlier run stopped."""

    def sizes(self) -> dict[str, int]:
        """How many problems are held out, asked by GRPO, shown by SFT."""
        shown = self.sft_updates * self.sft_batch_size
        return {"held_out": self.held_out, "problems": self.problems, "sums": shown}


def main(config: Config) -> dict[str, float]:
    """Runs both stages and returns the accuracy before and after the second."""
    run_dir = create_run_dir(config.run_dir, config, resume=config.resume)
    write_sums(run_dir, config.sizes(), config.digits, config.seed)
    began = time.perf_counter()
    began_from = fine_tune(config)
    sft_seconds = time.perf_counter() - began
    found = policy.main(grpo(config, began_from))
    results = {
        "accuracy after SFT": found["before/reward"],
        "accuracy after GRPO": found["after/reward"],
        "seconds of SFT": sft_seconds,
        "seconds of GRPO": time.perf_counter() - began - sft_seconds,
    }
    save_json(run_dir / "summary.json", results)
    title, found = f"{config.held_out} held-out sums", list(results.items())
    print_table(title, ["", "found"], found)
    print(f"accuracy over iterations: {run_dir / 'grpo' / REPORT_FILE}")
    return results


def fine_tune(config: Config) -> Path:
    """SFT until the held-out loss is low enough: how long it takes differs."""
    stage = sft.Config(
        config.run_dir / "sft",
        problem_data(config.run_dir, "sums"),
        model=config.model,
        optim=config.sft_optim,
        batch_size=config.sft_batch_size,
        epochs=1,
        eval_every=10,
        stop_loss=config.sft_loss,
        seed=config.seed,
        devices=config.devices,
        resume=config.resume,
    )
    if (loss := sft.main(stage)["sft/eval_loss"]) > config.sft_loss:
        raise UserError(
            f"sft_updates = {config.sft_updates}: the held-out loss is {loss:.2f} "
            f"after them, more than sft_loss = {config.sft_loss}; raise one of them"
        )
    return stage.run_dir


def grpo(config: Config, began_from: Path) -> policy.Config:
    """The second stage."""
    problems = problem_data(config.run_dir, "problems")
    return policy.Config(
        config.run_dir / "grpo",
        policy=began_from,
        reward="rlhf_jax.rewards:final_number_reward",
        data=dataclasses.replace(problems, columns={"completion": "answer"}),
        prompt_length=2 * config.digits + 3,  # with <bos>, + and =
        algorithm=config.algorithm,
        optim=config.optim,
        episodes=config.iterations * config.batch_size,
        batch_size=config.batch_size,
        eval_samples=config.held_out * config.algorithm.sampling.completions,
        save_every=config.iterations,
        seed=config.seed,
        devices=config.devices,
        resume=config.resume,
    )


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
