"""What a user is told of a training that came to nothing."""

import pytest

from tunestation.training.outcome import warnings

FALLING = [3.0 - 0.05 * step for step in range(30)]


def test_a_training_that_learns_or_hardly_does_is_no_matter():
    assert warnings(FALLING) == []
    assert warnings([3.0, 3.4, 2.9] + [3.3] * 20) == []


def test_a_loss_that_ends_well_above_its_beginning_is_told_with_what_to_do():
    assert warnings([2.9, 3.0, 3.1, *[8.1] * 20]) == [
        "the loss rose from 3 to 8.1: nothing useful was learned; try a lower train.learning_rate"
    ]


def test_a_few_steps_say_nothing_as_batches_differ():
    assert warnings([2.9, 8.1]) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_told_however_short_the_training(value):
    (said,) = warnings([3.0, value])
    assert said.startswith("the loss is no number any more")
