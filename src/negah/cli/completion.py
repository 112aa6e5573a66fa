"""`negah completion`: scripts by which shells complete verbs, their options and the options' values."""

import ast
import inspect
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from negah.cli import show

Shell = Literal["bash", "zsh", "fish"]


@dataclass(kw_only=True)
class Completion(show.Verb):
    """Print what teaches a shell to complete negah's verbs, options and values.

    The script holds the verbs and options of this version: print it anew after an update.

    Example:
        eval "$(negah completion bash)"                                      # in ~/.bashrc
        eval "$(negah completion zsh)"                                       # in ~/.zshrc, below compinit
        negah completion fish > ~/.config/fish/completions/negah.fish
    """

    shell: Positional[Shell]
    """Which shell."""

    def run(self) -> int:
        """Print the script."""
        from negah.cli.main import VERBS

        scripts = {"bash": bash, "zsh": zsh, "fish": fish}
        script = scripts[self.shell]({name: arguments(verb) for name, verb in VERBS.items()}, summaries(VERBS))
        if self.json:
            show.as_json({"shell": self.shell, "script": script})
        else:
            print(script, end="")
        return 0


class Argument(NamedTuple):
    """option: as it is typed, such as --out; empty for what is given by its place.  values: that it can have, where
    these are listed.  files: whether it may be a file.  flag: whether it has no value.  told: its help."""

    option: str
    values: tuple[str, ...]
    files: bool
    flag: bool
    told: str


Verbs = Mapping[str, Sequence[Argument]]
Summaries = Mapping[str, str]

BASH = """\
# bash completion of negah, made by `negah completion bash`
_negah() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} verb=${COMP_WORDS[1]} words=
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W '@firsts@ --help --version' -- "$word"))
        return
    fi
    if [ "$COMP_CWORD" -gt 2 ]; then
        case "$verb ${COMP_WORDS[2]}" in
            @pairs@) verb="$verb ${COMP_WORDS[2]}" ;;
        esac
    fi
    case $verb in
@cases@
    esac
    if [ "$COMP_CWORD" -eq 2 ]; then
        case $verb in
@seconds@
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _negah negah  # default: files, where nothing of the above fits
"""

ZSH = """\
#compdef negah
# zsh completion of negah, made by `negah completion zsh`
_negah() {
    local -a verbs=(@firsts@)
    if (( CURRENT == 2 )); then
        _describe verb verbs
        return
    fi
    local verb=$words[2] skip=1
    if (( CURRENT == 3 )); then
        case $verb in
@seconds@
        esac
    else
        case "$verb $words[3]" in
            @pairs@) verb="$verb $words[3]" skip=2 ;;
        esac
    fi
    shift $skip words
    (( CURRENT -= skip ))
    case $verb in
@cases@
    esac
}
compdef _negah negah
"""

FISH = """\
# fish completion of negah, made by `negah completion fish`
function __negah_at --description 'whether these words are all that was typed so far'
    set -l words (commandline -opc)
    test "$words[2..]" = "$argv"
end
function __negah_in --description 'whether the first of these verbs was typed, and none of the longer ones behind it'
    set -l words (commandline -opc)
    for longer in $argv[2..]
        test "$words[2..3]" = "$longer"; and return 1
    end
    set -l count (count (string split ' ' -- $argv[1]))
    test "$words[2.."(math $count + 1)"]" = "$argv[1]"
end
complete -c negah -n __fish_use_subcommand -f
complete -c negah -n __fish_use_subcommand -l help -d 'Show the help'
complete -c negah -n __fish_use_subcommand -l version -d 'Print the version'
@cases@
"""


def arguments(verb: type[show.Verb]) -> list[Argument]:
    """Those of a verb in the order of its fields, and --help."""
    hints, told = get_type_hints(verb, include_extras=True), comments(verb)
    found = [Argument("--help", (), False, True, "Show the help.")]
    for field in fields(verb):
        hint = hints[field.name]
        kinds = leaves(hint)
        values = tuple(str(kind) for kind in kinds if not isinstance(kind, type))
        by_place = "Positional" in repr(hint)
        option = "" if by_place else "--" + field.name.replace("_", "-")
        files = not values and bool({str, Path} & set(kinds))
        found.append(Argument(option, values, files, kinds == [bool], told[field.name]))
    return found


def leaves(hint: Any) -> list[Any]:
    """The types and the listed values inside an annotation, None aside."""
    if get_origin(hint) is Annotated:
        return leaves(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return [value for value in get_args(hint) if value is not None]
    inner = [leaf for part in get_args(hint) if part is not Ellipsis for leaf in leaves(part)]
    return inner or ([] if hint is type(None) else [hint])


def comments(verb: type[show.Verb]) -> dict[str, str]:
    """The first sentence of the string below each field, of which tyro makes its help."""
    found: dict[str, str] = {}
    for base in [base for base in reversed(verb.__mro__) if issubclass(base, show.Verb)]:
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:]):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                line = " ".join(str(ast.literal_eval(text.value)).split())
                found[field.target.id] = line.partition(". ")[0].rstrip(".")
    return found


