"""The plans of the documentation, docs/plans.md, compiled anew: an hour or two.

  pip install '.[tpu]'
  python -m tpu.table --out docs/plans.md

Where a plan does not fit, `tpu.plan.search` tries what changes least.
"""

import dataclasses
from dataclasses import fields
from pathlib import Path

from experiments import cli
from experiments.runs import LoraOptions
from rlhf_jax.errors import UserError
from tpu.counts import Count, Refused
from tpu.plan import search, show
from tpu.planning import Config, Plan, make_plan

LORA = LoraOptions(rank=16)
ADAPTERS = {"lora": LORA, "param_dtype": "bfloat16"}
PLANS = {
    "0.6B GRPO": Config("v5e-1", "Qwen3-0.6B", rows=32),
    "8B PPO": Config("v5p-16", algorithm="ppo", rows=64, tensor=8),
    "8B PPO, v6e": Config("v6e-16", algorithm="ppo", rows=64, tensor=8),
    "8B LoRA PPO": Config("v5e-16", algorithm="ppo", rows=64, tensor=8, **ADAPTERS),
    "8B LoRA GRPO": Config("v5e-16", rows=128, tensor=8, **ADAPTERS),
    "8B DPO": Config("v5e-16", algorithm="dpo", rows=32),
    "70B GRPO": Config("v5p-128", "Llama-3.1-70B", rows=512, tensor=8),
}


@dataclasses.dataclass(frozen=True)
class TableConfig:
    """Which plans, and where their table goes."""

    only: tuple[str, ...] = tuple(PLANS)
    """Names of plans; the others keep their lines in --out."""
    out: Path | None = None
    """A file of Markdown, written anew after each plan."""

    def __post_init__(self):
        if unknown := set(self.only) - set(PLANS):
            raise UserError(f"only = {min(unknown)}: expected {', '.join(PLANS)}")


COLUMNS = (
    *("", "slice", "rows", "fsdp × tensor", "GB a chip, by phase", "of", "fits"),
    *("seconds at least, by phase", "in all"),
)


def header() -> str:
    """The first lines of the table."""
    return f"| {' | '.join(COLUMNS)} |\n|{len(COLUMNS) * '---|'}\n"


def line(name: str, plan: Plan, first: Config) -> str:
    """A line of the table; ``first`` is the config without changes."""
    config, chip, phases = plan.config, plan.on.chip, plan.phases.items()
    held = [f"{phase} {_peak(found) / 1e9:.1f}" for phase, found in phases]
    bound = [
        f"{phase} {found.seconds(chip):.1f} ({found.bound(chip)})"
        for phase, found in phases
        if isinstance(found, Count)
    ]
    cells = (
        *(name, config.slice),
        f"{config.rows} × ({config.prompt_length} + {config.new_tokens})",
        f"{plan.fsdp} × {config.tensor}",
        *(", ".join(held), f"{chip.room / 1e9:.1f}", _change(first, plan)),
        *(", ".join(bound), f"{plan.seconds:.1f}" if plan.fits else ""),
    )
    return f"| {' | '.join(cells)} |"


def _peak(found: Count | Refused) -> float:
    return found.peak if isinstance(found, Count) else found.needed


def main(config: TableConfig) -> list[str]:
    """Plans one after the other; returns the lines of the table."""
    lines = read_lines(config.out)
    for name in config.only:
        print(f"\n{name}")
        first = plan = make_plan(PLANS[name])
        show(plan)
        if not plan.fits:
            plan = search(plan, meshes=False)
        lines[name] = line(name, plan, first.config)
        if config.out is not None:
            config.out.write_text(header() + "\n".join(in_order(lines)) + "\n")
    return in_order(lines)


def read_lines(path: Path | None) -> dict[str, str]:
    """The plans' lines in a file, by name; none where there is no file yet."""
    if path is None or not path.exists():
        return {}
    text = path.read_text().removeprefix(header())
    return {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines()}


def in_order(lines: dict[str, str]) -> list[str]:
    """Lines in the order of the plans."""
    return [lines[name] for name in PLANS if name in lines]


def _change(first: Config, plan: Plan) -> str:
    if not plan.fits:
        return "no"
    now = {field.name: getattr(plan.config, field.name) for field in fields(Config)}
    changed = [f"{k} {v}" for k, v in now.items() if v != getattr(first, k)]
    return f"with {', '.join(changed)}" if changed else "yes"


if __name__ == "__main__":
    cli.run(main, {"default": TableConfig()}, description=__doc__ or "")
