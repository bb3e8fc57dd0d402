"""Supervised fine-tuning: a policy that imitates demonstrations.

Ouyang et al. 2022, arXiv:2203.02155, step 1.

  python -m experiments.sft --run-dir runs/sft
  python -m experiments.sft --run-dir runs/sft --data.path demonstrations.jsonl

Rows have prompt and completion, or text alone. Without --policy a byte-level BPE
tokenizer is trained on them and the policy starts from scratch.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax

from experiments import cli
from experiments.stages import (
    DataConfig,
    TokenMeter,
    load_stage,
    pad_id,
    read_data,
    resume_state,
    save_model_files,
    save_state,
    show_plan,
)
from rlhf_jax.data import (
    Demonstration,
    batches,
    collate_demonstrations,
    demonstrations,
    make_loader,
    tokenize_demonstrations,
    train_tokenizer,
)
from rlhf_jax.models import (
    CausalLM,
    TransformerConfig,
    init_params,
    num_params,
    policy_apply,
)
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.parallel import (
    data_parallel,
    local_devices,
    replicate,
    shard,
    unreplicate,
)
from rlhf_jax.report import write_report
from rlhf_jax.rundir import create_run_dir
from rlhf_jax.steps import create_state, sft_eval, sft_step
from rlhf_jax.terminal import progress
from rlhf_jax.tracking import MetricsLogger, TrackingConfig
from rlhf_jax.types import Metrics

SMALL = TransformerConfig(
    vocab_size=512,
    d_model=128,
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    d_head=32,
    d_ff=384,
    max_length=64,
    scan_unroll=2,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Supervised fine-tuning."""

    run_dir: Path = Path("runs/sft")
    """Where checkpoints, metrics and the report go."""
    data: DataConfig = DataConfig("tfds:tiny_reviews/reviews:train")
    """Demonstrations."""
    policy: Path | None = None
    """Run directory of a policy to start from; none starts from scratch."""
    model: TransformerConfig = SMALL
    """The policy's network; vocab_size is that of the tokenizer to train."""
    optim: OptimConfig = OptimConfig(learning_rate=3e-3, schedule="cosine", warmup=20)
    """Optimiser and schedule."""
    batch_size: int = 64
    """Demonstrations an update, all devices together."""
    epochs: int = 2
    """Passes over the demonstrations."""
    eval_every: int = 100
    """Updates between evaluations."""
    save_every: int = 200
    """Updates between checkpoints."""
    log_every: int = 10
    """Updates between lines of metrics."""
    devices: int | None = None
    """Number of devices; none uses all."""
    seed: int = 0
    """Of initialisation and order."""
    tracking: TrackingConfig = TrackingConfig()
    """TensorBoard and W&B."""
    resume: bool = False
    """Go on from the latest checkpoint of the run directory."""


def main(config: Config) -> dict[str, float]:
    """Trains, and returns the last evaluation."""
    run_dir = create_run_dir(config.run_dir, config, resume=config.resume)
    devices = local_devices(config.devices)

    # 1. Data: all of it is read and tokenized before anything is compiled.
    texts, eval_texts = read_data(config.data, demonstrations, seed=config.seed)
    tokenizer, model, params = start_from(config, texts)
    tokenize = functools.partial(
        tokenize_demonstrations,
        tokenizer=tokenizer,
        max_length=model.max_length,
        too_long=config.data.too_long,
    )
    (examples, num_cut), (eval_examples, _) = tokenize(texts), tokenize(eval_texts)
    length = max(len(e.prompt + e.completion) for e in examples + eval_examples)
    collate = functools.partial(
        collate_demonstrations, length=length, pad_id=pad_id(tokenizer)
    )
    loader = make_loader(
        examples, batch_size=config.batch_size, seed=config.seed, collate=collate
    )
    total = config.epochs * (len(examples) // config.batch_size)

    # 2. What is going to run.
    show_plan(
        f"Supervised fine-tuning on {len(examples):,} demonstrations ({num_cut} cut)",
        model,
        trained=num_params(model),
        frozen=0,
        steps=total,
        rows=config.batch_size,
        length=length,
        devices=devices,
    )

    # 3. Training: maximum likelihood of the completions.
    if params is None:
        params = init_params(CausalLM(model), key=jax.random.key(config.seed))
    apply_fn = policy_apply(model)
    state = create_state(apply_fn, params, make_optimizer(config.optim, total))
    state, restored = resume_state(run_dir, state, loader)
    save_model_files(run_dir, model, tokenizer)
    state = replicate(state, devices)
    train_step = data_parallel(sft_step, devices, donate_state=True)
    eval_step = data_parallel(functools.partial(sft_eval, apply_fn=apply_fn), devices)

    def evaluate() -> dict[str, float]:
        metrics = Metrics.of({})
        for batch, valid in batches(eval_examples, config.batch_size, collate):
            batch = dataclasses.replace(batch, mask=batch.mask & valid[:, None])
            metrics += unreplicate(eval_step(state.params, shard(batch, devices)))
        return {"sft/eval_loss": metrics.compute()["sft/loss"]}

    start = restored or 0
    if start == total:
        print(f"{run_dir}: nothing to do ({total}/{total} updates)")
        return evaluate()
    with (
        MetricsLogger(run_dir, config.tracking, restored_step=restored) as logger,
        progress("SFT", total, done=start) as advance,
    ):
        meter = TokenMeter()
        shown: dict[str, Any] = {}
        for step in range(start + 1, total + 1):
            state, metrics = train_step(state, shard(next(loader), devices))
            meter.add(config.batch_size * length)
            if step % config.log_every == 0 or step == total:
                shown = unreplicate(metrics).compute()
                if step % config.eval_every == 0 or step == total:
                    shown |= evaluate()
                logger.log(step, shown, timings={"tokens_per_s": meter.rate()})
            if step % config.save_every == 0 or step == total:
                save_state(run_dir, step, unreplicate(state), loader)
            advance({"loss": shown.get("sft/loss", float("nan")), "tok/s": meter.last})
    write_report(run_dir)
    return evaluate()


def start_from(config: Config, texts: list[Demonstration[str]]):
    """(tokenizer, model, params) of an earlier run; or new ones, params still None."""
    if config.policy is not None:
        policy = load_stage(config.policy, "policy", option="--policy")
        return policy.tokenizer, policy.model, policy.params
    tokenizer = train_tokenizer(
        (e.prompt + e.completion for e in texts), config.model.vocab_size
    )
    return tokenizer, dataclasses.replace(config.model, vocab_size=len(tokenizer)), None


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
