"""`negah VERB ...`: finds the verb, lets tyro parse its dataclass, runs it, and turns what goes wrong into one line.

Exit status: 0 done; 1 a bug in negah; 2 something given cannot be used (said in one line); 3 done, but some inputs
failed (listed in the results); 4 refuted, of `audit`; 130 stopped by Ctrl-C; 141 whoever read the output went away.

To add a verb: a file in this folder with a dataclass on `negah.cli.show.Verb`, a line in VERBS and its name in GROUPS.
Nothing heavy may be imported at the top of a verb's file: `negah --help` imports all of them and answers in well
under a second.
"""

import contextlib
import dataclasses
import difflib
import inspect
import io
import os
import re
import shutil
import sys
import textwrap
import traceback
from collections.abc import Sequence

from negah import __version__
from negah.cli import show
from negah.cli.attack import Attack
from negah.cli.attack_area import AttackArea
from negah.cli.audit import Audit
from negah.cli.calibrate import Calibrate
from negah.cli.caption import Caption
from negah.cli.completion import Completion, summaries
from negah.cli.doctor import Doctor
from negah.cli.dreambooth import DreamBooth
from negah.cli.export import Export
from negah.cli.generate import Generate
from negah.cli.harden import Harden
from negah.cli.lab import Lab
from negah.cli.pretrain import Pretrain
from negah.cli.probe import ProbeEval, ProbeTrain
from negah.cli.scene import Scene
from negah.cli.search import Search
from negah.cli.studio import Studio
from negah.cli.survey import Survey
from negah.errors import NegahError, told

VERBS: dict[str, type[show.Verb]] = {
    "survey": Survey,
    "calibrate": Calibrate,
    "probe train": ProbeTrain,
    "probe eval": ProbeEval,
    "pretrain": Pretrain,
    "attack": Attack,
    "attack area": AttackArea,
    "harden": Harden,
    "search": Search,
    "caption": Caption,
    "generate": Generate,
    "dreambooth": DreamBooth,
    "audit": Audit,
    "lab": Lab,
    "studio": Studio,
    "export": Export,
    "scene": Scene,
    "doctor": Doctor,
    "completion": Completion,
}
"""What is typed after `negah`, and the dataclass that parses and runs it."""

GROUPS: dict[str, tuple[str, ...]] = {
    "in a browser": ("studio",),
    "map solar panels": ("survey", "calibrate", "scene"),
    "learn from your pictures": ("pretrain", "probe train", "probe eval", "export"),
    "put a model to the test": ("attack", "attack area", "harden", "audit"),
    "pictures and words": ("search", "caption", "generate", "dreambooth"),
    "understand": ("lab",),
    "this machine": ("doctor", "completion"),
}
"""The verbs under the headings of `negah --help`."""

ABOUT = """\
negah, a gaze: find solar panels in aerial imagery, and say how large they are.
And teach vision models to see, to search, to describe and to draw, and prove
how far they can be fooled. All of it on this machine."""

EXAMPLES = """\
  negah scene town.tif                                draw a town to try it on
  negah survey town.tif --out map                     open map/report.html
  negah survey tiles/ --out map --gsd 0.3             pictures of 0.3 m a pixel
  negah search "a tennis court" --images tiles/       which fit the words best
  negah generate "a house with a red roof" --out new  pictures from words
  negah studio                                        all of it by hand
  negah doctor                                        what is installed here"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal cannot show
    debug = "--debug" in args
    name = ""
    try:
        if not args or args[0] in ("-h", "--help", "help"):
            status = print_help()
        elif args[0] == "--version":
            print(f"negah {__version__}")
            status = 0
        else:
            name, rest = find_verb(args)
            status = parse(name, rest).run() if name in VERBS else print_help(under=name)
        sys.stdout.flush()  # so that a broken pipe shows here and not when Python ends
        return status
    except SystemExit as end:  # tyro's, after --help (0) or an argument that it cannot parse (2)
        return end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        return _fail(130, VERBS[name].IF_INTERRUPTED if name in VERBS else "stopped", debug)
    except BrokenPipeError:
        # Whoever read stdout is gone (`negah ... | head`). Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as problem:
        return _fail(*told(problem, report=", run with --debug and please report what it prints"), debug)


def find_verb(args: Sequence[str]) -> tuple[str, list[str]]:
    """Split the words after `negah` into the verb's name and its arguments.

    A word that only begins verbs of two words (`negah probe`), alone or before --help, is returned as it is.
    """
    for words in (2, 1):
        name = " ".join(args[:words])
        if name in VERBS:
            return name, list(args[words:])
    family = [name for name in VERBS if name.startswith(args[0] + " ")]
    if family and (len(args) == 1 or args[1] in ("-h", "--help")):
        return args[0], []
    typed = " ".join(args[:2]) if family else args[0]
    near = difflib.get_close_matches(typed, VERBS, n=1)
    hint = f"did you mean `negah {near[0]}`?" if near else f"the verbs are {', '.join(family or VERBS)}"
    raise NegahError(f"there is no verb `{typed}`; {hint}")


def parse(name: str, args: Sequence[str]) -> show.Verb:
    """The verb's dataclass filled from its arguments; on --help tyro prints and exits.

    Raises NegahError for arguments that are wrong.
    """
    import tyro

    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    said, shown = io.StringIO(), io.TextIOWrapper(io.BytesIO(), encoding=sys.stdout.encoding, errors="replace")
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
            return tyro.cli(VERBS[name], prog=f"negah {name}", args=args, description="", config=config)
    except SystemExit as end:
        if end.code != 2:  # the help, into which tyro would put what the verb does as lines without an end
            shown.seek(0)
            usage, _, options = shown.read().partition("\n\n")
            about = wrapped(inspect.getdoc(VERBS[name]) or "", min(100, shutil.get_terminal_size().columns))
            print(f"{usage}\n\n{about}\n\n{options}", end="")
            raise
    options = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(VERBS[name])]
    raise NegahError(f"{hinted(complaint(said.getvalue()), options)}; see `negah {name} --help`")


def wrapped(text: str, width: int) -> str:
    """Paragraphs broken into lines of at most `width` letters; those with indented lines are left as they are."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        each if "\n " in each else textwrap.fill(" ".join(each.split()), width, break_on_hyphens=False)
        for each in paragraphs
    )


