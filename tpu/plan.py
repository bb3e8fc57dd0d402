"""What an experiment needs on a slice of TPU chips, before it is paid for.

  pip install '.[tpu]'
  python -m tpu.plan --slice v5e-16 --model Llama-3.1-8B --algorithm grpo --lora.rank 16
  python -m tpu.plan --slice v5e-16 --model Llama-3.1-8B --algorithm dpo --search

No TPU is needed: the very steps that the scripts run are compiled for the slice, each
for all of its chips together. The compiler says what a chip holds; operations, memory
traffic and what chips send each other are counted in the compiled programs, loops as
often as they run and responses at their full length. A phase takes at least as long as
the busiest of the three at its full rate; real runs are slower.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from experiments import cli
from experiments.runs import LoraOptions
from rlhf_jax.terminal import print_table
from tpu.chips import Chip
from tpu.counts import Count, Refused
from tpu.planning import Config, Plan, make_plan, make_work

GB = 1e9


def show(plan: Plan) -> None:
    """Prints what a chip holds and does in each phase, and the iteration."""
    config, on = plan.config, plan.on
    print_table(
        f"{config.model}, {config.algorithm}, {on.name}: a chip of {on.chips}",
        ["", "GB", "TFLOP", "GB moved", "GB sent", "s at least", "by"],
        [[name, *_line(found, on.chip)] for name, found in plan.phases.items()],
    )
    print(
        f"{'Fits' if plan.fits else 'Does not fit'}: {plan.peak / GB:.1f} of "
        f"{on.chip.room / GB:.1f} GB a chip, {plan.resident / GB:.1f} of them always."
    )
    if not plan.fits:
        return
    seconds, rate = plan.seconds, config.rows * config.tokens / plan.seconds
    share = sum(count.flops for count in plan.counts) / seconds / on.chip.flops
    print(
        f"An iteration takes {seconds:.1f} s at least: {rate:,.0f} tokens/s and "
        f"{share:.0%} of the chips' peak rate at most."
    )
    if config.price is not None:
        hour = on.chips * config.price
        print(f"It costs {hour * seconds / 3600:.4f} at least, {hour:.2f} an hour.")


def _line(found: Count | Refused, chip: Chip) -> list[Any]:
    if isinstance(found, Refused):
        return [f"refused: {found.needed / GB:.1f}", *5 * [""]]
    numbers = [found.peak / GB, found.flops / 1e12, found.moved / GB]
    whole = sum(found.sent.values()) / GB
    return [*numbers, whole, found.seconds(chip), found.bound(chip)]


def smaller(config: Config, rows: int) -> Iterator[tuple[str, Config]]:
    """Changes that need less memory, what costs least first; ``rows`` are a chip's."""
    change = functools.partial(dataclasses.replace, config)
    if not config.remat:
        yield "--remat", change(remat=True)
    parts = 2 * config.micro_batches
    while parts <= rows:
        yield f"--micro-batches {parts}", change(micro_batches=parts)
        parts *= 2
    if config.lora.rank is None:
        if config.moments == "float32":
            yield "--moments bfloat16", change(moments="bfloat16")
            config = change(moments="bfloat16", micro_batches=max(parts // 2, 1))
            yield f"that and --micro-batches {config.micro_batches}", config
        adapters = LoraOptions(rank=16)
        yield "--lora.rank 16", change(lora=adapters)
    elif config.param_dtype == "float32":
        yield "--param-dtype bfloat16", change(param_dtype="bfloat16")


def search(plan: Plan, *, meshes: bool = True) -> Plan:
    """The first change that makes it fit; with ``meshes`` also the fastest of them."""
    if not plan.fits:
        full = [n for n, c in plan.phases.items() if _is_full(c, plan.on.chip)]
        rows = plan.config.rows // plan.on.chips
        for words, config in smaller(plan.config, rows):
            print(f"\n{words}?")
            tried = make_plan(config, full)
            print(f"{tried.peak / GB:.1f} GB a chip")
            if tried.fits:
                plan = make_plan(config)
                show(plan)
                break
        else:
            print("No change of one option makes it fit: take a larger slice.")
            return plan
    heads, tensor = make_work(plan.config).model.n_kv_heads, 2 * plan.config.tensor
    while meshes and tensor <= min(heads, plan.on.chips):
        print(f"\n--tensor {tensor}?")
        other = make_plan(dataclasses.replace(plan.config, tensor=tensor, fsdp=None))
        show(other)
        if other.fits and other.seconds < plan.seconds:
            plan = other
        tensor *= 2
    return plan


def _is_full(found: Count | Refused, chip: Chip) -> bool:
    return isinstance(found, Refused) or found.peak > chip.room


def main(config: Config) -> Plan:
    """Plans, prints, searches if asked; returns the plan that it ends with."""
    plan = make_plan(config)
    show(plan)
    if config.search:
        plan = search(plan)
        print(f"\nProposed: {plan.config}" if plan.fits else "")
    elif not plan.fits:
        print("--search tries what makes it fit.")
    return plan


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
