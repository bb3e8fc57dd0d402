"""A finished stage as a checkpoint of transformers: for vLLM, the hub, anything else.

  python -m experiments.export --run-dir runs/ppo --out exported
  python -m experiments.export --run-dir runs/ppo --out adapters --adapters

A policy is written as a causal model, a reward model as a sequence classifier with one
label. Adapters are merged into the weights, or written alone in PEFT's format.
"""

import dataclasses
from pathlib import Path
from typing import Any

from experiments import cli
from rlhf_jax.errors import UserError
from rlhf_jax.models.hf import (
    ModelCard,
    llama_config,
    save_adapters,
    save_pretrained,
)
from rlhf_jax.rundir import CONFIG_FILE, load_json
from rlhf_jax.stages import MODEL_FILE, Stage, load_stage


@dataclasses.dataclass(frozen=True)
class Config:
    """A finished stage as a checkpoint of transformers."""

    run_dir: Path = Path("runs/ppo")
    """Of the stage."""
    out: Path = Path("exported")
    """Folder to write; must not exist, or be empty."""
    adapters: bool = False
    """Writes the adapters alone, for PEFT, instead of merged weights."""
    max_shard_size: str = "5GB"
    """Of one file of weights."""


def main(config: Config) -> None:
    """Writes the folder."""
    if not (config.run_dir / MODEL_FILE).is_file():
        raise UserError(
            f"--run-dir {config.run_dir}: no {MODEL_FILE} there; give the run "
            "directory of a finished stage"
        )
    kind = load_json(config.run_dir / MODEL_FILE)["kind"]
    if kind == "personal":
        raise UserError(
            f"--run-dir {config.run_dir}: holds the rewards of many users, which no "
            "classifier of transformers has; export one user's, of "
            "experiments.user_reward"
        )
    stage = load_stage(config.run_dir, kind, option="--run-dir")
    card = model_card(config.run_dir, stage)
    if config.adapters:
        write_adapters(config, stage, card)
    else:
        save_pretrained(
            config.out,
            stage.merged().params,
            stage.model,
            hf_config=stage.hf_config,
            tokenizer=stage.tokenizer,
            stop_ids=stage.stop_ids,
            card=card,
            max_shard_size=config.max_shard_size,
        )
    print(f"{config.out}: written from {config.run_dir}")


def write_adapters(config: Config, stage: Stage, card: ModelCard) -> None:
    """PEFT's format; a base that is a run directory must be exported as well."""
    if stage.adapters is None or stage.lora is None:
        raise UserError(
            f"--adapters: {config.run_dir} trained the whole network; leave it out"
        )
    save_adapters(
        config.out,
        stage.adapters,
        stage.lora,
        stage.model,
        hf_config=stage.hf_config or llama_config(stage.model),
        base_model=stage.base or "",
        card=card,
    )


def model_card(run_dir: Path, stage: Stage) -> ModelCard:
    """What the run directory knows: the script, its data, its numbers."""
    config: dict[str, Any] = load_json(run_dir / CONFIG_FILE)
    summary = run_dir / "summary.json"
    metrics = load_json(summary) if summary.is_file() else {}
    loss = config.get("preference", {}).get("kind")
    row, online = config.get("algorithm", {}), config.get("online", {})
    advantage, surrogate = row.get("advantage"), row.get("surrogate")
    drawn = f"{online.get('loss')}, mixture {online.get('mixture')}"
    algorithms = {
        "algorithm": f"advantages by {advantage}, loss {surrogate}",
        "distillation": "distillation of another policy (arXiv:2306.13649)",
        "online": f"preferences on its own completions ({drawn})",
        "expert": "expert iteration (arXiv:2304.06767)",
        "kind": f"reward modelling ({config.get('kind')})",
        "preference": f"preference optimisation ({loss})",
    }
    named = [text for option, text in algorithms.items() if option in config]
    return ModelCard(
        algorithm=(named or ["supervised fine-tuning"])[0],
        data=config["data"]["path"],
        metrics={k: v for k, v in metrics.items() if isinstance(v, int | float)},
        base_model=stage.base,
    )


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
