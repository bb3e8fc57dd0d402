"""Records to token ids: one <bos>, one <eos>, and no row over the limit."""

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_jax.data import (
    DataError,
    Demonstration,
    Labeled,
    Preference,
    Prompt,
    Ranking,
    preferences,
    read_rows,
    tokenize_demonstrations,
    tokenize_labels,
    tokenize_preferences,
    tokenize_prompts,
    tokenize_rankings,
    train_tokenizer,
)

# One token a byte: "abc" with <bos> is 4 tokens, " de" with <eos> 4 more.
DEMONSTRATION = Demonstration("abc", " de", "rows.jsonl:7")


@pytest.fixture
def bare_tokenizer(byte_tokenizer):
    """A tokenizer without <bos>."""
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer.backend_tokenizer, eos_token="<eos>"
    )


def texts(tokenizer, rows, *fields):
    return [tuple(tokenizer.decode(getattr(r, f)) for f in fields) for r in rows]


@pytest.mark.fault(24)
def test_exactly_one_bos_and_one_eos(byte_tokenizer):
    rows, num_cut = tokenize_demonstrations(
        [DEMONSTRATION, Demonstration("", "<eos>")], byte_tokenizer, max_length=8
    )
    assert texts(byte_tokenizer, rows, "prompt", "completion") == [
        ("<bos>abc", " de<eos>"),
        ("<bos>", "<eos><eos>"),
    ]
    assert rows[1].completion.count(byte_tokenizer.eos_token_id) == 1
    assert num_cut == 0
    assert rows[0].origin == "rows.jsonl:7"


def test_everything_but_the_texts_is_kept(byte_tokenizer):
    [label], _ = tokenize_labels(
        [Labeled("a", "b", 1, "o")], byte_tokenizer, max_length=9
    )
    assert (label.label, label.origin) == (1, "o")
    given = Preference("a", "b", "c", 3, 0.5, 0.25, "o")
    [pair], _ = tokenize_preferences([given], byte_tokenizer, max_length=9)
    kept = (pair.annotator, pair.margin, pair.weight, pair.origin)
    assert kept == (3, 0.5, 0.25, "o")
    given = Ranking("a", ("b", "c", "d"), (0, 0, 1), 3, "o")
    [ranking], _ = tokenize_rankings([given], byte_tokenizer, max_length=9)
    assert (ranking.ranks, ranking.annotator, ranking.origin) == ((0, 0, 1), 3, "o")
    assert [byte_tokenizer.decode(c) for c in ranking.completions] == [
        "b<eos>", "c<eos>", "d<eos>",
    ]  # fmt: skip


@pytest.mark.fault(21)
def test_the_limit_is_exact(byte_tokenizer):
    # 4 + 4 tokens: 8 fit, 7 do not.
    tokenize_demonstrations([DEMONSTRATION], byte_tokenizer, max_length=8)
    message = (
        r"rows\.jsonl:7: 8 tokens are more than max_length=7; .*too_long='keep_end'"
    )
    with pytest.raises(DataError, match=message):
        tokenize_demonstrations([DEMONSTRATION], byte_tokenizer, max_length=7)
    tokenize_prompts([Prompt("abc")], byte_tokenizer, max_prompt_length=4)
    with pytest.raises(
        DataError, match="example 1: 5 tokens are more than max_prompt_length=4"
    ):
        tokenize_prompts(
            [Prompt("abc"), Prompt("abcd")], byte_tokenizer, max_prompt_length=4
        )


@pytest.mark.fault(21)
def test_keep_end_keeps_bos_and_the_end_of_the_prompt(byte_tokenizer):
    rows, num_cut = tokenize_demonstrations(
        [DEMONSTRATION, Demonstration("z", "z")], byte_tokenizer, max_length=6,
        too_long="keep_end",
    )  # fmt: skip
    assert texts(byte_tokenizer, rows, "prompt", "completion") == [
        ("<bos>c", " de<eos>"),
        ("<bos>z", "z<eos>"),
    ]
    assert num_cut == 1
    rows, num_cut = tokenize_prompts(
        [Prompt("abc"), Prompt("abcd")], byte_tokenizer, max_prompt_length=4,
        too_long="keep_end",
    )  # fmt: skip
    assert texts(byte_tokenizer, rows, "prompt") == [("<bos>abc",), ("<bos>bcd",)]
    assert num_cut == 1