def complaint(box: str) -> str:
    """What tyro says is wrong with the arguments, out of the box that it draws around it, on one line."""
    lines = [line.strip("│╭╮╰╯|+ ") for line in box.splitlines()]
    # Without UTF-8 the box is drawn in ASCII.
    rules = [i for i, line in enumerate(lines) if "────" in line or "----" in line]
    first = rules[0] + 1 if rules else 0
    last = next((i for i in rules if i >= first), len(lines))
    text = " ".join(line for line in lines[first:last] if line)
    # Of an argument that may be left out tyro says first that what was given is not the word "None".
    before, _, errors = text.partition(" Got errors: ")
    reasons = [part for part in errors.split("- <class ") if part and not part.startswith("'NoneType'")]
    if reasons:
        return f"{before.partition(':')[0]}: {reasons[-1].partition('>: ')[2]}"
    return text.rstrip(".")


def hinted(text: str, options: Sequence[str]) -> str:
    """What tyro says of an unknown option or value, with the nearest known one; of no number, what a number is."""
    if unknown := re.match(r"Unrecognized options: (--[\w-]+)", text):
        near = difflib.get_close_matches(unknown[1], options, n=1)
        return f"{text}; did you mean {near[0]}?" if near else text
    if number := re.fullmatch(r"Error parsing (\S+): (could not convert|invalid literal).*?: '(.*)'", text):
        option, wrong, value = number.groups()
        what = "a number with a decimal point and no unit, such as 0.3" if "convert" in wrong else "a whole number"
        return f"{option} {value}: give {what}"
    if choice := re.fullmatch(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)", text):
        value, option, known = choice[1], choice[2], re.findall(r"'([^']*)'", choice[3])
        near = difflib.get_close_matches(value, known, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        return f"{option} {value}: {meant}give one of {', '.join(known)}"
    return text


def print_help(under: str = "") -> int:
    """Print the page of all verbs, or of those that begin with the word `under`; the exit status is 0."""
    verbs = {name: verb for name, verb in VERBS.items() if name.startswith(under)}
    width, told, paper = max(map(len, verbs)), summaries(verbs), shutil.get_terminal_size().columns
    lines = {
        name: textwrap.fill(
            f"  {name:<{width}}   {told[name]}", max(60, paper), subsequent_indent=" " * (width + 5),
            break_on_hyphens=False,
        )
        for name in verbs
    }  # fmt: skip
    print(f"usage: negah {under + ' ' if under else ''}VERB [ARGUMENTS]")
    if under:
        print("\n".join(["", "verbs", *lines.values()]))
    else:
        print(f"\n{ABOUT}")
        for heading, names in GROUPS.items():
            print("\n".join(["", heading, *(lines[name] for name in names)]))
    if not under:
        print(f"\nexamples\n{EXAMPLES}")
    print(f"\n`negah {under + ' ' if under else ''}VERB --help` shows a verb's arguments and an example of its use.")
    return 0


def _fail(status: int, message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    show.error(message)
    return status
