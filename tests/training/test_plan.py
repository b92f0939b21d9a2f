"""The parts of a training whose images have one size, against a count of steps."""

import itertools

import pytest

from deepjax.training.plan import TrainPlan


@pytest.mark.parametrize("sizes", [(8,), (8, 16), (8, 12, 16), tuple(range(1, 8))])
@pytest.mark.parametrize("total", [1, 2, 5, 30, 31])
def test_the_steps_that_are_left_of_a_part_are_those_of_its_size(sizes, total):
    plan = TrainPlan(total, 5, sizes)
    of_step = [plan.image_size(step) for step in range(total)]
    left = [plan.steps_left_of_part(step) for step in range(total)]
    counted = [
        len(list(itertools.takewhile(of_step[step].__eq__, of_step[step:])))
        for step in range(total)
    ]
    assert left == counted
