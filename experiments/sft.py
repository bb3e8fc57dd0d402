"""Supervised fine-tuning: a policy that imitates demonstrations.

Ouyang et al. 2022, arXiv:2203.02155, step 1.

  python -m experiments.sft --run-dir runs/sft
  python -m experiments.sft --run-dir runs/sft --data.path demonstrations.jsonl

  python -m experiments.sft --policy Qwen/Qwen2.5-0.5B-Instruct --lora.rank 16

Rows have prompt and completion, or text alone, or the messages of a conversation, whose
assistant turns are learned. Without --policy a byte-level BPE tokenizer is trained on
them and the policy starts from scratch.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax

from experiments import cli
from experiments.inputs import (
    DataConfig,
    parse_demonstrations,
    read_data,
    tokenize_imitation,
)
from experiments.runs import (
    RunConfig,
    TokenMeter,
    check_micro_batches,
    count_params,
    needs_policy,
    resume_state,
    save_state,
    show_plan,
    split_params,
)
from experiments.stages import Stage, load_policy, pad_id, save_model_files
from rlhf_jax.data import Conversation, batches, make_loader, train_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.models import CausalLM, TransformerConfig, init_params, policy_apply
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.parallel import (
    data_parallel,
    local_devices,
    replicate,
    shard,
)
from rlhf_jax.report import write_report
from rlhf_jax.rundir import create_run_dir
from rlhf_jax.steps import create_state, sft_eval, sft_step
from rlhf_jax.terminal import progress
from rlhf_jax.tracking import MetricsLogger
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
class Config(RunConfig):
    """Supervised fine-tuning."""

    run_dir: Path = Path("runs/sft")
    """Where checkpoints, metrics and the report go."""
    data: DataConfig = DataConfig("tfds:tiny_reviews/reviews:train")
    """Demonstrations."""
    policy: Path | None = None
    """A policy to start from: run directory, checkpoint of transformers or hub id; none
    starts from scratch."""
    model: TransformerConfig = SMALL
    """The network, without --policy; vocab_size is that of the tokenizer to train."""
    optim: OptimConfig = OptimConfig(learning_rate=3e-3, schedule="cosine", warmup=20)
    """Optimiser and schedule."""
    max_length: int | None = None
    """Most tokens of a demonstration; none takes the network's context."""
    pack_length: int | None = None
    """Tokens of a row that several demonstrations share; none gives each its own."""
    batch_size: int = 64
    """Rows an update, all devices together."""
    micro_batches: int = 1
    """Parts that an update's rows on a device are computed in, one after the other."""
    epochs: int = 2
    """Passes over the demonstrations."""
    eval_every: int = 100
    """Updates between evaluations."""
    log_every: int = 10
    """Updates between lines of metrics."""

    def __post_init__(self):
        needs_policy(self, self.policy)


def main(config: Config) -> dict[str, float]:
    """Trains, and returns the last evaluation."""
    run_dir = create_run_dir(config.run_dir, config, resume=config.resume)
    devices = local_devices(config.devices)
    check_micro_batches(config.micro_batches, rows=config.batch_size, devices=devices)
    lora, key = config.lora.config(), jax.random.key(config.seed)

    # 1. Data: all of it is read and tokenized before anything is compiled.
    texts, eval_texts = read_data(config.data, parse_demonstrations, seed=config.seed)
    policy = load_policy(config.policy, config.pretrained)
    tokenizer, model = start_from(config, policy, texts)
    tokenize = functools.partial(
        tokenize_imitation,
        tokenizer=tokenizer,
        max_length=min(config.max_length or model.max_length, model.max_length),
        too_long=config.data.too_long,
    )
    learned, held_out = tokenize(texts), tokenize(eval_texts)
    eval_length = max(learned.lengths + held_out.lengths)
    length = config.pack_length or eval_length
    if config.pack_length is not None:
        least = max(learned.lengths)
        check_pack_length(length, least=least, most=model.max_length)
        learned = learned.packed(length)
    collate = functools.partial(
        learned.collate, length=length, pad_id=pad_id(tokenizer)
    )
    eval_collate = functools.partial(
        held_out.collate, length=eval_length, pad_id=pad_id(tokenizer)
    )
    loader = make_loader(
        learned.examples,
        batch_size=config.batch_size,
        seed=config.seed,
        collate=collate,
    )
    total = config.epochs * (len(learned.examples) // config.batch_size)

    # 2. What is going to run.
    init = functools.partial(init_params, CausalLM(model), key=key)
    whole = jax.eval_shape(init) if policy is None else policy.params
    trained, frozen = split_params(whole, lora, key=key)
    show_plan(
        f"Supervised fine-tuning on {len(texts):,} demonstrations "
        f"({learned.num_cut} cut)",
        model,
        trained=count_params(trained),
        frozen=count_params(frozen),
        steps=total,
        rows=config.batch_size,
        length=length,
        micro_batches=config.micro_batches,
        devices=devices,
    )

    # 3. Training: maximum likelihood of the completions.
    apply_fn = policy_apply(model)
    params = init() if policy is None else trained
    state = create_state(apply_fn, params, make_optimizer(config.optim, total))
    state, restored = resume_state(run_dir, state, loader)
    save_model_files(run_dir, model, tokenizer, began=policy, lora=lora)
    state, frozen = replicate(state, devices), replicate(frozen, devices)
    axes: Any = {"in_axes": (None, 0, None), "out_axes": None}
    train_step = functools.partial(sft_step, micro_batches=config.micro_batches)
    train_step = data_parallel(train_step, devices, **axes, donate_state=True)
    eval_step = functools.partial(sft_eval, apply_fn=apply_fn)
    eval_step = data_parallel(eval_step, devices, **axes)

    def evaluate() -> dict[str, float]:
        metrics = Metrics.of({})
        for batch, valid in batches(held_out.examples, config.batch_size, eval_collate):
            batch = dataclasses.replace(batch, mask=batch.mask & valid[:, None])
            batch = shard(batch, devices)
            metrics += eval_step(state.params, batch, frozen)
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
            state, metrics = train_step(state, shard(next(loader), devices), frozen)
            meter.add(config.batch_size * length)
            if step % config.log_every == 0 or step == total:
                shown = metrics.compute()
                if step % config.eval_every == 0 or step == total:
                    shown |= evaluate()
                logger.log(step, shown, timings={"tokens_per_s": meter.rate()})
            if step % config.save_every == 0 or step == total:
                save_state(run_dir, step, state, loader)
            advance({"loss": shown.get("sft/loss", float("nan")), "tok/s": meter.last})
    write_report(run_dir)
    return evaluate()


def check_pack_length(length: int, *, least: int, most: int) -> None:
    """A packed row holds the longest demonstration, and fits the network's context."""
    if not least <= length <= most:
        raise UserError(
            f"pack_length = {length}: expected {least}, the longest demonstration, to "
            f"{most}, the network's context"
        )


def start_from(config: Config, policy: Stage | None, texts: list[Any]):
    """(tokenizer, model): the policy's, or new ones."""
    if policy is not None:
        return policy.tokenizer, policy.model
    if isinstance(texts[0], Conversation):
        raise UserError(
            f"--data.path {config.data.path}: conversations need a tokenizer with a "
            "chat template: give --policy, or columns of plain text"
        )
    tokenizer = train_tokenizer(
        (e.prompt + e.completion for e in texts), config.model.vocab_size
    )
    return tokenizer, dataclasses.replace(config.model, vocab_size=len(tokenizer))


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
