"""`understudy cite`."""

from understudy.cli.flags import Flags
from understudy.cli.options import Options
from understudy.cli.verb import Verb


class Cite(Verb):
    """BibTeX of exactly what a run used."""

    name = "cite"
    usage = "[RUN|METHOD]"

    def flags(self, flags: Flags) -> None:
        flags.add(
            "what", nargs="?", metavar="RUN|METHOD", help="A run folder or a method; the software alone unless given."
        )

    def run(self, options: Options) -> int:
        from understudy.citation import cite as bibtex

        print(bibtex(options.what))
        return 0
