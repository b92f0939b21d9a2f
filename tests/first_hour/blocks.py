"""The commands and the Python of a page, in the order of its text."""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Literal

Kind = Literal["shell", "python", "file"]
PROGRAMS = ("deepjax ", "make ", "pip ", "python ", "source ", "docker ", "git ")
PROCESS = "--hosts.process-id"
_FENCE = re.compile(r"^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\s*$")
_COMMENT = re.compile(r"(?:^|\s{2,})#.*$")


@dataclasses.dataclass(frozen=True)
class Block:
    """What a reader types or saves."""

    page: str
    line: int
    heading: str
    kind: Kind
    text: str
    title: str = ""
    """The name of the file that the reader saves the text as."""

    @property
    def place(self) -> str:
        """Page and line, such as README.md:12."""
        return f"{self.page}:{self.line}"


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """Fenced blocks of Python, and commands of fenced and of indented blocks.

    A fenced block without a language is commands, as is one of `bash` or `sh`; other languages are
    outputs. Indented blocks also hold outputs and layouts of folders, so only their lines that
    begin with one of PROGRAMS are commands.
    """
    heading, lines = "", text.splitlines()
    number = 0
    while number < len(lines):
        line, start = lines[number], number + 1
        number += 1
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif fence := _FENCE.match(line):
            end = lines.index("```", number)
            inside, number = lines[number:end], end + 1
            yield from _fenced(page, start + 1, heading, fence, inside)
        elif line.startswith("    ") and line[4:].startswith(PROGRAMS):
            inside = [line[4:]]
            while inside[-1].endswith("\\"):
                inside.append(lines[number].strip())
                number += 1
            for _, command in commands(inside):
                yield Block(page, start, heading, "shell", command)


def at_once(blocks: Iterable[Block]) -> Iterator[Block]:
    """Commands that start the processes of one run are one command: each has a terminal."""
    for is_process, found in groupby(blocks, lambda block: PROCESS in block.text):
        group = list(found)
        if is_process:
            first, *others = (block.text for block in group)
            text = "".join(f"{each} & " for each in others) + f"{first} && wait $!"
            yield dataclasses.replace(group[0], text=text)
        else:
            yield from group


def _fenced(
    page: str, start: int, heading: str, fence: re.Match[str], inside: list[str]
) -> Iterator[Block]:
    if fence["language"] == "python":
        kind: Kind = "file" if fence["title"] else "python"
        yield Block(page, start, heading, kind, "\n".join(inside), fence["title"] or "")
    elif fence["language"] in ("", "bash", "sh", "console"):
        for offset, command in commands(inside):
            yield Block(page, start + offset, heading, "shell", command)


def commands(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Commands without comments, continued lines joined, each with the number of its line."""
    joined, start = "", 0
    for number, line in enumerate(lines):
        start = start if joined else number
        joined += _COMMENT.sub("", line.removeprefix("$ ")).strip()
        if joined.endswith("\\"):
            joined = joined[:-1].rstrip() + " "
        elif joined:
            yield start, joined
            joined = ""
