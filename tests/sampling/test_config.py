"""Options are checked where they are given."""

import pytest

from rlhf_jax.sampling import SamplingConfig


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: set it to at least 1"),
        ({"temperature": 0.0}, "temperature=0.0: set it to more than 0"),
        ({"top_k": 0}, "top_k=0: set it to at least 1, or None"),
        ({"top_p": 0.0}, "top_p=0.0: set it to in"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"min_p": -0.1}, "min_p=-0.1"),
        ({"stop_ids": (3, -1)}, r"stop_ids=\(3, -1\)"),
        ({"stop_after": -1}, "stop_after=-1"),
        ({"pad_id": -1}, "pad_id=-1"),
        ({"completions": 0}, "completions=0: set it to at least 1"),
        ({"read_ahead": 0}, "read_ahead=0: set it to at least 1"),
        ({"slots": 3, "completions": 4}, "slots=3: set it to completions = 4"),
        ({"stages": 2}, "stages=2: set it to 1 … max_new_tokens"),
        ({"prefill_chunk": 0}, "prefill_chunk=0"),
        ({"keep_sets": True}, "keep_sets=True: set it to False"),
    ],
)
def test_refuses_what_no_sampling_can_have(options, message):
    with pytest.raises(ValueError, match=message) as error:
        SamplingConfig(**{"max_new_tokens": 1, **options})
    assert "\n" not in str(error.value)


def test_is_static_under_jit():
    a, b = (SamplingConfig(max_new_tokens=3, stop_ids=(1, 2)) for _ in range(2))
    assert a == b and hash(a) == hash(b)
