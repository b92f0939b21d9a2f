"""Training from given weights is what a run does from its own."""

import jax
import numpy as np
import pytest

from deepjax.study.finetune import finetune, initial_variables, train_error
from deepjax.training import open_run, train
from deepjax.training.config import train_config


@pytest.mark.slow  # a quarter of a minute, of which most is compilation
def test_from_a_runs_own_start_it_comes_to_the_runs_end(tmp_path):
    config = train_config(
        model="cifar_plain20", width=2, batch_size=240, steps=3, warmup_epochs=0.0, seed=3
    )
    result = train(config, tmp_path)
    start = initial_variables(config)
    ends = finetune(config, start), open_run(tmp_path).variables
    jax.tree.map(np.testing.assert_array_equal, *ends)
    again = finetune(config, start)  # the step donates its state, never what it was given
    jax.tree.map(np.testing.assert_array_equal, again, ends[0])
    assert train_error(config, ends[0]) == result.train_error
