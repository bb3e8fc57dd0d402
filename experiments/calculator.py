"""A small model learns to call a calculator, from whether its answers are right.

  python -m experiments.calculator
  python -m experiments.calculator --seed 1 --run-dir runs/calculator1

It is asked for products that it cannot compute, such as 347*892=. Half of the
demonstrations call the calculator, [347*892], read what it answers, and repeat that;
half say the product at once. GRPO then rewards exact answers. What the calculator says
is context, outside GRPO's loss (arXiv:2402.03300; turns of a tool: arXiv:2210.03629).
Measured: see docs/interaction.md.
"""

import dataclasses
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments import addition, cli, sft
from experiments.aside import finish_run
from experiments.inputs import read_prompts
from experiments.interactions import Conversed, make_converse
from experiments.problems import problem_data, write_products
from experiments.resuming import resume_state, saving, start_run
from experiments.runs import ResumeConfig, on_batches
from experiments.watching import Watch, WatchConfig
from rlhf_jax.data import encode_texts
from rlhf_jax.interaction import InteractionConfig, calculator
from rlhf_jax.models import TransformerConfig, policy_apply
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.parallel import data_parallel, local_devices, replicate, shard
from rlhf_jax.rewards import final_number_reward
from rlhf_jax.rundir import save_json
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import FLOAT32, load_policy, pad_id, save_model_files
from rlhf_jax.steps import (
    POLICY_PRESETS,
    KLConfig,
    PolicyConfig,
    create_policy_state,
    experience_step,
    policy_step,
)
from rlhf_jax.terminal import print_table, progress
from rlhf_jax.tracking import MetricsLogger, TrackingConfig
from rlhf_jax.types import Array

MODEL = dataclasses.replace(addition.MODEL, max_length=64)
GRPO = POLICY_PRESETS["grpo"](SamplingConfig(max_new_tokens=20, completions=8))
GRPO = dataclasses.replace(GRPO, kl=KLConfig(coef=0.0))


@dataclasses.dataclass(frozen=True)
class Config(WatchConfig, ResumeConfig):
    """Supervised fine-tuning on few demonstrations, then GRPO with a calculator."""

    run_dir: Path = Path("runs/calculator")
    """Where the problems and the stages go."""
    digits: int = 3
    """Of each factor."""
    demonstrations: int = 48_000
    """Products that are shown once, half of them with calls."""
    problems: int = 10_000
    """Others, that GRPO may ask."""
    held_out: int = 512
    """Others again, to evaluate on."""
    model: TransformerConfig = MODEL
    """The network."""
    sft_optim: OptimConfig = OptimConfig(1e-3, schedule="cosine", warmup=20)
    """Optimiser of SFT."""
    algorithm: PolicyConfig = GRPO
    """The algorithm; its response budget is that of all turns together."""
    optim: OptimConfig = OptimConfig(2e-4, schedule="linear", warmup=5)
    """Optimiser of GRPO."""
    iterations: int = 70
    """Of GRPO."""
    batch_size: int = 512
    """Episodes an iteration."""
    devices: int | None = None
    """Number of devices; none uses all."""
    seed: int = 0
    """Of the problems, too."""
    save_every: int = 20
    """Iterations between checkpoints."""

    def __post_init__(self):
        self.check_watched(kl=bool(self.algorithm.kl.coef), softens=False)


