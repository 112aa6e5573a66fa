import json
import re
import shutil
import subprocess

import pytest

from negah.cli import main as cli
from negah.cli.completion import arguments

SHELLS = ("bash", "zsh", "fish")
# What is typed, the last word not finished; what must be offered, and what must not.
TYPED = [
    ("negah se", {"search"}, {"survey"}),
    ("negah probe ", {"train", "eval"}, {"area"}),
    ("negah survey --pre", {"--precision"}, {"--out"}),
    ("negah survey --precision ", {"auto", "fp32", "bf16"}, {"--out"}),
    ("negah attack --nor", {"--norm"}, {"--eps"}),
    ("negah attack area --", {"--calibration", "--eps"}, {"--norm"}),
    ("negah pretrain dino", {"dino", "dinov2"}, {"byol"}),
    ("negah completion ", {"bash", "zsh", "fish"}, {"survey"}),
]

BASH = """\
source $1
COMP_WORDS=($2) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
case $2 in *' ') COMP_WORDS+=('') COMP_CWORD=$((COMP_CWORD + 1)) ;; esac
_negah
printf '%s\\n' "${COMPREPLY[@]}"
"""
# In place of the functions of zsh's own completion, which need a terminal.
ZSH = """\
compdef() { }
compadd() { shift; print -l -- $@ }
_describe() { print -l -- ${(@P)2%%:*} }
_arguments() {
    local spec
    for spec in $@; do
        if [[ $spec == '*:'* ]]; then print -l -- ${=${${spec##*:}//[()]/}}
        elif [[ $words[CURRENT-1] == ${${spec#\\*}%%\\[*} && $spec == *value:* ]]; then
            print -l -- ${=${${spec##*:}//[()]/}}; return
        fi
    done
    print -l -- ${${${(M)@:#\\*--*}#\\*}%%\\[*}
}
source $1
words=(${(s: :)2}); [[ $2 == *' ' ]] && words+=('')
CURRENT=$#words last=$words[-1]
_negah | while read -r offered; do [[ $offered == $last* ]] && print -r -- $offered; done
true
"""
FISH = "source $argv[1]; complete -C $argv[2] | string split -f 1 \\t; true"


def script(shell: str, capsys) -> str:
    """What `negah completion` prints."""
    assert cli.main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_verbs_options_and_values(shell, capsys, tmp_path):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed here")
    file = tmp_path / f"negah.{shell}"
    file.write_text(script(shell, capsys))
    words = {
        "bash": ["bash", "--norc", "-c", BASH, "bash"], "zsh": ["zsh", "-f", "-c", ZSH, "zsh"],
        "fish": ["fish", "-N", "-c", FISH],
    }[shell]  # fmt: skip
    for typed, offered, withheld in TYPED:
        done = subprocess.run([*words, str(file), typed], capture_output=True, text=True, cwd=tmp_path, timeout=20)
        assert done.returncode == 0 and not done.stderr, (typed, done.stderr)
        found = set(done.stdout.split())
        assert offered <= found and not withheld & found, (typed, found)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_options_are_those_of_the_help(verb, capsys):
    assert cli.main([*verb.split(), "--help"]) == 0
    shown = set(re.findall(r"^\W*(?:-h, )?(--[a-z][a-z0-9-]*)", capsys.readouterr().out, re.MULTILINE))
    given = arguments(cli.VERBS[verb])
    assert {argument.option for argument in given if argument.option} == shown
    assert all(argument.told for argument in given)


@pytest.mark.parametrize("shell", SHELLS)
def test_every_verb_and_option_is_in_each_script(shell, capsys):
    text = script(shell, capsys)
    for name, verb in cli.VERBS.items():
        assert name in text
        for option in (argument.option for argument in arguments(verb) if argument.option):
            assert (f"-l {option[2:]} " if shell == "fish" else option) in text


def test_a_script_comes_as_json_too(capsys):
    assert cli.main(["completion", "bash", "--json"]) == 0
    assert "complete -o default -F _negah negah" in json.loads(capsys.readouterr().out)["script"]


def test_an_unknown_shell_is_an_error_of_one_line(capsys):
    assert cli.main(["completion", "powershell"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_every_verb_stands_under_one_heading():
    grouped = [name for names in cli.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(cli.VERBS)