def summaries(verbs: Mapping[str, type[show.Verb]]) -> dict[str, str]:
    """The first line of each verb's help."""
    return {name: (inspect.getdoc(verb) or "").splitlines()[0] for name, verb in verbs.items()}


def bash(verbs: Verbs, told: Summaries) -> str:
    """A script for bash 3.2 and newer."""
    cases = []
    for name, given in verbs.items():
        words = [argument.option for argument in given if argument.option]
        words += [value for argument in given if not argument.option for value in argument.values]
        free = [argument.option for argument in given if argument.option and not (argument.flag or argument.values)]
        cases += [
            f"        {shlex.quote(name)}) case $before in",
            *(f"            {argument.option}) words={shlex.quote(' '.join(argument.values))} ;;"
              for argument in given if argument.option and argument.values),
            *([f"            {'|'.join(free)}) words= ;;"] if free else []),
            f"            *) words={shlex.quote(' '.join(words))} ;;",
            "        esac ;;",
        ]  # fmt: skip
    seconds = [f'            {first}) words="$words {" ".join(rest)}" ;;' for first, rest in families(verbs).items()]
    return filled(BASH, firsts=" ".join(dict.fromkeys(name.split()[0] for name in verbs)), pairs=pairs(verbs),
                  cases="\n".join(cases), seconds="\n".join(seconds))  # fmt: skip


def zsh(verbs: Verbs, told: Summaries) -> str:
    """A script for zsh 5."""
    cases = []
    for name, given in verbs.items():
        specs = []
        for argument in given:
            about = argument.told.translate(str.maketrans("[]:\\", "(),/"))
            action = f"({' '.join(argument.values)})" if argument.values else "_files" if argument.files else " "
            value = "" if argument.flag else f":value:{action}"
            specs.append(f"*{argument.option}[{about}]{value}" if argument.option else f"*:{about}:{action}")
        cases.append(f"        {shlex.quote(name)}) _arguments {' '.join(map(shlex.quote, specs))} ;;")
    seconds = [f"            {first}) compadd -- {' '.join(rest)} ;;" for first, rest in families(verbs).items()]
    firsts = [shlex.quote(f"{first}:{about}") for first, about in described(verbs, told).items()]
    return filled(ZSH, firsts=" ".join(firsts), pairs=pairs(verbs), cases="\n".join(cases), seconds="\n".join(seconds))


def fish(verbs: Verbs, told: Summaries) -> str:
    """A script for fish 3."""
    lines = [
        f"complete -c negah -n __fish_use_subcommand -a {first} -d {quoted(about)}"
        for first, about in described(verbs, told).items()
    ]
    for first, rest in families(verbs).items():
        lines.append(f"complete -c negah -n '__negah_at {first}' -a {quoted(' '.join(rest))}")
    for name, given in verbs.items():
        longer = [other for other in verbs if other.startswith(f"{name} ")]
        condition = quoted(" ".join(["__negah_in", *(f'"{each}"' for each in [name, *longer])]))
        for argument in given:
            option = f"-l {argument.option[2:]} " if argument.option else ""
            if argument.values:
                words = f"{'-x' if option else '-f'} -a {quoted(' '.join(argument.values))} "
            elif option and not argument.flag:
                words = "-r -F " if argument.files else "-x "
            else:
                words = ""
            if option or words:
                lines.append(f"complete -c negah -n {condition} {option}{words}-d {quoted(argument.told)}")
    return filled(FISH, cases="\n".join(lines))


def filled(script: str, **parts: str) -> str:
    """The script with each @NAME@ replaced by its part."""
    for name, part in parts.items():
        script = script.replace(f"@{name}@", part)
    return script


def pairs(verbs: Verbs) -> str:
    """Verbs of two words, as a pattern of `case`."""
    return "|".join(shlex.quote(name) for name in verbs if " " in name)


def described(verbs: Verbs, told: Summaries) -> dict[str, str]:
    """What may be typed first, and what it is for."""
    alone = {name.split()[0]: told.get(name, "") for name in verbs}
    return alone | {first: told.get(first) or ", ".join(rest) for first, rest in families(verbs).items()}


def families(verbs: Verbs) -> dict[str, list[str]]:
    """First words of verbs of two words, and what may follow."""
    found: dict[str, list[str]] = {}
    for first, *rest in (name.split() for name in verbs):
        if rest:
            found.setdefault(first, []).append(rest[0])
    return found


def quoted(text: str) -> str:
    """Quoted for fish, whose single quotes know two escapes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
