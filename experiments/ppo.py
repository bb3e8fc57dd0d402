"""PPO from human feedback: a policy that scores well and stays close to where it began.

Ziegler et al. 2019, arXiv:1909.08593; Stiennon et al. 2020, arXiv:2009.01325; Ouyang et
al. 2022, arXiv:2203.02155, step 3.

  python -m experiments.ppo --policy runs/sft --reward runs/reward --run-dir runs/ppo
  python -m experiments.ppo --reward my_module:my_function --critic head

Each iteration samples a batch of episodes, scores them, compares them with the
reference policy (KL), looks ahead (GAE) and updates policy and critic.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Literal

import jax

from experiments import cli
from experiments.logs import ShowRollout, due, run_log, show_plan
from experiments.networks import make_networks
from experiments.online import OnlineConfig, read
from experiments.rollouts import gold_score, make_experience, make_packing, make_scorer
from experiments.runs import (
    check_batches,
    check_micro_batches,
    on_batches,
    resume_state,
    save_state,
)
from experiments.samples import evaluate_policy, report_samples
from experiments.stages import save_model_files
from rlhf_jax.optim import make_optimizer
from rlhf_jax.parallel import local_devices, replicate
from rlhf_jax.report import write_report
from rlhf_jax.rundir import create_run_dir
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import PPO_PRESETS, KLConfig, PPOConfig, create_policy_state
from rlhf_jax.steps.policy import policy_step


@dataclasses.dataclass(frozen=True)
class Config(OnlineConfig):
    """PPO from human feedback."""

    run_dir: Path = Path("runs/ppo")
    """Where checkpoints, metrics, samples and the report go."""
    ppo: PPOConfig = PPOConfig(
        sampling=SamplingConfig(max_new_tokens=24), kl=KLConfig(coef=0.1)
    )
    """The algorithm."""
    critic: Literal["reward", "head"] = "reward"
    """A network of its own from the reward model, or a head on the policy's trunk."""

    def __post_init__(self):
        sampling = self.ppo.sampling
        check_batches(sampling, self.episodes, self.batch_size, self.eval_samples)


def main(config: Config) -> dict[str, float]:
    """Trains, and returns what samples were like before and after."""
    run_dir = create_run_dir(config.run_dir, config, resume=config.resume)
    devices = local_devices(config.devices)
    rows = config.batch_size // config.ppo.minibatches
    check_micro_batches(config.ppo.micro_batches, rows=rows, devices=devices)

    # 1. Earlier stages and prompts: all is read before anything is compiled.
    policy, reward, gold, ppo, loader, asked = read(config, config.ppo)
    tokenizer, model, lora = policy.tokenizer, policy.model, config.lora.config()
    length = config.prompt_length + ppo.sampling.max_new_tokens
    pack = make_packing(
        config.pack_length, ppo, config.batch_size, length, model.max_length, devices
    )
    run_key = jax.random.key(config.seed)
    nets = make_networks(
        policy, reward, config.critic, lora, config.cache_dtype, key=run_key
    )
    total = config.episodes // config.batch_size
    updates = total * ppo.epochs * ppo.minibatches
    show_plan(
        f"PPO, {config.episodes:,} episodes, reward {config.reward}",
        model,
        trained=nets.params,
        frozen=(policy.params, nets.judge, nets.frozen),
        steps=updates,
        rows=rows,
        length=length,
        micro_batches=ppo.micro_batches,
        devices=devices,
    )

    # 2. The parts of an iteration: sample, score, compare and look ahead; then update.
    # One tree, so that what policy, reference and reward model share is there once.
    ref, judge, frozen = replicate((policy.params, nets.judge, nets.frozen), devices)
    score = make_scorer(reward, judge, config.reward_kind, tokenizer, devices)
    show_rollout = ShowRollout()
    experience_of = make_experience(
        nets, ppo, score, ref, frozen, devices, report=show_rollout.report()
    )
    update = on_batches(policy_step, devices, donate_state=True, config=ppo)
    tx = make_optimizer(config.optim, updates)
    state = create_policy_state(nets.apply_fn, nets.params, tx, kl_coef=ppo.kl.coef)
    key = jax.random.fold_in(run_key, 0)
    evaluate = functools.partial(
        evaluate_policy, experience_of, asked, key, tokenizer, gold
    )
    held = replicate(state, devices)
    before = evaluate(held)
    state, restored = resume_state(run_dir, state, loader)
    save_model_files(
        run_dir, model, tokenizer, began=policy, lora=lora, params_path=nets.params_path
    )
    state = held if restored is None else replicate(state, devices)
    del policy, reward, nets, held  # their arrays: the devices have copies

    # 3. Training.
    start = restored or 0
    if start == total:
        print(f"{run_dir}: nothing to do ({total}/{total} iterations)")
        return report_samples(run_dir, before, evaluate(state))
    with run_log(
        "PPO", config, total, restored, reward="objective/score", KL="objective/kl"
    ) as log:
        show_rollout.on = log.show
        for step in range(start + 1, total + 1):
            sample_key, update_key = jax.random.split(jax.random.fold_in(run_key, step))
            sampled = experience_of(state, next(loader), sample_key)
            experience = pack(sampled.experience)
            state, improved = update(state, experience, frozen, key=update_key)
            tokens = sampled.metrics.sums["rollout/response_length"]
            log.add(step, sampled.metrics + improved, tokens=tokens)
            log.also(gold_score(gold, tokenizer, sampled.rollout))
            log.flush()  # an iteration is long: its numbers are not kept waiting
            if due(step, config.save_every, total):
                save_state(run_dir, step, state, loader)
    write_report(run_dir)
    return report_samples(run_dir, before, evaluate(state))


if __name__ == "__main__":
    papers = {name: Config(**vars(numbers)) for name, numbers in PPO_PRESETS.items()}
    cli.run(main, {"default": Config()} | papers, description=__doc__ or "")
