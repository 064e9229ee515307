"""`understudy doctor`."""

from pathlib import Path

from understudy.cli.flags import Flags
from understudy.cli.options import Options
from understudy.cli.verb import Verb
from understudy.errors import ConfigError


class Doctor(Verb):
    """Say what is wrong with this installation, device or data, and the fix."""

    name = "doctor"
    models = True
    usage = "[flags]"

    def flags(self, flags: Flags) -> None:
        flags.add("--data", metavar="SPEC", help="Also check this data source.")
        flags.add("--teacher", metavar="SPEC", help="Also check this teacher.")
        flags.add(
            "--store", metavar="FOLDER",
            help="Where stores would be written [store]; if it is given and there, every block of every file of its "
            "stores, or of the store or run that it is, is compared with its checksum.",
        )  # fmt: skip
        flags.add("--run", dest="run_folder", metavar="RUN", help="Compare every file of this run with its checksum.")
        flags.add(
            "--add-checksums", action="store_true",
            help="Give files of --store and --run that an older version wrote without checksums some, as they are now.",
        )  # fmt: skip

    def run(self, options: Options) -> int:
        from understudy.doctor.check import render
        from understudy.doctor.examination import checks
        from understudy.doctor.integrity import stores_and_runs

        store, run = (Path(name).expanduser() if name else None for name in (options.store, options.run_folder))
        if options.add_checksums and store is None and run is None:
            raise ConfigError("--add-checksums needs a folder: give --store FOLDER or --run RUN.")
        found = checks(data=options.data, teacher=options.teacher, store=options.store)
        for place in (store, run):
            if place is not None and (place.exists() or place is run):
                found += stores_and_runs(place, add_checksums=options.add_checksums)
        render(found)
        return int(any(check.status == "fail" for check in found))
