"""`understudy plan`."""

from understudy.cli.flags import Flags
from understudy.cli.options import Options
from understudy.cli.run_verb import RunVerb


class Plan(RunVerb):
    """What a run would cost here, with the teacher live and recorded, from a few seconds of measurement."""

    name = "plan"
    models = True

    def flags(self, flags: Flags) -> None:
        super().flags(flags)
        flags.add("--json", action="store_true", help="Print the plan as JSON.")

    def run(self, options: Options) -> int:
        import json

        from understudy import plan

        found = plan.plan(options.settings)
        if options.json:
            print(json.dumps(plan.table(found), indent=1))
        else:
            plan.show(found)
        return 0
