"""``mqttc completion``: scripts for bash, zsh and fish, made from the commands' own parsers; nothing of mqttc runs at the Tab key."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Final

from mqttc.cli.arguments import EXIT_OK, Parser

_FILES: Final = ("FILE", "PATH")
_HELP: Final = "where it goes: bash: source <(mqttc completion bash); zsh: mqttc completion zsh > a directory of $fpath, as _mqttc; "
_HELP_FISH: Final = "fish: mqttc completion fish > ~/.config/fish/completions/mqttc.fish."


def parser() -> Parser:
    made = Parser("mqttc completion", "Prints a completion script.", _HELP + _HELP_FISH)
    made.usage = "mqttc completion SHELL"
    made.add_argument("shell", metavar="SHELL", choices=tuple(SCRIPTS), help="bash, zsh or fish")
    return made


def run(options: argparse.Namespace) -> int:
    from mqttc.cli.main import COMMANDS, parser_of

    parsers = {name: parser_of(name) for name in COMMANDS}
    print(SCRIPTS[options.shell](COMMANDS, parsers), end="")
    return EXIT_OK


def _plain(text: str) -> str:
    """A help text as it is shown."""
    return (text or "").replace("%%", "%")


def _is_file(action: argparse.Action) -> bool:
    return action.metavar in _FILES


def _words(action: argparse.Action) -> list[str]:
    return [str(choice) for choice in action.choices or ()]


def _arguments(parser: Parser) -> list[str]:
    """What a command completes without an option: the shells of `completion`."""
    return [word for action in parser._actions if not action.option_strings for word in _words(action)]


def bash(commands: dict[str, str], parsers: dict[str, Parser]) -> str:
    cases: list[str] = []
    for name, made in parsers.items():
        values = []
        free = []
        for action in made.options():
            names = "|".join(action.option_strings)
            if action.nargs == 0:
                continue
            if words := _words(action):
                values.append(f'                {names}) COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$word")); return ;;')
            elif _is_file(action):
                values.append(f'                {names}) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$word")); return ;;')
            else:
                free.append(names)
        if free:
            values.append(f"                {'|'.join(free)}) return ;;")
        options = " ".join([*(word for action in made.options() for word in action.option_strings), *_arguments(made)])
        body = "\n".join(values)
        choose = f'            case "$before" in\n{body}\n            esac\n' if values else ""
        cases.append(f'        {name})\n{choose}            COMPREPLY=($(compgen -W "{options}" -- "$word")) ;;')
    top = " ".join([*commands, "--help", "--version"])
    return f"""# bash completion of mqttc; mqttc completion bash prints it
_mqttc() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" IFS=$' \\t\\n'
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "{top}" -- "$word"))
        return
    fi
    case "${{COMP_WORDS[1]}}" in
{chr(10).join(cases)}
    esac
}}
complete -F _mqttc mqttc
"""


def zsh(commands: dict[str, str], parsers: dict[str, Parser]) -> str:
    cases: list[str] = []
    for name, made in parsers.items():
        specifications = [_zsh_option(action) for action in made.options()]
        if words := _arguments(made):
            specifications.append(f"'1:shell:({' '.join(words)})'")
        lines = " \\\n            ".join(specifications)
        cases.append(f"        {name})\n          _arguments -s -S \\\n            {lines} ;;")
    described = "\n".join(f"    '{name}:{_zsh_text(what)}'" for name, what in commands.items())
    return f"""#compdef mqttc
# zsh completion of mqttc; mqttc completion zsh prints it
_mqttc() {{
  local context state state_descr line
  typeset -A opt_args
  local -a commands
  commands=(
{described}
  )
  _arguments -C '(- *)--help[show help]' '(- *)--version[show the version]' '1: :->command' '*:: :->option'
  case $state in
    command) _describe command commands ;;
    option)
      case $line[1] in
{chr(10).join(cases)}
      esac ;;
  esac
}}
if [[ $funcstack[1] == _mqttc ]]; then
  _mqttc "$@"
else
  compdef _mqttc mqttc
fi
"""


def _zsh_text(text: str) -> str:
    return re.sub(r"([\[\]:\\])", r"\\\1", _plain(text)).replace("'", "'\\''")


def _zsh_option(action: argparse.Action) -> str:
    help_text = _zsh_text(action.help or "")
    value = ""
    if action.nargs != 0:
        name = _zsh_text(str(action.metavar or action.dest).lower())
        what = f"({' '.join(_words(action))})" if action.choices else "_files" if _is_file(action) else ""
        value = f":{name}:{what}"
    repeated = "'*'" if isinstance(action.default, tuple) else ""
    if len(action.option_strings) == 1:
        return f"{repeated}'{action.option_strings[0]}[{help_text}]{value}'"
    return f"{repeated}{{{','.join(action.option_strings)}}}'[{help_text}]{value}'"


def fish(commands: dict[str, str], parsers: dict[str, Parser]) -> str:
    lines = ["# fish completion of mqttc; mqttc completion fish prints it", "complete -c mqttc -f"]
    for name, what in commands.items():
        lines.append(f"complete -c mqttc -n __fish_use_subcommand -a {name} -d {_fish_text(what)}")
    for name, made in parsers.items():
        condition = f"complete -c mqttc -n '__fish_seen_subcommand_from {name}'"
        for action in made.options():
            names = " ".join(f"-l {word[2:]}" if word.startswith("--") else f"-s {word[1:]}" for word in action.option_strings)
            value = ""
            if action.nargs != 0:
                value = f" -x -a '{' '.join(_words(action))}'" if action.choices else " -r -F" if _is_file(action) else " -x"
            lines.append(f"{condition} {names}{value} -d {_fish_text(action.help or '')}")
        if words := _arguments(made):
            lines.append(f"{condition} -a '{' '.join(words)}'")
    return "\n".join(lines) + "\n"


def _fish_text(text: str) -> str:
    return "'" + _plain(text).replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS: Final[dict[str, Callable[[dict[str, str], dict[str, Parser]], str]]] = {"bash": bash, "zsh": zsh, "fish": fish}
