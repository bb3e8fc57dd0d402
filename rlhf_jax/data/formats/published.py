"""Published data sets in the form in which their authors give them, to records."""

from dataclasses import replace
from statistics import fmean
from typing import Any

from rlhf_jax.data.columns import (
    annotator_number,
    check_label,
    check_text,
    column_error,
    column_value,
    describe,
    list_column,
    mapping_column,
    text_column,
)
from rlhf_jax.data.formats.trl import implicit_preference
from rlhf_jax.data.records import Preference, Ranking, preferences, rankings
from rlhf_jax.data.row import Row


def hh(row: Row) -> list[Preference[str]]:
    """Anthropic's HH: ``chosen`` and ``rejected``, whole transcripts.

    Bai et al. 2022, arXiv:2204.05862.
    """
    values = {k: value for k, value in row.values.items() if k != "prompt"}
    return preferences([replace(row, values=values)])


def ranking(row: Row) -> list[Ranking[str]]:
    """Ranked lists: ``prompt``, ``completions`` and ``ranks``, 0 the best.

    No reference.
    """
    return rankings([row])


def summarize_from_feedback(row: Row) -> list[Preference[str]]:
    """OpenAI's comparisons of summaries: ``info``, ``summaries``, ``choice``.

    Stiennon et al. 2020, arXiv:2009.01325; the prompts are those of their code.
    """
    info = mapping_column(row, "info")
    texts = list_column(row, "summaries", "a list of two summaries", least=2)
    if len(texts) != 2:
        raise column_error(row, "summaries", "a list of two summaries", describe(texts))
    sides = []
    for summary in texts:
        text = summary.get("text") if isinstance(summary, dict) else summary
        text = check_text(row, "summaries", text)
        sides.append(text if text[0].isspace() else f" {text}")
    choice = check_label(row, "choice", column_value(row, "choice"))
    chosen, rejected = sides[choice], sides[1 - choice]
    if chosen == rejected:
        raise column_error(row, "summaries", "two different texts", describe(chosen))
    prompt = _summary_prompt(row, info)
    annotator = annotator_number(row.values.get("worker"))
    return [Preference(prompt, chosen, rejected, annotator, origin=row.origin)]


def _summary_prompt(row: Row, info: dict[str, Any]) -> str:
    text = info.get("post") or info.get("article")
    if not text:
        raise column_error(row, "info", "a post or an article", describe(info))
    check_text(row, "info", text)
    if not info.get("post"):
        return f"Article:\n{text}\n\nTL;DR:"
    heads = {"SUBREDDIT: r/": info.get("subreddit"), "TITLE: ": info.get("title")}
    parts = [f"{head}{value}\n\n" for head, value in heads.items() if value]
    return f"{''.join(parts)}POST: {text}\n\nTL;DR:"


def ultrafeedback(row: Row) -> list[Ranking[str]]:
    """UltraFeedback: ``instruction`` and ``completions`` with scores; ties stay.

    Cui et al. 2023, arXiv:2310.01377.
    """
    wanted = "a list of at least two completions"
    completions = list_column(row, "completions", wanted, least=2)
    for completion in completions:
        if not isinstance(completion, dict):
            found = describe(completion)
            raise column_error(row, "completions", "mappings with a response", found)
        check_text(row, "completions", completion.get("response"))
    scores = _scores(row, completions)
    order = sorted(set(scores), reverse=True)
    values = {
        "prompt": text_column(row, "instruction"),
        "completions": [completion["response"] for completion in completions],
        "ranks": [order.index(score) for score in scores],
    }
    return rankings([replace(row, values=values)])


def _scores(row: Row, completions: list[dict[str, Any]]) -> list[float]:
    """Every completion's overall score, or every one's mean rating."""
    scores = [_number(completion.get("overall_score")) for completion in completions]
    if None in scores:
        scores = [_mean_rating(completion) for completion in completions]
    if None in scores:
        wanted = "an overall_score of each, or ratings of each"
        raise column_error(row, "completions", wanted, describe(scores))
    return [score for score in scores if score is not None]


def _mean_rating(completion: dict[str, Any]) -> float | None:
    aspects = completion.get("annotations")
    if not isinstance(aspects, dict):
        return None
    ratings = [
        _number(aspect.get("Rating"))
        for aspect in aspects.values()
        if isinstance(aspect, dict)
    ]
    numbers = [rating for rating in ratings if rating is not None]  # some are "N/A"
    return fmean(numbers) if numbers else None


def _number(value: Any) -> float | None:
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and abs(number) < 1e9 else None


def ultrafeedback_binarized(row: Row) -> list[Preference[Any]]:
    """UltraFeedback as pairs: ``chosen`` and ``rejected`` hold whole dialogues.

    Tunstall et al. 2023, arXiv:2310.16944.
    """
    for column in ("chosen", "rejected"):
        list_column(row, column, "a list of messages")
    return implicit_preference(row)
