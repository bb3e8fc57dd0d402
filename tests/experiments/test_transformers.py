"""Checkpoints of transformers in and out of the scripts, adapters and conversations."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interrupted import killed_at_its_second_save

from experiments import export, policy, reward_model, sft
from experiments.inputs import DataConfig
from experiments.runs import LoraOptions
from rlhf_jax import checkpoint
from rlhf_jax.data import load_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.models import CausalLM, TransformerConfig, init_params, policy_apply
from rlhf_jax.models.hf import load_adapters, load_pretrained, save_pretrained
from rlhf_jax.stages import eos_id, load_stage
from rlhf_jax.tracking import read_metrics
from rlhf_jax.types import TokenBatch

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<eos>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LORA = LoraOptions(rank=2, alpha=4.0)


@pytest.fixture(scope="module")
def pretrained(toys, tmp_path_factory):
    """A Qwen2 with a chat template, as transformers has it on disk."""
    tokenizer = load_tokenizer(toys.root / "sft" / "tokenizer")
    tokenizer.chat_template = CHATML
    config = TransformerConfig(
        vocab_size=len(tokenizer),
        d_model=8,
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        d_head=4,
        d_ff=16,
        max_length=128,
        qkv_bias=True,
        tie_embeddings=True,
    )
    hf_config = {
        "model_type": "qwen2",
        "vocab_size": len(tokenizer),
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 16,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    params = init_params(CausalLM(config), key=jax.random.key(0))
    folder = tmp_path_factory.mktemp("hub") / "qwen2"
    stops = (eos_id(tokenizer), 5)
    save_pretrained(
        folder,
        params,
        config,
        hf_config=hf_config,
        tokenizer=tokenizer,
        stop_ids=stops,
    )
    return folder


def _logits(stage_or_folder) -> np.ndarray:
    config, params = stage_or_folder
    tokens = jnp.arange(12)[None] + 20
    one = jnp.ones_like(tokens)
    batch = TokenBatch(tokens, one, jnp.arange(12)[None], one > 0)
    return np.asarray(policy_apply(config)(params, batch).logits)


def test_chat_sft_on_a_pretrained_model(toys, pretrained, tmp_path):
    turn = lambda role, text: {"role": role, "content": text}
    rows = [
        {"messages": [turn("user", f"Film {i}?"), turn("assistant", "A warm film.")]}
        for i in range(16)
    ]
    data = tmp_path / "chat.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = toys.sft(tmp_path / "sft", policy=pretrained, lora=LORA)
    config = dataclasses.replace(config, data=DataConfig(str(data), eval_fraction=0.2))
    sft.main(config)
    stage = load_stage(tmp_path / "sft", "policy", option="--policy")
    assert stage.stop_ids == (stage.tokenizer.eos_token_id, 5)
    assert stage.base == str(pretrained)

    # PPO answers conversations, and its result goes back to where it came from.
    asked = tmp_path / "asked.jsonl"
    prompts = ({"prompt": row["messages"][:1]} for row in rows)
    asked.write_text("".join(json.dumps(row) + "\n" for row in prompts))
    run = toys.policy(
        tmp_path / "ppo",
        policy=tmp_path / "sft",
        reward="rlhf_jax.data.tiny_reviews:gold_reward",
        critic="head",
        lora=LORA,
        data=DataConfig(str(asked), eval_fraction=0.5),
    )
    policy.main(run)
    first = read_metrics(tmp_path / "ppo" / "metrics.jsonl")[0]
    assert first["first/ratio_max"] == pytest.approx(1, abs=1e-4)
    export.main(export.Config(tmp_path / "ppo", tmp_path / "out"))
    trained = load_stage(tmp_path / "ppo", "policy", option="--policy").merged()
    exported = load_pretrained(tmp_path / "out")
    assert exported.hf_config["model_type"] == "qwen2"
    np.testing.assert_array_equal(
        _logits((trained.model, trained.params)),
        _logits((exported.config, exported.params)),
    )
    ends = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert ends["eos_token_id"] == [trained.tokenizer.eos_token_id, 5]
    assert load_tokenizer(tmp_path / "out").chat_template == CHATML
    assert "advantages by gae" in (tmp_path / "out/README.md").read_text()


def test_adapters_share_one_base(toys, tmp_path):
    """Reward model and PPO as adapters on one policy, critic from the reward model."""
    reward = toys.reward(tmp_path / "reward", lora=LORA)
    reward_model.main(reward)
    policy.main(
        toys.policy(tmp_path / "ppo", reward=str(tmp_path / "reward"), lora=LORA)
    )
    saved = checkpoint.restore_params(tmp_path / "ppo/checkpoints", "0/params")
    assert {"policy", "critic"} == saved.keys()
    assert "lm_head" not in saved["policy"] and "embed" not in saved["policy"]["trunk"]
    base = load_stage(toys.root / "sft", "policy", option="--policy")
    judge = load_stage(tmp_path / "reward", "reward", option="--reward", base=base)
    shared = judge.whole()["trunk"]["embed"]["embedding"]
    assert shared is base.params["trunk"]["embed"]["embedding"]
    # Nothing trained but the adapters: their base is the policy still.
    trained = load_stage(tmp_path / "ppo", "policy", option="--policy")
    jax.tree.map(np.testing.assert_array_equal, trained.params, base.params)
    assert jax.tree.reduce(max, jax.tree.map(lambda x: abs(x).max(), trained.adapters))

    export.main(export.Config(tmp_path / "ppo", tmp_path / "peft", adapters=True))
    export.main(export.Config(toys.root / "sft", tmp_path / "base"))
    plain = load_pretrained(tmp_path / "base")
    adapters, _ = load_adapters(
        tmp_path / "peft", plain.config, hf_config=plain.hf_config
    )
    jax.tree.map(np.testing.assert_array_equal, adapters, trained.adapters)


@pytest.mark.parametrize("stage", ["sft", "reward", "policy"])
def test_adapters_resume_exactly(toys, tmp_path, stage):
    module = {"sft": sft, "reward": reward_model, "policy": policy}[stage]
    start = {"policy": toys.root / "sft"} if stage == "sft" else {}
    make = lambda name, **kw: getattr(toys, stage)(
        tmp_path / name, lora=LORA, **start, **kw
    )
    whole = module.main(make("whole"))
    with killed_at_its_second_save():
        module.main(make("stopped"))
    assert module.main(make("stopped", resume=True)) == whole


def test_a_reward_model_of_transformers_is_a_reward(toys, tmp_path):
    """Exported as a sequence classifier, the reward model is the same reward."""
    export.main(export.Config(toys.root / "reward", tmp_path / "judge"))
    run = toys.policy(tmp_path / "ppo", reward=str(tmp_path / "judge"), critic="head")
    plain = toys.policy(tmp_path / "plain", critic="head")
    assert policy.main(run)["before/reward"] == pytest.approx(
        policy.main(plain)["before/reward"], abs=1e-5
    )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda t, d: t.sft(d, lora=LORA), "--lora.rank needs a network to adapt"),
        (lambda t, d: t.sft(d, policy=d / "none"), "--policy .*none: neither the run"),
        (
            lambda t, d: t.sft(
                d, policy=t.root / "sft", lora=LoraOptions(rank=2, targets=("q",))
            ),
            "lora.targets=q: expected some of",
        ),
    ],
)
def test_refusals(toys, tmp_path, make, message):
    with pytest.raises(UserError, match=message) as error:
        sft.main(make(toys, tmp_path / "run"))
    assert "\n" not in str(error.value)


def test_export_refusals(toys, tmp_path):
    with pytest.raises(UserError, match="--adapters: .* trained the whole network"):
        export.main(export.Config(toys.root / "sft", tmp_path / "x", adapters=True))
    with pytest.raises(UserError, match="no model.json there"):
        export.main(export.Config(tmp_path, tmp_path / "x"))
