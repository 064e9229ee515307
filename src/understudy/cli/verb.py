"""What a verb declares: its name, its flags, and what it does with them."""

from importlib import import_module
from typing import Any, ClassVar

from understudy.cli.flags import Flags
from understudy.cli.options import Options


class Verb:
    """One verb of the command line; the first line of its docstring is what `understudy --help` says of it."""

    name: ClassVar[str]
    usage: ClassVar[str] = "[flags]"
    main: ClassVar[tuple[str, ...]] = ()
    """Settings that `--help` shows, by dotted name; `--help-all` shows all."""
    group: ClassVar[str] = ""
    """The dataclass of its settings, "MODULE.CLASS" within understudy; "" for a verb without."""

    @property
    def settings_class(self) -> Any:
        """The dataclass itself, imported when it is asked for."""
        module, _, name = self.group.rpartition(".")
        return getattr(import_module(f"understudy.{module}"), name)

    models: ClassVar[bool] = False
    """Whether it builds networks, which a run folder may want to be made by code."""

    def flags(self, flags: Flags) -> None:
        """Declare the flags."""

    def settings(self, options: Options) -> Any:
        """The settings that the options stand for; None for a verb without."""
        return options.resolve(self.settings_class) if self.group else None

    def table(self, settings: Any) -> dict[str, Any]:
        """What `--print-config` prints: every value, the derived ones included."""
        from understudy.settings import as_table

        return as_table(settings)

    def run(self, options: Options) -> int:
        """Do it; the result is the exit status."""
        raise NotImplementedError