@pytest.mark.fault(21)
def test_both_sides_share_one_cut(byte_tokenizer):
    # The longer side with <eos> has 5 tokens, so 3 of 8 are left for <bos> and prompt.
    for pair in (Preference("abc", "1234", "5"), Preference("abc", "5", "1234")):
        with pytest.raises(
            DataError, match="example 0: 9 tokens are more than max_length=8"
        ):
            tokenize_preferences([pair], byte_tokenizer, max_length=8)
        [row], num_cut = tokenize_preferences(
            [pair], byte_tokenizer, max_length=8, too_long="keep_end"
        )
        assert (byte_tokenizer.decode(row.prompt), num_cut) == ("<bos>bc", 1)
    [row], num_cut = tokenize_rankings(
        [Ranking("abc", ("1", "1234", "12"), (0, 1, 2))], byte_tokenizer, max_length=8,
        too_long="keep_end",
    )  # fmt: skip
    assert (byte_tokenizer.decode(row.prompt), num_cut) == ("<bos>bc", 1)


@pytest.mark.fault(21)
@pytest.mark.parametrize("too_long", ["error", "keep_end"])
def test_completions_are_never_cut(too_long, byte_tokenizer):
    # <bos>, one token of the prompt and " de<eos>" need 6.
    message = "rows.jsonl:7: the completion alone has 4 tokens.* in max_length=5; raise"
    with pytest.raises(DataError, match=message):
        tokenize_demonstrations(
            [DEMONSTRATION], byte_tokenizer, max_length=5, too_long=too_long
        )
    # Without a prompt <bos> is enough.
    empty = Demonstration("", " de")
    tokenize_demonstrations([empty], byte_tokenizer, max_length=5, too_long=too_long)
    with pytest.raises(DataError, match="the completion alone"):
        tokenize_demonstrations(
            [empty], byte_tokenizer, max_length=4, too_long=too_long
        )


@pytest.mark.fault(19)
def test_a_tokenizer_without_bos(bare_tokenizer):
    [row], _ = tokenize_demonstrations([DEMONSTRATION], bare_tokenizer, max_length=7)
    assert texts(bare_tokenizer, [row], "prompt", "completion") == [("abc", " de<eos>")]
    [row], _ = tokenize_demonstrations(
        [Demonstration("", "a")], bare_tokenizer, max_length=2
    )
    assert row.prompt == ()
    with pytest.raises(DataError, match="example 0: the prompt has no token"):
        tokenize_prompts([Prompt("")], bare_tokenizer, max_prompt_length=3)


def test_a_tokenizer_without_eos(byte_tokenizer):
    endless = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer.backend_tokenizer)
    with pytest.raises(DataError, match="no end token to learn; set its eos_token"):
        tokenize_demonstrations([DEMONSTRATION], endless, max_length=9)


def test_limits_that_cannot_hold_a_prompt(byte_tokenizer):
    with pytest.raises(ValueError, match="max_prompt_length is 1; expected"):
        tokenize_prompts([Prompt("a")], byte_tokenizer, max_prompt_length=1)


def test_no_examples(byte_tokenizer):
    assert tokenize_prompts([], byte_tokenizer, max_prompt_length=4) == ([], 0)
    assert tokenize_demonstrations([], byte_tokenizer, max_length=4) == ([], 0)


def test_real_preferences_fit_the_limit_and_round_trip(shared_data):
    pairs = preferences(read_rows(shared_data / "hh_harmless.jsonl.gz"))[:300]
    tokenizer = train_tokenizer([p.prompt + p.chosen for p in pairs], vocab_size=600)
    whole, num_cut = tokenize_preferences(pairs, tokenizer, max_length=4096)
    assert num_cut == 0
    longest = max(len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in whole)
    limit = longest // 2 + 100
    with pytest.raises(DataError, match="hh_harmless"):
        tokenize_preferences(pairs, tokenizer, max_length=limit)
    answers = [max(len(p.chosen), len(p.rejected)) for p in whole]
    keep = [
        pair for pair, size in zip(pairs, answers, strict=True) if size + 2 <= limit
    ]
    cut, num_cut = tokenize_preferences(
        keep, tokenizer, max_length=limit, too_long="keep_end"
    )
    assert 0 < num_cut < len(cut) == len(keep)
    text = lambda ids: str(tokenizer.decode(list(ids)))
    for pair, row in zip(keep, cut, strict=True):
        assert len(row.prompt) + max(len(row.chosen), len(row.rejected)) <= limit
        assert text(row.chosen[:-1]) == pair.chosen
        assert text(row.rejected[:-1]) == pair.rejected
        # Cut between tokens, which may be inside a character of several bytes.
        end = text(row.prompt[1:]).lstrip("\ufffd")
        assert pair.prompt.endswith(end)
