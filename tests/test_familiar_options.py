"""Options of other programs: each hint names an option that there is."""

import pytest

from deepjax.cli import evaluate_options, train
from deepjax.command_line import option_flags, parse
from deepjax.errors import InputError
from deepjax.familiar_options import FAMILIAR_OPTIONS, FAMILIAR_REMEDIES

KNOWN = {*option_flags(train.Options), *option_flags(evaluate_options.Options)}
OF_TRAIN = ["--model", "vgg11", "--output-dir", "runs/a"]


@pytest.mark.parametrize(("theirs", "ours"), FAMILIAR_OPTIONS.items())
def test_the_hint_is_an_option(theirs, ours):
    assert ours.split()[0] in KNOWN and theirs not in KNOWN


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--lr", "0.1"], "option --lr is unknown; use --learning-rate"),
        (["--workers", "4"], "option --workers is unknown; use --decode-threads"),
        (["--resume"], f"option --resume is unknown; {FAMILIAR_REMEDIES['--resume']}"),
        (["--batch_sise", "4"], "option --batch_sise is unknown; did you mean --batch-size?"),
    ],
)
def test_the_error_says_what_to_use(given, message):
    with pytest.raises(InputError) as raised:
        parse(train.Options, [*OF_TRAIN, *given])
    assert str(raised.value).startswith(message)
