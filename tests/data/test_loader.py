"""The training loader shuffles, forgets nothing and resumes; evaluation sees all."""

import itertools
import json

import pytest

from rlhf_jax.data import DataError, batches, make_loader


def loader(**options):
    options = {"batch_size": 3, "seed": 0, "collate": tuple, **options}
    return make_loader(range(10), **options)


def epochs(num: int, **options) -> list[list[int]]:
    """The examples of each epoch; ten examples make three batches of three."""
    rows = [list(batch) for batch in itertools.islice(loader(**options), 3 * num)]
    return [sum(rows[3 * e : 3 * e + 3], []) for e in range(num)]


def test_an_epoch_holds_no_example_twice_and_leaves_one_out():
    for epoch in epochs(20):
        assert len(epoch) == 9 == len(set(epoch)) and set(epoch) < set(range(10))
    # The one left out is not always the same.
    assert len({sum(range(10)) - sum(epoch) for epoch in epochs(20)}) > 3


def test_every_epoch_has_its_own_order_which_the_seed_determines():
    assert len({tuple(epoch) for epoch in epochs(20)}) == 20
    assert epochs(3) == epochs(3)
    assert epochs(3) != epochs(3, seed=1)


def test_unshuffled():
    assert epochs(2, shuffle=False) == [list(range(9))] * 2


def test_number_of_epochs():
    assert len(list(loader(num_epochs=4))) == 12
    assert len(list(itertools.islice(loader(), 100))) == 100


def test_exact_resume_in_the_middle_of_the_second_epoch():
    uninterrupted = list(itertools.islice(loader(), 12))
    first = loader()
    assert [next(first) for _ in range(4)] == uninterrupted[:4]
    state = json.loads(json.dumps(first.get_state()))
    next(first)  # the state is of its moment, whatever comes after
    second = loader()
    second.set_state(state)
    assert [next(second) for _ in range(8)] == uninterrupted[4:]


@pytest.mark.parametrize("shuffle", [True, False])
def test_rows_say_which_examples_a_batch_is_of(shuffle):
    examples = [f"text {i}" for i in range(10)]
    options = {"batch_size": 3, "seed": 0, "collate": list, "shuffle": shuffle}
    read = make_loader(examples, **options)
    assert read.rows.tolist() == []
    seen = []
    for batch in itertools.islice(read, 12):  # four epochs
        assert [examples[row] for row in read.rows] == batch
        seen.append(read.rows)
    assert len({tuple(rows) for rows in seen}) == (12 if shuffle else 3)
    assert read.examples is examples


def test_rows_after_a_resume_are_those_of_the_batch():
    first = loader()
    for _ in range(4):
        next(first)
    state = first.get_state()
    expected = [(next(first), first.rows.tolist()) for _ in range(8)]
    second = loader()
    for _ in range(2):
        next(second)
    second.set_state(state)
    assert second.rows.tolist() == []  # there is no last batch
    found = [(next(second), second.rows.tolist()) for _ in range(8)]
    assert found == expected
    assert second.get_state() == first.get_state()


def test_collate_sees_a_batch_of_examples():
    assert next(loader(collate=list, shuffle=False)) == [0, 1, 2]
    sizes = [len(batch) for batch in loader(num_epochs=2)]
    assert sizes == [3] * 6


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"batch_size": 11}, DataError, "10 examples do .* batch_size=11; lower"),
        ({"batch_size": 0}, ValueError, "batch_size is 0; expected at least 1"),
        ({"num_epochs": 0}, ValueError, "num_epochs is 0; expected None or at least 1"),
    ],
)  # fmt: skip
def test_faults(options, error, message):
    with pytest.raises(error, match=message):
        loader(**options)


@pytest.mark.parametrize("num_examples", [0, 1, 2, 3, 4, 7])
def test_evaluation_drops_nothing(num_examples):
    found = list(batches(range(num_examples), 3, list))
    assert all(len(batch) == 3 == len(valid) for batch, valid in found)
    seen = [x for batch, valid in found for x, v in zip(batch, valid, strict=True) if v]
    assert seen == list(range(num_examples))
    with pytest.raises(ValueError, match="batch_size is 0"):
        next(batches([1], 0, list))
