"""The model card: what a checkpoint was trained on, how, and with what result."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """README.md of a checkpoint.

    >>> card = ModelCard("PPO", data="prompts.jsonl", metrics={"reward": 0.7519})
    >>> print(card.text({"model_type": "llama"}).splitlines()[-1])
    | reward | 0.7519 |
    """

    algorithm: str  # what was done, in words
    data: str  # on what
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    base_model: str | None = None  # hub id or folder of what training began with

    def text(self, hf_config: Mapping[str, Any]) -> str:
        """Markdown below a header in YAML, as the hub reads it."""
        reward = "ForSequenceClassification" in str(hf_config.get("architectures"))
        header = ModelCardData(
            library_name="transformers",
            pipeline_tag="text-classification" if reward else "text-generation",
            base_model=self.base_model,
            tags=["rlhf", "rlhf_jax", "reward-model" if reward else "policy"],
        ).to_yaml()
        numbers = [f"| {name} | {value:.4g} |" for name, value in self.metrics.items()]
        lines = [
            "---",
            header,
            "---",
            "",
            f"# A {hf_config['model_type']} "
            + ("reward model" if reward else "policy")
            + " trained with rlhf_jax",
            "",
            f"- **Algorithm**: {self.algorithm}",
            f"- **Data**: {self.data}",
            f"- **Began with**: {self.base_model or 'random weights'}",
            "",
        ]
        if reward and (offset := hf_config.get("rlhf_jax_score_offset")):
            lines += [
                f"Scores are relative: add {offset:.6g} (`rlhf_jax_score_offset` in "
                "config.json) for those of training.",
                "",
            ]
        table = ["| metric | value |", "|---|---|", *numbers] if numbers else []
        return "\n".join([*lines, *table]) + "\n"
