"""A policy from what people prefer, without a reward model: DPO and its kin.

Rafailov et al. 2023, arXiv:2305.18290; `docs/algorithms` has all losses of a pair.

  python -m experiments.preference --policy runs/sft --run-dir runs/preference
  python -m experiments.preference --preference.kind ipo --data.path pairs.jsonl

Rows are those of `experiments.reward_model --kind pairwise`: prompt, chosen, rejected
(or two whole dialogues as chosen and rejected), or prompt, completions, ranks. The
policy that training starts from stays the reference; its log-probs are computed within
each update.
"""

import dataclasses
from pathlib import Path

import jax

from experiments import cli
from experiments.evaluation import eval_names, held_out_metrics, report_accuracy
from experiments.inputs import DataConfig
from experiments.judgements import JUDGEMENTS, read_judgements
from experiments.logs import due, run_log, show_plan
from experiments.runs import (
    RunConfig,
    check_micro_batches,
    on_batches,
    resume_state,
    save_state,
    split_params,
)
from experiments.stages import save_model_files
from rlhf_jax.models import policy_apply
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.parallel import local_devices, replicate, shard
from rlhf_jax.report import write_report
from rlhf_jax.rundir import create_run_dir
from rlhf_jax.steps import PreferenceConfig, create_state, preference_step
from rlhf_jax.steps.preference import REFERENCE_FREE
from rlhf_jax.types import Metrics


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Preference optimisation."""

    run_dir: Path = Path("runs/preference")
    """Where checkpoints, metrics and the report go."""
    data: DataConfig = DataConfig("tfds:tiny_reviews/rankings:train")
    """Pairs, or rankings, which become all their pairs."""
    policy: Path = Path("runs/sft")
    """The policy to start from, which stays the reference: run directory, checkpoint of
    transformers or hub id."""
    preference: PreferenceConfig = PreferenceConfig()
    """The algorithm."""
    optim: OptimConfig = OptimConfig(learning_rate=3e-4, schedule="cosine", warmup=20)
    """Optimiser and schedule."""
    max_length: int | None = None
    """Most tokens of prompt and completion; none takes the policy's context."""
    pack_length: int | None = None
    """Tokens of a row that several pairs share; none gives each its own."""
    batch_size: int = 64
    """Pairs an update, or rows of pairs, all devices together."""
    epochs: int = 1
    """Passes over the pairs."""
    eval_every: int = 50
    """Updates between evaluations."""
    log_every: int = 10
    """Updates between lines of metrics."""


def main(config: Config) -> dict[str, float]:
    """Trains, and returns the evaluation at the end."""
    run_dir = create_run_dir(config.run_dir, config, resume=config.resume)
    devices, parts = local_devices(config.devices), config.preference.micro_batches
    check_micro_batches(parts, rows=config.batch_size, devices=devices)
    title, lora = f"Preferences, {config.preference.kind}", config.lora.config()

    # 1. Data: all of it is read and tokenized before anything is compiled.
    policy, tokenizer, model, data = read_judgements(config, JUDGEMENTS["pairwise"])
    assert policy is not None  # there is no way to name none
    loader = data.loader(config.batch_size, seed=config.seed)
    total = config.epochs * (len(data.rows) // config.batch_size)

    # 2. What is going to run.
    key = jax.random.key(config.seed)
    params, frozen = split_params(policy.params, lora, key=key)
    show_plan(
        f"{title}, on {len(data.learned.examples):,} pairs "
        f"({data.learned.num_cut} cut)",
        model,
        trained=params,
        frozen=(policy.params, frozen),
        steps=total,
        rows=2 * config.batch_size,
        length=data.length,
        micro_batches=parts,
        devices=devices,
    )

    # 3. Training: the policy away from its reference, as far as the pairs go.
    apply_fn = policy_apply(model)
    state = create_state(apply_fn, params, make_optimizer(config.optim, total))
    state, restored = resume_state(run_dir, state, loader)
    save_model_files(run_dir, model, tokenizer, began=policy, lora=lora)
    # One tree, so that what policy and reference share is there once.
    reference = None if config.preference.kind in REFERENCE_FREE else policy.params
    others = replicate((reference, frozen), devices)
    state = replicate(state, devices)
    del policy, reference, params, frozen  # their arrays: the devices have copies
    algorithm = {"ref_apply_fn": apply_fn, "config": config.preference}
    train_step = on_batches(
        preference_step, devices, others=2, donate_state=True, **algorithm
    )
    eval_step = on_batches(preference_eval, devices, others=2, **algorithm)

    def evaluate() -> Metrics:
        step = lambda batch: eval_step(state, shard(batch, devices), *others)
        return held_out_metrics(step, data, config.batch_size)

    start = restored or 0
    if start == total:
        print(f"{run_dir}: nothing to do ({total}/{total} updates)")
        return report_accuracy(title, run_dir, evaluate())
    every, loss = config.log_every, "preference/loss"
    with run_log("Preferences", config, total, restored, every, loss=loss) as log:
        for step in range(start + 1, total + 1):
            state, metrics = train_step(state, shard(next(loader), devices), *others)
            log.add(step, metrics, tokens=2 * config.batch_size * data.length)
            if log.pending and due(step, config.eval_every, total):
                log.also(eval_names(evaluate()))
            if due(step, config.save_every, total):
                log.flush()
                save_state(run_dir, step, state, loader)
    write_report(run_dir)
    return report_accuracy(title, run_dir, evaluate())


def preference_eval(*trees, **options) -> Metrics:
    """What a step finds before its update; that is left out, and its gradient."""
    _, metrics = preference_step(*trees, **options)
    names = [name for name in metrics.sums if name.startswith("preference/")]
    means = {name: (metrics.sums[name], metrics.counts[name]) for name in names}
    return Metrics.of(means)


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
