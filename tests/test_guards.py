"""What the host makes of steps that were skipped: files, warnings, an end."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.guards import (
    Guard,
    GuardConfig,
    all_finite,
    check_finite,
    first_not_finite,
    not_finite,
)
from rlhf_jax.types import Metrics

ROWS = np.array([4, 7])


def step(skipped=0, of=1, loss=2.0):
    """Metrics of a step of so many updates."""
    means = {"sft/loss": (loss * 3, 3), "optim/skipped": (skipped, of)}
    return Metrics.of(means)


def guarded(tmp_path, restored=None, loss="sft/loss", **options):
    config = GuardConfig(**options)
    return Guard(tmp_path, config, restored_step=restored, loss=loss)


def lines(tmp_path):
    path = tmp_path / "faults.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_without_a_fault_nothing_is_written(tmp_path, capsys):
    guard = guarded(tmp_path, max_skipped=1)
    for number in range(1, 9):
        guard.check(number, step(), rows=ROWS)
    guard.check(9, Metrics.of({"loss": (1.0, 1)}), rows=ROWS)  # says nothing of it
    assert not (tmp_path / "faults.jsonl").exists() and guard.skipped == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.fault(14)
def test_a_fault_is_written_down_and_shown(tmp_path, capsys):
    guard = guarded(tmp_path)
    guard.check(3, step(skipped=1, loss=math.nan), rows=ROWS)
    assert lines(tmp_path) == [
        {
            "step": 3,
            "rows": [4, 7],
            "skipped": 1,
            "updates": 1,
            "in_a_row": 1.0,
            "not_finite": {"sft/loss": "NaN"},
        }
    ]
    shown = capsys.readouterr().err
    assert shown == (
        "warning: step 3, rows 4, 7: sft/loss = nan, update skipped; see "
        f"{tmp_path}/faults.jsonl\n"
    )


@pytest.mark.fault(14)
def test_so_many_in_a_row_stop_the_run(tmp_path):
    guard = guarded(tmp_path, max_skipped=3)
    for number in (1, 2, 4, 5):  # 3 is fine: they are not three in a row
        guard.check(number, step(skipped=1), rows=ROWS)
        if number == 2:
            guard.check(3, step(), rows=ROWS)
    with pytest.raises(UserError) as error:
        guard.check(6, step(skipped=1, loss=math.inf), rows=ROWS)
    message = str(error.value)
    assert "\n" not in message
    for word in ("step 6", "rows 4, 7", "sft/loss = inf", "3 in a row", "--resume"):
        assert word in message
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 4, 5, 6]
    assert guard.skipped == 5
    guard.check(7, step(skipped=1), rows=ROWS, stop=False)  # written, not raised
    assert len(lines(tmp_path)) == 6


@pytest.mark.fault(14)
def test_a_step_of_several_updates_counts_as_its_share(tmp_path):
    """Ten times a tenth is one, whatever the rounding."""
    guard = guarded(tmp_path, max_skipped=1)
    for number in range(1, 10):
        guard.check(number, step(skipped=1, of=10), rows=ROWS)
    with pytest.raises(UserError, match="1 of 10 updates skipped: 1 in a row"):
        guard.check(10, step(skipped=1, of=10), rows=ROWS)


@pytest.mark.fault(14)
def test_rows_have_names_and_scores_that_are_not_finite(tmp_path, capsys):
    """Each prompt has two completions."""
    names = {4: "films.jsonl:12", 7: "films.jsonl:3"}
    guard = Guard(
        tmp_path,
        GuardConfig(),
        restored_step=None,
        name_rows=lambda rows: [names[row] for row in rows],
    )
    scores = jnp.array([[1.0, jnp.nan], [jnp.inf, 0.0]])
    guard.check(1, step(skipped=2, of=4), rows=jnp.array([[4], [7]]), scores=scores)
    [line] = lines(tmp_path)
    assert line["rows"] == [4, 7] and line["origins"] == list(names.values())
    assert line["scores"] == [
        {"row": 4, "score": "NaN"},
        {"row": 7, "score": "Infinity"},
    ]
    shown = capsys.readouterr().err
    assert "rows films.jsonl:12, films.jsonl:3: score nan of row 4" in shown
    assert "2 of 4 updates skipped" in shown


def test_long_lists_of_rows_are_cut_on_the_screen_alone(tmp_path, capsys):
    guard = guarded(tmp_path)
    guard.check(1, step(skipped=1), rows=np.repeat(np.arange(20), 2))
    assert lines(tmp_path)[0]["rows"] == list(range(20))
    assert "rows 0, 1, 2, 3, 4, 5, 6, 7 and 12 more: " in capsys.readouterr().err


@pytest.mark.parametrize("restored, kept", [(None, []), (3, [1, 3]), (4, [1, 3])])
def test_faults_after_the_restored_step_are_deleted(tmp_path, restored, kept):
    guard = guarded(tmp_path)
    for number in (1, 2, 3, 4, 5):
        guard.check(number, step(skipped=number % 2), rows=ROWS)
    path = tmp_path / "faults.jsonl"
    path.write_text(path.read_text() + '{"step": 6, "ro')  # killed while writing
    guard = guarded(tmp_path, restored)
    assert [line["step"] for line in lines(tmp_path)] == kept
    assert guard.skipped == len(kept)


def test_a_resumed_run_goes_on_counting(tmp_path):
    """It stops at the step at which it would have stopped without the interruption."""
    for restored in (1, 2):
        guard = guarded(tmp_path, max_skipped=3)
        for number in (1, 2):
            guard.check(number, step(skipped=1), rows=ROWS)
        guard = guarded(tmp_path, restored, max_skipped=3)
        if restored == 1:
            guard.check(2, step(skipped=1), rows=ROWS)
        with pytest.raises(UserError, match="step 3, .* 3 in a row"):
            guard.check(3, step(skipped=1), rows=ROWS)


def test_a_line_that_is_no_fault_is_named(tmp_path):
    (tmp_path / "faults.jsonl").write_text(
        '{"step": 1, "skipped": 0, "in_a_row": 1}\n[]\n'
    )
    with pytest.raises(UserError, match="faults.jsonl:2: not a line of faults"):
        guarded(tmp_path, restored=4)


# Spikes.


def test_a_spike_is_far_above_the_median_of_the_last_losses(tmp_path, capsys):
    guard = guarded(tmp_path, spike=3.0)
    for number in range(1, 10):
        guard.check(number, step(loss=2.0 + number % 2), rows=ROWS)
    guard.check(10, step(loss=99.0), rows=ROWS)  # nine are not enough to say
    guard.check(11, step(loss=8.9), rows=ROWS)  # median 3 of ten: less than 9
    assert not (tmp_path / "faults.jsonl").exists()
    guard.check(12, step(loss=9.5), rows=ROWS)
    [line] = lines(tmp_path)
    assert line["spike"] == {"sft/loss": pytest.approx(9.5), "median": 3.0}
    assert line["skipped"] == 0 == guard.skipped and line["in_a_row"] == 1
    assert "sft/loss = 9.5 after a median of 3" in capsys.readouterr().err


def test_the_median_is_of_the_last_fifty(tmp_path):
    guard = guarded(tmp_path, spike=3.0)
    for number in range(1, 51):
        guard.check(number, step(loss=1.0), rows=ROWS)
    for number in range(51, 77):  # less than three times; then the median is 2.5
        guard.check(number, step(loss=2.5), rows=ROWS)
    guard.check(77, step(loss=7.0), rows=ROWS)
    assert not (tmp_path / "faults.jsonl").exists()
    guard.check(78, step(loss=7.6), rows=ROWS)
    assert lines(tmp_path)[0]["spike"]["median"] == 2.5


def test_spikes_and_skipped_updates_count_together(tmp_path):
    guard = guarded(tmp_path, spike=3.0, max_skipped=2)
    for number in range(1, 12):
        guard.check(number, step(loss=1.0), rows=ROWS)
    guard.check(12, step(loss=5.0), rows=ROWS)
    with pytest.raises(UserError, match="2 in a row"):
        guard.check(13, step(skipped=1, loss=math.nan), rows=ROWS)


def test_a_loss_around_zero_has_no_spikes(tmp_path):
    guard = guarded(tmp_path, spike=3.0)
    for number in range(1, 31):
        guard.check(number, step(loss=-1.0), rows=ROWS)
    guard.check(31, step(loss=5.0), rows=ROWS)
    assert not (tmp_path / "faults.jsonl").exists()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"max_skipped": 0}, "guard.max_skipped = 0: expected 1 or more"),
        ({"spike": 1.0}, "guard.spike = 1.0: expected more than 1, or none"),
        ({"spike": math.nan}, "guard.spike = nan: expected more than 1, or none"),
        ({"spike": 2.0, "loss": None}, "guard.spike = 2.0: there is no one loss"),
    ],
)
def test_options_out_of_range(tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        guarded(tmp_path, **options)


# States.

STATE = {
    "params": {"w": jnp.ones((2, 3)), "half": jnp.ones(2, jnp.bfloat16)},
    "opt_state": (np.ones(3), jnp.zeros((), jnp.int32)),
    "key": jax.random.key(0),
    "step": 3,
}


def spoilt(path, value):
    """The state with one number that is not finite."""
    change = lambda x: jnp.asarray(x).at[(0,) * (x.ndim - 1) + (-1,)].set(value)
    where = lambda p: jax.tree_util.keystr(p, simple=True, separator="/") == path
    return jax.tree_util.tree_map_with_path(
        lambda p, x: change(x) if where(p) else x, STATE
    )


@pytest.mark.fault(14)
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("path", ["params/w", "params/half", "opt_state/0"])
def test_a_state_that_is_not_finite_is_refused_by_its_leaf(path, value):
    state = spoilt(path, value)
    assert not all_finite(state) and first_not_finite(state) == path
    with pytest.raises(UserError, match=f"step 7: {path} is not finite, not saved"):
        check_finite(state, 7)


def test_a_finite_state_passes():
    assert all_finite(STATE) and first_not_finite(STATE) is None
    check_finite(STATE, 7)
    check_finite({"step": 3}, 7)  # nothing to look at


def test_a_mean_over_nothing_is_no_fault():
    found = Metrics.of(
        {"a": (0.0, 0), "b": (jnp.nan, 0), "c": (-jnp.inf, 2)},
        maxima={"d": jnp.inf, "e": 1.0},
    )
    assert set(not_finite(found)) == {"b", "c", "d"}
