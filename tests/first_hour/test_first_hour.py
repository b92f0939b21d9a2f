"""What `make first-hour` types: every block of its pages, or a reason why not."""

from pathlib import Path

import pytest

from tests.first_hour.blocks import at_once, blocks_of, commands
from tests.first_hour.users import CHANGES, NOT_RUN, USERS, changed, reason_not_run

ROOT = Path(__file__).parents[2]
PAGE = """# Title

```
make demo    # about a minute
deepjax train --model a \\
    --dataset b

```
## Section

    deepjax runs list
    photos/cat/0001.jpg

```python title="own.py"
x = 1
```
```python
print(x)
```
```text
1
```
"""


def test_commands_and_python_are_found_and_outputs_are_not():
    found = [(each.line, each.heading, each.kind, each.text) for each in blocks_of("page", PAGE)]
    assert found == [
        (4, "Title", "shell", "make demo"),
        (5, "Title", "shell", "deepjax train --model a --dataset b"),
        (11, "Section", "shell", "deepjax runs list"),
        (15, "Section", "file", "x = 1"),
        (18, "Section", "python", "print(x)"),
    ]
    assert list(commands(["$ make x  # why", "", "# all of it"])) == [(0, "make x")]


def test_processes_of_one_run_are_started_at_once():
    lines = ["deepjax runs list", "a --hosts.process-id 0", "a --hosts.process-id 1"]
    page = "\n".join(("```", *lines, "```"))
    assert [block.text for block in at_once(blocks_of("page", page))] == [
        "deepjax runs list",
        "a --hosts.process-id 1 & a --hosts.process-id 0 && wait $!",
    ]


@pytest.mark.parametrize("page", sorted({part.page for user in USERS for part in user.parts}))
def test_a_user_types_every_block_of_a_page(page):
    blocks = list(blocks_of(page, (ROOT / page).read_text()))
    typed = [
        block for block in blocks if any(part.has(block) for user in USERS for part in user.parts)
    ]
    assert blocks and typed == blocks


def test_changes_and_reasons_are_still_needed():
    """Those of README and the pages of the users; of tutorials a text may have no use yet."""
    parts = [part for user in USERS for part in user.parts]
    blocks = [
        block for part in parts for block in blocks_of(part.page, (ROOT / part.page).read_text())
    ]
    run = [block.text for block in blocks if not reason_not_run(block)]
    assert all(any(change.old in text for text in run) for change in CHANGES)
    assert {each.reason for each in NOT_RUN} > {reason_not_run(block) for block in blocks} - {""}
    assert changed("deepjax train --epochs 30")[1] != []
