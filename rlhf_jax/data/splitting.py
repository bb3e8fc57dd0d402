"""Where the prompt ends that two answers have in common: at a turn, never in a word.

Each function takes both sides whole and returns how much of them is the prompt, so that
prompt and answer put together are each side exactly.
"""

import os
from collections.abc import Sequence

from rlhf_jax.data.conversations import Message

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"  # turns of Anthropic's HH transcripts


def split_transcripts(chosen: str, rejected: str) -> int:
    """Characters up to and with the last turn of the assistant that both begin.

    Bai et al. 2022, arXiv:2204.05862, for the transcripts: "\\n\\nHuman: …" and
    "\\n\\nAssistant: …" in turn.

    Args:
      chosen: one dialogue.
      rejected: the other one.

    Returns:
      Where the answers begin; 0 if no turn of the assistant is in common.

    >>> dialogue = "\\n\\nHuman: 2 + 2?\\n\\nAssistant: "
    >>> end = split_transcripts(dialogue + "40", dialogue + "4")
    >>> dialogue[:end].endswith("Assistant:")
    True
    """
    end = os.path.commonprefix([chosen, rejected]).rfind(ASSISTANT)
    return 0 if end < 0 else end + len(ASSISTANT)


def split_texts(chosen: str, rejected: str) -> int:
    """Characters up to the last white space in common; answers begin with it.

    No reference. Neither answer is empty or white space alone.

    Args:
      chosen: one text.
      rejected: the other one.

    Returns:
      Where the answers begin; 0 if the texts differ in their first word.

    >>> split_texts("The sky is blue.", "The sky is black.")  # not after "bl"
    10
    """
    end = len(os.path.commonprefix([chosen, rejected]))
    end = min(end, len(chosen.rstrip()) - 1, len(rejected.rstrip()) - 1)
    while end > 0 and not (chosen[end].isspace() and rejected[end].isspace()):
        end -= 1
    return len(chosen[:end].rstrip()) if end > 0 else 0


def split_messages(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """Messages up to the first answer in which the dialogues differ.

    No reference. Where they differ in a turn of the user, the answer before it belongs
    to both sides: what is preferred always begins with the assistant.

    Args:
      chosen: one dialogue.
      rejected: the other one.

    Returns:
      How many messages are the prompt; 0 if there is none that an answer follows.

    >>> ask, four, five = ({"role": role, "content": text} for role, text in
    ...     [("user", "2 + 2?"), ("assistant", "4"), ("assistant", "5")])
    >>> split_messages([ask, four], [ask, five])
    1
    """
    pairs = list(zip(chosen, rejected, strict=False))
    end = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs) - 1)
    while end > 0 and any(side["role"] != "assistant" for side in pairs[end]):
        end -= 1
    return max(end, 0)
