"""The program: which verb is meant, what it was told, and what a failure looks like."""

import argparse
import errno
import inspect
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from understudy import __version__
from understudy.cli.flags import Flags, Listed, method_table
from understudy.cli.options import Options, plain, split_method_settings
from understudy.cli.verb import Verb
from understudy.cli.verbs import VERBS
from understudy.errors import Stopped, UnderstudyError
from understudy.models.trust import ANY, trusting
from understudy.settings import nearest, write_toml

UNUSABLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
    errno.ENOSPC, errno.EDQUOT,
}  # fmt: skip
"""What the system answers to a path that cannot be used as given; other answers are more likely our own mistake."""


class Parser(argparse.ArgumentParser):
    """A parser that answers a wrong call in one sentence, with status 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the call and where to read how it goes."""
        self.exit(2, f"{self.prog}: {message.rstrip('.')}. `{self.prog} --help` shows how it is called.\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: arguments without the program name; those of the process unless given.

    Returns:
        The exit status: 0 done, 1 the user can mend it (one sentence on standard error), 2 wrong arguments, 130
        interrupted, 143 stopped by a signal with a checkpoint written.
    """
    words = plain(sys.argv[1:] if argv is None else argv)
    show_traceback = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    name = next((word for word in words if not word.startswith("-")), "")
    try:
        return call(name, words)
    except Stopped:
        return 143
    except UnderstudyError as error:
        if show_traceback:
            raise
        sentence, status = str(error), 1
    except OSError as error:
        if show_traceback or error.filename is None or error.errno not in UNUSABLE:
            raise
        fault = f"{os.strerror(error.errno)}: '{os.fsdecode(error.filename)}'. Name another file or folder, or change "
        sentence, status = fault + "what stands in the way; --traceback shows where it arose.", 1
    except KeyboardInterrupt:
        sentence, status = "interrupted", 130
    print(f"understudy {name}: {sentence}", file=sys.stderr)
    return status


def call(name: str, words: list[str]) -> int:
    """Parse the words of a verb and run it.

    Raises:
        UnderstudyError: as the verb, or a flag that it does not have.
    """
    parser = top_parser()
    places = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    if words[:1] == ["--print-completion"]:
        from understudy.cli.completion import add_method_settings, listed, script

        for other in VERBS.values():
            add_method_settings(add_flags(places, other(), everything=True, listed=listed()))
        print(script(parser, words[1:]))
        return 0
    if name and name not in VERBS:
        parser.error(f"unknown verb '{name}'. {nearest(name, VERBS)}")
    if not name:
        for other in VERBS.values():
            add_verb(places, other())
        parser.parse_args(words)  # ends here: with the help, the version, or the lack of a verb
    words, method_settings = split_method_settings(words)
    verb = VERBS[name]()
    flags = add_flags(places, verb, everything="--help-all" in words)
    if "--help-all" in words and "method" in flags.known:
        flags.parser.epilog = method_table()
    options, rest = parser.parse_known_args(words, Options(method_settings=method_settings))
    if method_settings and "method" not in flags.known:
        rest.insert(0, f"--{next(iter(method_settings))}")
    if rest:
        raise flags.unknown(rest[0])
    options.settings = verb.settings(options)
    if getattr(options, "print_config", False):
        print(write_toml(verb.table(options.settings)), end="")
        return 0
    with trusting(getattr(options, "trust_code", None) or ()):
        return verb.run(options)


def top_parser() -> Parser:
    """The parser of what stands before the verb."""
    parser = Parser(
        prog="understudy",
        description="Distill a large frozen image encoder into a small one that can stand in for it, without labels.",
        epilog="`understudy VERB --help` shows the main flags of a verb, --help-all every flag.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"understudy {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error arose")
    parser.add_argument("--print-completion", metavar="SHELL", help="print the completion script of bash, zsh or fish")
    return parser


def add_verb(places: Any, verb: Verb) -> Parser:
    """The parser of a verb, without its flags."""
    summary = inspect.cleandoc(verb.__doc__ or "")
    parser: Parser = places.add_parser(
        verb.name, help=summary.splitlines()[0], description=summary, allow_abbrev=False, add_help=False,
        usage=f"understudy {verb.name} {verb.usage}", formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    return parser


def add_flags(places: Any, verb: Verb, *, everything: bool = False, listed: Listed | None = None) -> Flags:
    """The parser of a verb, with its flags."""
    parser = add_verb(places, verb)
    flags = Flags(parser, verb.main, everything=everything, listed=listed)
    verb.flags(flags)
    if verb.models:
        flags.add(
            "--trust-code", action="append", nargs="?", const=ANY, metavar="MODULE",
            help="A module of yours that a run folder may name as its code; alone, whatever it names.",
        )  # fmt: skip
    flags.add("-h", "--help", action="help", help="Show the main flags and exit.")
    if flags.hidden or everything:
        flags.add("--help-all", action="help", help="Show every flag and exit.")
    if flags.hidden:
        parser.epilog = f"{flags.hidden} more settings: `understudy {verb.name} --help-all`."
    return flags
