"""sort_out: what can be used together, and what cannot, with its own error."""

import pytest

from rlhf_jax.data import DataError, Row, prompts, sort_out
from rlhf_jax.data.sorting import reason_kind


def rows_of(*texts) -> list[Row]:
    return [Row({"prompt": text}, "rows.jsonl", n) for n, text in enumerate(texts, 1)]


def test_what_is_not_faulty_is_used_in_one_call():
    calls = []

    def use(rows):
        calls.append(len(rows))
        return prompts(rows)

    used, faulty = sort_out(rows_of("a", "b", "c"), use)
    assert (len(used), faulty, calls) == (3, [], [3])


def test_each_item_is_on_one_side_in_order():
    rows = rows_of("a", "", "b", None, "c")
    used, faulty = sort_out(rows, prompts)
    assert [prompt.prompt for prompt in used] == ["a", "b", "c"]
    assert [row for row, _ in faulty] == [rows[1], rows[3]]
    assert [str(error).partition(": ")[0] for _, error in faulty] == [
        "rows.jsonl:2",
        "rows.jsonl:4",
    ]


def test_nothing_can_be_used():
    used, faulty = sort_out(rows_of("", None), prompts)
    assert used == [] and len(faulty) == 2


@pytest.mark.parametrize("text", ["no template", "rows.jsonl:11: of another row"])
def test_an_error_that_names_no_item_is_one_of_all(text):
    def use(rows):
        raise DataError(text)

    with pytest.raises(DataError, match=text):
        sort_out(rows_of("a"), use)


def test_other_errors_are_not_caught():
    with pytest.raises(ZeroDivisionError):
        sort_out(rows_of("a"), lambda rows: 1 / 0)


@pytest.mark.parametrize(
    "reason, kind",
    [
        ("not JSON (Expecting value, at character 3); …", "not JSON (Expecting value)"),
        ("not UTF-8 (byte 0xe9 at byte 3 of the line); …", "not UTF-8"),
        ("message 3: expected text, found 4; …", "message …: expected text"),
        (
            "the completion alone has 1,245 tokens, end token included, which …",
            "the completion alone has … tokens",
        ),
    ],
)
def test_kinds_of_reasons(reason, kind):
    assert reason_kind(reason) == kind