def main(config: Config) -> dict[str, float]:
    """Trains, and returns the accuracy before and after GRPO, with and without tool."""
    run_dir = start_run(config)
    devices, began = local_devices(config.devices), time.perf_counter()
    sizes = {x: getattr(config, x) for x in ("demonstrations", "problems", "held_out")}
    write_products(run_dir, sizes, config.digits, config.seed)
    fine_tune(config)
    sft_seconds = time.perf_counter() - began

    # 1. The policy, what it is asked, and the parts of an iteration.
    policy = load_policy(run_dir / "sft", FLOAT32)
    tokenizer, apply_fn = policy.tokenizer, policy_apply(policy.model)
    sampling = dataclasses.replace(
        config.algorithm.sampling, stop_ids=policy.stop_ids, pad_id=pad_id(tokenizer)
    )
    algorithm = dataclasses.replace(config.algorithm, sampling=sampling)
    width = 2 * config.digits + 3  # with <bos>, * and =
    options: Any = {"lengths": (width,), "run_dir": run_dir, "seed": config.seed}
    prompts = read_prompts(problem_data(run_dir, "problems"), tokenizer, **options)
    completions = sampling.completions
    loader = prompts.loader(config.batch_size // completions, seed=config.seed)
    asked = prompts.held_out_batch(config.held_out)
    [turn_ids] = encode_texts(tokenizer, ["]"])
    turns = InteractionConfig(turn_ids, turns=2, env_tokens=2 * config.digits)
    converse = make_converse(policy, sampling, turns, devices)
    prepare = partial(experience_step, ref_apply_fn=apply_fn, config=algorithm)
    ins = (None, None, 0, 0)
    compare = data_parallel(prepare, devices, in_axes=ins, out_axes=(0, None))
    update = on_batches(policy_step, devices, donate_state=True, config=algorithm)
    tx = make_optimizer(config.optim, config.iterations)
    whole = create_policy_state(apply_fn, policy.params, tx, kl_coef=0.0)
    state = replicate(whole, devices)
    key, tool = jax.random.key(config.seed), calculator("[", "]")

    def evaluate(environment=tool) -> dict[str, float]:
        drawn = {"key": jax.random.fold_in(key, 0), "completions": 1}
        return summary(converse(state.params, asked, environment, **drawn))

    # 2. Training: sample with the calculator, score, compare, update.
    before, total = evaluate(), config.iterations
    whole, start = resume_state(config, whole, loader, tokenizer, policy=policy)
    state = replicate(whole, devices)
    save_model_files(run_dir, policy.model, tokenizer, began=policy, lora=None)
    watch = Watch(run_dir, config, start, total)
    logger = MetricsLogger(run_dir, TrackingConfig(), restored_step=start)
    bar = progress("GRPO with a calculator", total, done=start or 0)
    with logger, bar as advance, saving(config, total, loader, watch) as saves:
        for step in watch.steps():
            keys: Array = jax.random.split(jax.random.fold_in(key, step))
            found = converse(
                state.params, next(loader), tool, key=keys[0], completions=completions
            )
            given = shard((found.rollout, scores(found)), devices)
            experience, metrics = compare(state, None, *given)
            state, improved = update(state, experience, None, key=keys[1])
            logger.log(step, line := (metrics + improved).compute(), timings={})
            watch.add(step, line)
            advance(summary(found))
            if saves.due(step):
                saves.save(step, state)
    after, without = evaluate(), evaluate(lambda text: "")
    finish_run(run_dir)
    results = {
        "accuracy after SFT": before["accuracy"],
        "calls after SFT (share of responses)": before["calls"],
        "accuracy after GRPO": after["accuracy"],
        "calls after GRPO (share of responses)": after["calls"],
        "accuracy after GRPO, the calculator silent": without["accuracy"],
        "seconds of SFT": sft_seconds,
        "seconds of GRPO": time.perf_counter() - began - sft_seconds,
    }
    save_json(run_dir / "summary.json", results | {"stopped": watch.ended})
    print_table("Held-out products", ["", "found"], [*results.items()])
    return results


def fine_tune(config: Config) -> None:
    """SFT on the demonstrations, each seen once."""
    sft.main(
        sft.Config(
            config.run_dir / "sft",
            problem_data(config.run_dir, "demonstrations"),
            model=config.model,
            optim=config.sft_optim,
            epochs=1,
            devices=config.devices,
            seed=config.seed,
            resume=config.resume,
        )
    )


def scores(found: Conversed) -> Array:
    """[B] 1 where the policy's own last words have the product, else 0."""
    factors = [map(int, re.findall("[0-9]+", prompt)) for prompt in found.prompts]
    answers = [str(a * b) for a, b in factors]
    return jnp.asarray(final_number_reward(found.answers, answers), jnp.float32)


def summary(found: Conversed) -> dict[str, float]:
    """Shares of the responses that are right, and that the calculator has a part in."""
    calls = sum(found.called) / len(found.called)
    return {"accuracy": float(scores(found).mean()), "calls": calls}


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
