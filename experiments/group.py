"""GRPO and its relatives: a policy learns from what it answers several times.

The responses to a prompt are compared with each other; there is no critic. The papers
of --preset grpo, rloo, dr_grpo, dapo, gspo, cispo and gpg are in docs/algorithms.

  python -m experiments.group --policy runs/sft --reward runs/reward --run-dir runs/grpo
  python -m experiments.group --preset rloo --reward my_module:my_function

Each iteration samples a batch of episodes, scores them, compares each with its group
and, where the KL has a coefficient, with the reference policy, and updates the policy.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

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
from rlhf_jax.steps import GROUP_PRESETS, GroupConfig, create_state, group_step

SAMPLING = SamplingConfig(max_new_tokens=24, completions=8)


@dataclasses.dataclass(frozen=True)
class Config(OnlineConfig):
    """GRPO and its relatives."""

    run_dir: Path = Path("runs/group")
    """Where checkpoints, metrics, samples and the report go."""
    group: GroupConfig = GROUP_PRESETS["grpo"](SAMPLING)
    """The algorithm."""

    def __post_init__(self):
        sampling = self.group.sampling
        check_batches(sampling, self.episodes, self.batch_size, self.eval_samples)


def main(config: Config) -> dict[str, float]:
    """Trains, and returns what samples were like before and after."""
    run_dir = create_run_dir(config.run_dir, config, resume=config.resume)
    devices = local_devices(config.devices)
    rows = config.batch_size // config.group.minibatches
    check_micro_batches(config.group.micro_batches, rows=rows, devices=devices)

    # 1. Earlier stages and prompts: all is read before anything is compiled.
    policy, reward, gold, group, loader, asked = read(config, config.group)
    tokenizer, model, lora = policy.tokenizer, policy.model, config.lora.config()
    length = config.prompt_length + group.sampling.max_new_tokens
    pack = make_packing(
        config.pack_length, group, config.batch_size, length, model.max_length, devices
    )
    run_key = jax.random.key(config.seed)
    nets = make_networks(policy, reward, None, lora, config.cache_dtype, key=run_key)
    reference = policy.params if group.kl_coef else None
    total = config.episodes // config.batch_size
    updates = total * group.epochs * group.minibatches
    show_plan(
        f"{group.surrogate} of groups of {group.sampling.completions}, "
        f"{config.episodes:,} episodes, reward {config.reward}",
        model,
        trained=nets.params,
        frozen=(reference, nets.judge, nets.frozen),
        steps=updates,
        rows=rows,
        length=length,
        micro_batches=group.micro_batches,
        devices=devices,
    )

    # 2. The parts of an iteration: sample, score, compare; then update.
    # One tree, so that what policy, reference and reward model share is there once.
    ref, judge, frozen = replicate((reference, nets.judge, nets.frozen), devices)
    score = make_scorer(reward, judge, config.reward_kind, tokenizer, devices)
    show_rollout = ShowRollout()
    experience_of = make_experience(
        nets, group, score, ref, frozen, devices, report=show_rollout.report()
    )
    update = on_batches(group_step, devices, donate_state=True, config=group)
    tx = make_optimizer(config.optim, updates)
    state = create_state(nets.apply_fn, nets.params, tx)
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
    del policy, reward, reference, nets, held  # their arrays: the devices have copies

    # 3. Training.
    start = restored or 0
    if start == total:
        print(f"{run_dir}: nothing to do ({total}/{total} iterations)")
        return report_samples(run_dir, before, evaluate(state))
    shown: dict[str, Any] = {"reward": "objective/score"}
    if group.kl_coef:
        shown["KL"] = "objective/kl"
    with run_log("groups", config, total, restored, **shown) as log:
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
    presets = {name: Config(group=of(SAMPLING)) for name, of in GROUP_PRESETS.items()}
    cli.run(main, presets, description=__doc__ or "")
