"""From files and data sets to batches of tokens, on the host.

``read_rows`` → ``demonstrations`` and its kin → ``tokenize_demonstrations`` … →
``make_loader`` with ``collate_demonstrations`` … ``read_records`` reads more formats,
and goes on where a row is faulty; ``sort_out`` does that for any strict function.
"""

from rlhf_jax.data.batching import (
    collate_demonstrations,
    collate_labels,
    collate_preferences,
    collate_prompts,
    collate_rankings,
    left_padded,
    right_padded,
)
from rlhf_jax.data.builders import LocalFeedback, build_dataset
from rlhf_jax.data.chat import (
    ChatTokens,
    collate_chat,
    tokenize_chat,
    tokenize_chat_prompt,
    tokenize_conversation_prompts,
    tokenize_conversations,
)
from rlhf_jax.data.chat_answers import (
    chat_labels,
    chat_preferences,
    tokenize_chat_labels,
    tokenize_chat_preferences,
)
from rlhf_jax.data.conversations import (
    Conversation,
    conversation_prompts,
    conversations,
)
from rlhf_jax.data.formats import FORMATS, detect_format, record_values
from rlhf_jax.data.grammar import gold_sentiment
from rlhf_jax.data.loader import Loader, batches, make_loader
from rlhf_jax.data.packing import (
    collate_packed,
    collate_packed_preferences,
    pack,
    pack_experience,
)
from rlhf_jax.data.quarantine import (
    Records,
    read_records,
    write_quarantined,
    write_records,
)
from rlhf_jax.data.records import (
    Demonstration,
    Labeled,
    Preference,
    Prompt,
    Ranking,
    demonstrations,
    labels,
    preferences,
    prompts,
    rankings,
)
from rlhf_jax.data.row import DataError, Fault, Row
from rlhf_jax.data.sorting import sort_out
from rlhf_jax.data.sources import read_rows, rename_columns, scan_rows
from rlhf_jax.data.tiny_reviews import TinyReviews, load_tiny_reviews, oracle_accuracy
from rlhf_jax.data.tokenizer import (
    encode_texts,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from rlhf_jax.data.tokenizing import (
    tokenize_demonstrations,
    tokenize_labels,
    tokenize_preferences,
    tokenize_prompts,
    tokenize_rankings,
)
from rlhf_jax.data.transcripts import read_transcripts
from rlhf_jax.data.writing import write_rows

__all__ = [
    "ChatTokens",
    "Conversation",
    "DataError",
    "Demonstration",
    "FORMATS",
    "Fault",
    "Labeled",
    "Loader",
    "LocalFeedback",
    "Preference",
    "Prompt",
    "Ranking",
    "Records",
    "Row",
    "TinyReviews",
    "batches",
    "build_dataset",
    "chat_labels",
    "chat_preferences",
    "collate_chat",
    "collate_demonstrations",
    "collate_labels",
    "collate_packed",
    "collate_packed_preferences",
    "collate_preferences",
    "collate_prompts",
    "collate_rankings",
    "conversation_prompts",
    "conversations",
    "demonstrations",
    "detect_format",
    "encode_texts",
    "gold_sentiment",
    "labels",
    "left_padded",
    "load_tiny_reviews",
    "load_tokenizer",
    "make_loader",
    "oracle_accuracy",
    "pack",
    "pack_experience",
    "preferences",
    "prompts",
    "rankings",
    "read_records",
    "read_rows",
    "read_transcripts",
    "record_values",
    "rename_columns",
    "right_padded",
    "save_tokenizer",
    "scan_rows",
    "sort_out",
    "tokenize_chat",
    "tokenize_chat_labels",
    "tokenize_chat_preferences",
    "tokenize_chat_prompt",
    "tokenize_conversation_prompts",
    "tokenize_conversations",
    "tokenize_demonstrations",
    "tokenize_labels",
    "tokenize_preferences",
    "tokenize_prompts",
    "tokenize_rankings",
    "train_tokenizer",
    "write_quarantined",
    "write_records",
    "write_rows",
]
