"""A policy that scores well and stays close to where it began: PPO, GRPO, RLOO, …

Ziegler et al. 2019, arXiv:1909.08593; Stiennon et al. 2020, arXiv:2009.01325; Ouyang et
al. 2022, arXiv:2203.02155, step 3. --preset names the algorithm; docs/algorithms has
their papers, and what each is made of.

  python -m experiments.policy --policy runs/sft --reward runs/reward --run-dir runs/ppo
  python -m experiments.policy --preset grpo --reward my_module:my_function

Each iteration samples a batch of episodes, scores them, compares them with the
reference policy (KL) and with what was expected (advantages), and updates the policy.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

import jax

from experiments import cli
from experiments.aside import finish_run
from experiments.dynamic_sampling import make_draws
from experiments.logs import ShowRollout, show_plan
from experiments.networks import choose_critic, make_networks
from experiments.online import OnlineConfig, read, read_demonstrations
from experiments.referees import load_referees, make_others
from experiments.resuming import resume_state, running, start_run
from experiments.rollouts import make_compare, make_draw, make_packing, make_scorer
from experiments.runs import PartsConfig, check_batches, check_micro_batches, on_devices
from experiments.samples import evaluate_policy
from experiments.watching import Watch, report_end
from rlhf_jax.errors import UserError
from rlhf_jax.optim import make_optimizer
from rlhf_jax.parallel import Where, data_parallel, replicate, shard, unshard
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import save_model_files
from rlhf_jax.steps import (
    POLICY_PRESETS,
    PPO_PRESETS,
    KLConfig,
    PolicyConfig,
    create_policy_state,
    policy_step,
)

ALONE, GROUPS = SamplingConfig(24), SamplingConfig(24, completions=8)
WITHOUT_GROUPS = ("reinforce", "remax", "reinforce_pp")


@dataclasses.dataclass(frozen=True)
class Config(OnlineConfig, PartsConfig):
    """Policy optimisation on scores."""

    run_dir: Path = Path("runs/policy")
    """Where checkpoints, metrics, samples and the report go."""
    algorithm: PolicyConfig = PolicyConfig(ALONE, kl=KLConfig(coef=0.1))
    """The algorithm."""
    critic: Literal["reward", "head"] | None = None
    """A network of its own from the reward model, or a head on the policy's trunk; none
    is the first, where a critic is needed and the reward is a model."""
    demonstrations: str | None = None
    """Where those of --algorithm.ptx-coef are."""
    lag: int = 0
    """Iterations by which rollouts are older than the policy that learns from them."""
    draws: int = 1
    """Batches drawn at most until groups of unequal scores fill one (DAPO)."""

    def __post_init__(self):
        sampling = self.algorithm.sampling
        check_batches(sampling, self.episodes, self.batch_size, self.eval_samples)
        for name, least in (("lag", 0), ("draws", 1)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"{name} = {value}: expected {least} or more")
            if value > least and self.prompt_buckets:
                raise UserError(f"{name} = {value}: expected no prompt_buckets with it")
        leash = bool(self.algorithm.kl.coef)
        self.check_watched(kl=leash, softens=leash)
        if bool(self.algorithm.ptx_coef) != (self.demonstrations is not None):
            raise UserError("ptx_coef and demonstrations: expected both or none")
        if self.demonstrations is not None and self.pack_length is not None:
            raise UserError("demonstrations are not packed: expected no pack_length")


@on_devices
def main(config: Config, devices: Where) -> dict[str, float]:
    """Trains, and returns what samples were like before and after."""
    run_dir = start_run(config)
    rows = config.batch_size // config.algorithm.minibatches
    check_micro_batches(config.algorithm.micro_batches, rows=rows, devices=devices)

    # 1. Earlier stages and prompts: all is read before anything is compiled.
    given = read(config, config.algorithm)
    policy, reward, gold, algorithm, loader, asked = given
    referees = load_referees(config, given)
    demonstrations = read_demonstrations(
        config, config.demonstrations, policy, config.batch_size, devices
    )
    tokenizer, model, lora = policy.tokenizer, policy.model, config.lora.config()
    length = config.prompt_length + algorithm.sampling.max_new_tokens
    width, batch_size = config.pack_length, config.batch_size
    pack = make_packing(width, algorithm, batch_size, length, model.max_length, devices)
    run_key = jax.random.key(config.seed)
    critic = choose_critic(config.critic, algorithm, reward)
    nets = make_networks(policy, reward, critic, lora, config.cache_dtype, key=run_key)
    reference = policy.params if algorithm.kl.coef else None
    total = config.episodes // config.batch_size
    updates = total * algorithm.epochs * algorithm.minibatches
    show_plan(
        f"{algorithm.surrogate} on advantages by {algorithm.advantage}, "
        f"{config.episodes:,} episodes, reward {config.reward}",
        model,
        trained=nets.params,
        frozen=(reference, nets.judge, nets.frozen, referees.params),
        steps=updates,
        rows=rows,
        length=length,
        micro_batches=algorithm.micro_batches,
        devices=devices,
    )

    # 2. The parts of an iteration: sample and score; compare and look ahead; update.
    # One tree, so that what policy, reference and reward model share is there once.
    ref, judge, frozen = replicate((reference, nets.judge, nets.frozen), devices)
    judged = reward, judge, config.reward_kind, tokenizer, devices
    score = make_scorer(*judged, **config.calls())
    others = make_others(config, given, referees, devices)
    show = ShowRollout()
    draw = make_draw(nets, algorithm, score, frozen, devices, report=show.report())
    compare = make_compare(nets, algorithm, ref, frozen, devices)
    axes: Any = {"in_axes": (None, 0, None, 0), "out_axes": None}
    update = functools.partial(policy_step, config=algorithm)
    update = data_parallel(update, devices, **axes, donate_state=True)
    tx = make_optimizer(config.optim, updates)
    beta = algorithm.kl.coef
    began = create_policy_state(nets.apply_fn, nets.params, tx, kl_coef=beta)
    state = replicate(began, devices)
    key = jax.random.fold_in(run_key, 0)
    sampled_of = lambda state, *given: compare(state, draw(state.params, *given))
    asking = sampled_of, asked, key, tokenizer, gold
    evaluate = functools.partial(evaluate_policy, *asking)
    before = evaluate(state)
    keys = lambda step: jax.random.split(jax.random.fold_in(run_key, step))
    drawn = make_draws(draw, loader, algorithm, devices, most=config.draws)
    waiting = [drawn(state.params, keys(1 + i)[0]) for i in range(config.lag)]
    stages = {"policy": policy, "reward": reward, **referees.judges}
    whole = began, unshard(waiting)
    whole, start = resume_state(config, whole, loader, tokenizer, **stages)
    path = f"0/{nets.params_path}"
    save_model_files(
        run_dir, model, tokenizer, began=policy, lora=lora, params_path=path
    )
    if start is not None:
        del state  # its place is needed
        state = replicate(whole[0], devices)
        waiting = [shard(batch, devices) for batch in whole[1]]
    # The devices have copies.
    del given, policy, reward, referees, stages, reference, nets, began, whole

    # 3. Training.
    watch = Watch(run_dir, config, start, total)
    if watch.nothing_to_do("iterations"):
        return report_end(run_dir, before, evaluate(state), watch)
    watched: dict[str, Any] = {"reward": "objective/score"}
    if beta:
        watched["KL"] = "objective/kl"
    plan = config, total, loader, start
    with running("Policy", *plan, watch=watch, **watched) as (log, saves):
        show.on = log.show
        for step in watch.steps():
            waiting.append(drawn(state.params, keys(step + config.lag)[0]))
            batch = waiting.pop(0)
            sampled = compare(state, batch)
            experience, mix = pack(sampled.experience), demonstrations(step)
            state, improved = update(state, experience, frozen, mix, key=keys(step)[1])
            tokens = sampled.metrics.sums["rollout/response_length"]
            which: Any = {"rows": batch.asked, "scores": batch.scores}
            log.add(step, sampled.metrics + improved, tokens=tokens, **which)
            log.also(others(sampled))
            log.flush()  # an iteration is long: its numbers are not kept waiting
            state = watch.soften(state)
            if saves.due(step):
                saves.save(step, (state, unshard(waiting)))
    finish_run(run_dir)
    return report_end(run_dir, before, evaluate(state), watch)


if __name__ == "__main__":
    presets = {"ppo": Config()}
    for name, of in POLICY_PRESETS.items():
        sampling = ALONE if name in WITHOUT_GROUPS else GROUPS
        presets.setdefault(name, Config(algorithm=of(sampling)))
    papers = {name: Config(**vars(numbers)) for name, numbers in PPO_PRESETS.items()}
    cli.run(main, presets | papers, description=__doc__ or "", several=True)
