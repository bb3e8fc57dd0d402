"""`transformers.generate` on prompts whose responses differ in length, in batches.

Run by `queue_benchmark` with a Python that has torch: reads a task from stdin, prints
tokens a second, the best of its cache variants. Imports nothing of this project.
"""

import json
import sys
import time
from typing import Any, NamedTuple


class Task(NamedTuple):
    """What is to be answered, by a Llama of random weights."""

    prompts: list[list[int]]
    stop_ids: list[int]
    rows: int  # of a batch
    new: int  # tokens of a response at most
    sizes: dict[str, Any]  # of the model


def dump(task: Task) -> str:
    """For stdin."""
    return json.dumps(task._asdict())


def main(task: Task) -> float:
    """Tokens a second, with the cache that grows and with the one that does not."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(2)
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            max_position_embeddings=2048, tie_word_embeddings=False, **task.sizes
        )
    )
    model = model.float().eval()
    options: dict[str, Any] = {
        "max_new_tokens": task.new,
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "eos_token_id": task.stop_ids,
        "pad_token_id": 0,
    }

    def answer(prompts: list[list[int]], **more: Any) -> int:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            found = model.generate(
                ids, attention_mask=torch.ones_like(ids), **options, **more
            )
        responses = found[:, ids.shape[1] :]
        stops = torch.isin(responses, torch.tensor(task.stop_ids))
        ended = stops.int().argmax(dim=1) + 1
        whole = torch.full_like(ended, responses.shape[1])
        return int(torch.where(stops.any(dim=1), ended, whole).sum())

    def rate(**more: Any) -> float:
        answer(task.prompts[: task.rows], **more)
        start, tokens = time.perf_counter(), 0
        for i in range(0, len(task.prompts), task.rows):
            tokens += answer(task.prompts[i : i + task.rows], **more)
        return tokens / (time.perf_counter() - start)

    static = {"cache_implementation": "static", "disable_compile": True}
    return max(rate(), rate(**static))


if __name__ == "__main__":
    print(main(Task(**json.load(sys.stdin))))
