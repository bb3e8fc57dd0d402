"""Runs that were never made: files with something of everything that a page shows."""

import json
import math

from rlhf_jax.tracking import MetricsLogger, TrackingConfig

LONG = "with_a_rather_long_name"  # of a run
SCRIPT = "<script>document.title = 'gone'</script>"
WORDS = ["a", " fine", " film", ",", " and", " warm", " .", ""]


def log(run, rows):
    """A metrics.jsonl."""
    run.mkdir(parents=True, exist_ok=True)
    with MetricsLogger(run, TrackingConfig(), restored_step=None) as logger:
        for step, metrics in rows:
            logger.log(step, metrics)


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answer(gain, prompt):
    kl = [round(gain * math.sin(3 * i + len(prompt)), 5) for i in range(len(WORDS))]
    words = WORDS if gain else ["a", " dull", *WORDS[2:]]
    scores = {"score": gain, "gold": gain / 2}
    return {"completion": "".join(words), **scores, "tokens": words, "kl": kl}


def write_run(run, *, coef=0.1, steps=40):
    """A PPO run with a reward model's stage beside it."""
    rise = lambda i: 1 - math.exp(-i / (10 + 50 * coef))
    log(
        run / "ppo",
        (
            (
                i,
                {
                    "objective/score": 2 * rise(i),
                    "objective/gold": rise(i) - 0.1 * i * i / steps**2,
                    "objective/kl": 10 * rise(i) * (1 - coef),
                    "rollout/response_length": 20.0 + i,
                    "policy/loss": math.nan if i == 7 else 1 / i,
                },
            )
            for i in range(1, steps + 1)
        ),
    )
    log(run / "reward", [(i, {"reward/loss": 1 / i}) for i in range(1, 100)])
    numbers = {"gold": 0.5, "reward": 1.25, "kl": 3.25, "distinct": 1.0}
    summary = {f"before/{name}": 0.0 for name in numbers}
    summary |= {f"after/{name}": x - coef for name, x in numbers.items()}
    summary |= {"reward/eval_accuracy": 0.8331, "stopped": f"KL budget {SCRIPT}"}
    (run / "summary.json").write_text(json.dumps(summary))
    prompts = ["the film was", SCRIPT, "two\nlines\x00", *(f"p{i}" for i in range(20))]
    samples = [
        {"prompt": p, "before": answer(0, p), "after": answer(1 - coef, p)}
        for p in prompts
    ]
    write_lines(run / "ppo" / "samples.jsonl", samples)
    bins = [
        {
            "low": 0.5 + i / 20,
            "high": 0.5 + (i + 1) / 20,
            "predicted": 0.525 + i / 20 if i else None,  # as there are none
            "observed": min(1.0, 0.525 + i / 20 + 0.03 * math.sin(i)) if i else None,
            "count": 5 * i,
        }
        for i in range(10)
    ]
    margins = [
        {
            "low": float(i),
            "high": i + 1.0,
            "accuracy": 0.6 + 0.1 * i,
            "low95": 0.55 + 0.1 * i,
            "high95": 0.64 + 0.1 * i,
            "count": 100 - 20 * i,
        }
        for i in range(4)
    ]
    calibration = {"bins": bins, "ece": 0.0213, "brier": 0.1432, "margins": margins}
    (run / "reward" / "calibration.json").write_text(json.dumps(calibration))
    reason = "column 'chosen': expected text, found null; the columns are …"
    faulty = [
        {"origin": f"pairs.jsonl:{i}", "reason": reason, "raw": SCRIPT * 9}
        for i in range(1, 8)
    ]
    write_lines(run / "reward" / "quarantine.jsonl", faulty)
    fault = {"step": 7, "rows": [3, 4], "skipped": 1, "updates": 4, "in_a_row": 0.25}
    fault["not_finite"] = {"policy/loss": "NaN"}
    spike = {"step": 9, "rows": [5], "spike": {"policy/loss": 9.0, "median": 1.5}}
    write_lines(run / "ppo" / "faults.jsonl", [fault, spike])
    alarm = {"step": 22, "kinds": ["repetition"], "text": SCRIPT, "on_alarm": "warn"}
    write_lines(run / "ppo" / "alarms.jsonl", [alarm])
    config = {"run_dir": str(run), "seed": 0, "algorithm": {"kl": {"coef": coef}}}
    (run / "ppo" / "config.json").write_text(json.dumps(config))
    command = f"python -m experiments.quickstart --note '{SCRIPT}'"
    made = {"command": command, "commit": "0123abc", "resumed": coef < 0.1}
    made |= {"seconds": 184.6, "cpu_seconds": 307.0, "processes": 1}
    made |= {"ended": "2026-11-22T15:49:48+00:00", "cores": 2}
    made |= {"cpu": "A Processor", "devices": {"cpu": 1, "TPU v5e": 4}}
    (run / "provenance.json").write_text(json.dumps(made))
