"""Print a script by which a shell completes commands, options, and names of networks and data sets.

    deepjax completion bash > ~/.local/share/bash-completion/completions/deepjax
    deepjax completion zsh > ~/.deepjax-completion.zsh    # and `source` it in ~/.zshrc
    source <(deepjax completion bash)                     # in this shell only

Write it again after an update, and for networks of your own.
"""

import dataclasses
import importlib
import string
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import tyro

from deepjax.command_line import parse
from deepjax.data import list_datasets
from deepjax.help_page import HelpPage
from deepjax.models import list_models
from deepjax.option_specs import OptionSpec, option_specs
from deepjax.training.recipes.imagenet import list_recipes

_SCRIPT = """\
# Completion of deepjax, written by `deepjax completion $shell`.
${zsh}_deepjax() {
    local current=$${COMP_WORDS[COMP_CWORD]} previous=$${COMP_WORDS[COMP_CWORD-1]}
    local command=$${COMP_WORDS[1]} options='' values=''
    local models='$models'
    local datasets='$datasets'
    if [[ $$COMP_CWORD -eq 1 ]]; then
        COMPREPLY=($$(compgen -W '$commands --help --version' -- "$$current"))
        return
    fi
    case "$$command" in
$actions
    esac
    case "$$command" in
$cases
    esac
    if [[ $$current == -* ]]; then values=$$options; fi
    COMPREPLY=($$(compgen -W "$$values" -- "$$current"))
}
complete -o default -F _deepjax deepjax
"""
_ZSH = "autoload -U +X compinit bashcompinit && compinit -u && bashcompinit\n"
_ACTION = """\
        {command})
            if [[ $COMP_CWORD -eq 2 ]]; then
                COMPREPLY=($(compgen -W '{actions} --help' -- "$current"))
                return
            fi
            command="{command} ${{COMP_WORDS[2]}}" ;;"""
_CASE = """\
        {command!r})
            options='{options}'
            case "$previous" in
{values}
            esac ;;"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Print a completion script."""

    shell: Annotated[Literal["bash", "zsh"], tyro.conf.Positional]
    """The shell that reads it."""


def start(arguments: Sequence[str]) -> None:
    """Print the script."""
    from deepjax.cli.__main__ import COMMANDS

    options = parse(Options, arguments, page=HelpPage(str(__doc__)))
    print(script(options.shell, list(COMMANDS)), end="")


def script(shell: Literal["bash", "zsh"], commands: Sequence[str]) -> str:
    """The script. zsh reads that of bash, by its `bashcompinit`."""
    modules = {name: importlib.import_module(f"deepjax.cli.{name}") for name in commands}
    cases, actions = [], []
    for name, module in modules.items():
        if hasattr(module, "ACTIONS"):
            actions.append(_ACTION.format(command=name, actions=" ".join(module.ACTIONS)))
            for action, options in module.ACTION_OPTIONS.items():
                cases.append(_case(f"{name} {action}", option_specs(options)))
        else:
            cases.append(_case(name, option_specs(module.Options)))
    return string.Template(_SCRIPT).substitute(
        shell=shell,
        zsh=_ZSH if shell == "zsh" else "",
        models=" ".join(list_models()),
        datasets=" ".join(list_datasets()),
        commands=" ".join(commands),
        actions="\n".join(actions),
        cases="\n".join(cases),
    )


def _case(command: str, specs: Sequence[OptionSpec]) -> str:
    """What follows a command: the values of each option, else positional arguments."""
    flags = [flag for spec in specs for flag in spec.flags]
    lines = [
        f"                {spec.flags[0]}) values={values} ;;"
        for spec in specs
        if spec.takes_value and (values := _values(command, spec))
    ]
    files = [spec.flags[0] for spec in specs if spec.takes_value and not _values(command, spec)]
    if files:  # no words: the shell completes the names of files
        lines.append(f"                {'|'.join(files)}) ;;")
    positional = [_values(command, spec) for spec in specs if not spec.flags]
    lines.append(f"                *) values={next(filter(None, positional), repr(''))} ;;")
    options = " ".join([*flags, "--help", "--help-all"])
    return _CASE.format(command=command, options=options, values="\n".join(lines))


def _values(command: str, spec: OptionSpec) -> str:
    """The words of an option or argument, as bash reads them; "" where they are paths or free."""
    names: Mapping[str, str] = {
        "--model": "$models",
        "--dataset": "$datasets",
        "--also": "$datasets",
        "--recipe": repr(" ".join(["list", *list_recipes()])),
    }
    of_arguments = {"models": "$models", "evaluate": "$models", "data prepare": "$datasets"}
    if spec.choices:
        return repr(" ".join(spec.choices))
    found = names.get(spec.name) or ("" if spec.flags else of_arguments.get(command, ""))
    return f'"{found}"' if found.startswith("$") else found
