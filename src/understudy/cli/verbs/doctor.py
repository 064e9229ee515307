"""`understudy doctor`."""

from understudy.cli.flags import Flags
from understudy.cli.options import Options
from understudy.cli.verb import Verb


class Doctor(Verb):
    """Say what is wrong with this installation, device or data, and the fix."""

    name = "doctor"
    models = True
    usage = "[flags]"

    def flags(self, flags: Flags) -> None:
        flags.add("--data", metavar="SPEC", help="Also check this data source.")
        flags.add("--teacher", metavar="SPEC", help="Also check this teacher.")
        flags.add("--store", default="store", metavar="FOLDER", help="Where stores would be written. [store]")

    def run(self, options: Options) -> int:
        from understudy.doctor.check import render
        from understudy.doctor.examination import checks

        found = checks(data=options.data, teacher=options.teacher, store=options.store)
        render(found)
        return int(any(check.status == "fail" for check in found))
