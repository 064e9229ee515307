"""The command line: one verb per arrow. Imports live inside the handlers, so `--help` answers at once.

Flags are made from the settings dataclasses; a TOML file (`--config`) lies under them and flags win.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import os
import re
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy import __version__
from understudy.errors import ConfigError, UnderstudyError
from understudy.settings import nearest, read_toml, resolve

if TYPE_CHECKING:
    from understudy.pipeline import RunSettings

IN_THE_WAY = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
    errno.ENOSPC, errno.EDQUOT,
}  # fmt: skip
"""What the system answers to a path that cannot be used as given; other answers are more likely our own mistake."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: arguments without the program name; those of the process unless given.

    Returns:
        The exit status: 0 done, 1 the user can mend it (one sentence on standard error), 2 wrong arguments, 143
        stopped by a signal with a checkpoint written.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="understudy",
        description="Distill a large frozen encoder into a small one that can stand in for it, without labels.",
        epilog="`understudy VERB --help` documents every flag of a verb.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"understudy {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error arose")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (build, handler) in VERBS.items():
        summary = (handler.__doc__ or "").strip()
        verb = verbs.add_parser(
            name, help=summary.splitlines()[0], description=summary, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        if name in argv:  # the other verbs' flags need not be built to be told apart
            build(verb)
        verb.set_defaults(handler=handler, flags=verb.format_usage)
    options, rest = parser.parse_known_args(argv)
    try:
        options.method_settings = _method_settings(rest, options)
        return int(options.handler(options) or 0)
    except UnderstudyError as error:
        if options.traceback:
            raise
        print(f"understudy {options.verb}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if options.traceback or error.filename is None or error.errno not in IN_THE_WAY:
            raise
        print(
            f"understudy {options.verb}: {os.strerror(error.errno)}: '{os.fsdecode(error.filename)}'. Name another "
            "file or folder, or change what stands in the way; --traceback shows where it arose.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"understudy {options.verb}: interrupted", file=sys.stderr)
        return 130


def _method_settings(rest: list[str], options: argparse.Namespace) -> dict[str, str]:
    """`--method.KEY VALUE` and `--method.KEY=VALUE`: the method owns these names, so argparse cannot know them."""
    known = re.findall(r"--[a-z][\w.-]*", options.flags())
    found: dict[str, str] = {}
    words = iter(rest)
    for word in words:
        if not (word.startswith("--method.") and "--method" in known):
            raise ConfigError(f"Unknown argument '{word}'. {nearest(word, known)}")
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            value = next(words, "")
            if not value or value.startswith("--"):
                raise ConfigError(f"'{word}' needs a value, e.g. --method.weight 1.0.")
        found[key.replace("-", "_")] = value
    return found


def add_settings(parser: argparse.ArgumentParser, cls: type, skip: Sequence[str] = (), prefix: str = "") -> None:
    """One flag per field of a settings dataclass; unset flags leave no trace, so the file below shows through."""
    hints = typing.get_type_hints(cls)
    group = parser.add_argument_group(prefix.rstrip(".")) if prefix else parser
    for field in dataclasses.fields(cls):
        name, hint = prefix + field.name, hints[field.name]
        if name in skip:
            continue
        if dataclasses.is_dataclass(hint):
            add_settings(parser, hint, skip, f"{name}.")  # type: ignore[arg-type]
            continue
        text = field.metadata.get("help", "")
        if field.metadata.get("choices"):
            text += f" One of: {', '.join(map(str, field.metadata['choices']))}."
        if field.metadata.get("open"):
            from understudy.losses import LOSSES

            text += f" One of: {', '.join(LOSSES)}."
            if field.default_factory is not dataclasses.MISSING:
                text += f" [{field.default_factory()['name']}]"
        elif field.default not in (None, dataclasses.MISSING):
            shown = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            text += f" [{shown}]"
        extra: dict[str, Any] = {"nargs": "?", "const": "true"} if hint is bool else {}
        leaf = field.name.upper().replace("_", "-")
        group.add_argument(
            "--" + name.replace("_", "-"), dest=name, default=argparse.SUPPRESS, help=text.replace("%", "%%"),
            metavar={bool: "true|false", int: "N"}.get(hint, leaf), **extra,
        )  # fmt: skip


def layers(cls: type, options: argparse.Namespace, *more: str, **fixed: Any) -> list[dict[str, Any]]:
    """The file of `--config` and the flags of a verb, those named in `more` besides the settings' own."""
    written: list[dict[str, Any]] = []
    if getattr(options, "config", None):
        written.append(read_toml(options.config))
    roots = {field.name for field in dataclasses.fields(cls)} | set(more)
    flags = {key: value for key, value in vars(options).items() if key.split(".")[0] in roots and value is not None}
    return [*written, {**flags, **options.method_settings, **fixed}]


def layered(cls: type, options: argparse.Namespace, **fixed: Any) -> Any:
    """The settings of a verb: its defaults, the file of `--config`, the flags."""
    return resolve(cls, *layers(cls, options, **fixed))


def run_settings(options: argparse.Namespace, **fixed: Any) -> RunSettings:
    """The settings of a run: its defaults, the recipe, the file of `--config`, the preset, the flags."""
    from understudy.pipeline import RunSettings, resolve_run

    return resolve_run(*layers(RunSettings, options, "recipe", "preset", **fixed))


def _config_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE.toml", help="settings file; flags win over it")


def _recipe_flags(parser: argparse.ArgumentParser) -> None:
    from understudy.recipes import PRESETS

    parser.add_argument(
        "--recipe", metavar="RECIPE",
        help="settings laid under your own: authors (what the method's authors ran), a TOML file, the name of one in "
        "recipes/, or none",
    )  # fmt: skip
    parser.add_argument(
        "--preset", metavar="PRESET",
        help=f"{', '.join(PRESETS)}: two steps on embedded images, with a teacher without weights; the rest of the "
        "settings stays, flags win",
    )  # fmt: skip


def _run_flags(parser: argparse.ArgumentParser) -> None:
    from understudy.pipeline import RunSettings

    _config_flag(parser)
    _recipe_flags(parser)
    add_settings(parser, RunSettings, skip=("evaluation.eval_data",))


def run(options: argparse.Namespace) -> int:
    """The whole flow: embed, graph, train, evaluate, report; a second call recomputes nothing that is fresh."""
    from understudy import pipeline

    settings = run_settings(options)
    try:
        finished = pipeline.run(settings)
    except pipeline.Stopped:
        return 143
    if not _is_main():
        return 0
    print_table([finished])
    return 0


def train(options: argparse.Namespace) -> int:
    """Distill; resumes by itself. Missing embeddings and graph are made first."""
    from understudy import pipeline

    finished = pipeline.train_stage(run_settings(options))
    if finished is None:
        return 143
    if _is_main():
        print(finished.path)
    return 0


def _plan_flags(parser: argparse.ArgumentParser) -> None:
    _run_flags(parser)
    parser.add_argument("--json", action="store_true", help="Print the plan as JSON.")


def plan(options: argparse.Namespace) -> int:
    """What a run would cost here, with the teacher live and recorded, from a few seconds of measurement."""
    import json

    from understudy import plan as planning
    from understudy.pipeline import RunSettings

    found = planning.plan(layered(RunSettings, options))
    if options.json:
        print(json.dumps(planning.table(found), indent=1))
    else:
        planning.show(found)
    return 0


def _pretrain_flags(parser: argparse.ArgumentParser) -> None:
    from understudy.pipeline import RunSettings

    _config_flag(parser)
    _recipe_flags(parser)
    parser.add_argument(
        "--model", required=True, metavar="SPEC", help="What to train, e.g. small:resnet20 or timm:resnet18."
    )
    skip = ("student", "teacher", "teacher_mean", "teacher_std", "method", "evaluation.eval_data", "head")
    neighbors = tuple(f"neighbors.{name}" for name in ("k", "n", "index", "memory_mb"))
    add_settings(parser, RunSettings, skip=skip + neighbors)
    parser.add_argument(
        "--method", default="moco", help="A method without a teacher; moco: temperature, queue, momentum. [moco]"
    )


def pretrain(options: argparse.Namespace) -> int:
    """Train a teacher without labels (MoCo-v2) when there is none; the same loop, the same checkpoints."""
    from understudy import pipeline

    settings = run_settings(options, student=options.model)
    finished = pipeline.train_stage(settings)
    if finished is None:
        return 143
    if settings.eval_data is not None:
        pipeline.evaluate_stage(finished, settings)
        print_table([finished])
    if _is_main():
        print(finished.path)
        print(f"Use it as a teacher: --teacher run:{finished.path}", file=sys.stderr)
    return 0


def _embed_flags(parser: argparse.ArgumentParser) -> None:
    from understudy.embed.settings import EmbedSettings

    _config_flag(parser)
    add_settings(parser, EmbedSettings)


def embed(options: argparse.Namespace) -> int:
    """Teacher (or student) over a data source: images to an embedding store; resumes; torchrun shares the work."""
    from understudy.embed.embedding import embed as embed_images
    from understudy.embed.settings import EmbedSettings
    from understudy.models.sharded import ShardedTeacher, require_processes
    from understudy.models.teacher import build_teacher
    from understudy.sources.source import open_source
    from understudy.train.distributed import join
    from understudy.train.log import StageProgress, notify

    settings = layered(EmbedSettings, options)
    processes = join(settings.device)
    if settings.teacher_sharding == "fsdp":
        require_processes(processes)
    source = open_source(settings.data, limit=settings.limit, listings=Path(settings.store) / "listings")
    teacher = build_teacher(
        settings.teacher, mean=settings.teacher_mean, std=settings.teacher_std, image_size=settings.image_size,
        precision=settings.teacher_precision, device=processes.device,
    )  # fmt: skip
    if settings.teacher_sharding == "fsdp":
        teacher = ShardedTeacher(teacher, processes, processes.device)
    if processes.main:
        notify(f"teacher: {teacher.spec}, D = {teacher.width}, {teacher.precision}; {teacher.weights}")
    with StageProgress("embed", quiet=not processes.main) as progress:
        store = embed_images(
            teacher, source, settings.store, dtype=settings.dtype, device=processes.device,
            batch_size=settings.batch_size, workers=settings.workers, writers=processes, progress=progress,
        )  # fmt: skip
    if not processes.main:
        return 0
    manifest = store.manifest
    for name, reason in manifest.get("skipped", []):
        notify(f"skipped {name}: {reason}")
    notify(f"{manifest['rows']:,} x {manifest['D']} embeddings, {len(manifest.get('skipped', []))} images skipped")
    print(store.folder)
    return 0


def _graph_flags(parser: argparse.ArgumentParser) -> None:
    from understudy.neighbors.settings import NeighborSettings

    parser.add_argument("store", metavar="STORE", help="A store: the folder with manifest.json.")
    add_settings(parser, NeighborSettings, skip=("neighbors.k",), prefix="neighbors.")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, mps or auto. [auto]")


def graph(options: argparse.Namespace) -> int:
    """Store to neighbor graph: exact cosine top-k, or faiss above a size with its measured recall."""
    from understudy.artifacts import Store
    from understudy.neighbors.graph import build_graph
    from understudy.neighbors.settings import NeighborSettings
    from understudy.train.distributed import join
    from understudy.train.log import StageProgress, notify

    flags = {k.removeprefix("neighbors."): v for k, v in vars(options).items() if k.startswith("neighbors.")}
    settings = resolve(NeighborSettings, flags)
    store = Store(options.store)
    processes = join(options.device)
    with StageProgress("graph", quiet=not processes.main) as progress:
        build_graph(store, settings, device=str(processes.device), writers=processes, progress=progress)
    if not processes.main:
        return 0
    notify(", ".join(f"{name} {value}" for name, value in store.manifest["graph"].items()))
    print(store.folder / "graph.npy")
    return 0


def _evaluate_flags(parser: argparse.ArgumentParser) -> None:
    from understudy.embed.settings import PRECISIONS
    from understudy.evaluate.settings import EvaluationSettings

    parser.add_argument("model", metavar="MODEL", help="A run folder, or any model spec with weights.")
    parser.add_argument(
        "--out", metavar="FILE", help="Where to write the figures of a model spec; a run folder has its own place."
    )
    parser.add_argument("--store", default="store", metavar="FOLDER", help="Root of the stores. [store]")
    parser.add_argument("--workers", type=int, metavar="N", help="Processes that read images.")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, mps or auto. [auto]")
    parser.add_argument(
        "--teacher-precision", choices=PRECISIONS,
        help="Arithmetic of a model spec; auto is tf32 on a CUDA device that has it, fp32 elsewhere. A run's teacher "
        "computes as in its training. [auto]",
    )  # fmt: skip
    add_settings(parser, EvaluationSettings)


def evaluate(options: argparse.Namespace) -> int:
    """Any protocol on any checkpoint, teacher or student."""
    from understudy.artifacts import Run
    from understudy.evaluate.runner import evaluate_model, evaluate_run
    from understudy.evaluate.settings import EvaluationSettings
    from understudy.train.distributed import choose_device
    from understudy.train.log import StageProgress, notify

    settings = layered(EvaluationSettings, options)
    device = choose_device(options.device)
    folder = options.model.removeprefix("run:")
    common = {"device": device, "store_root": options.store, "workers": options.workers, "tell": notify}
    with StageProgress("evaluate") as progress:
        if Run(folder).trained:
            if options.teacher_precision:
                raise ConfigError(
                    f"The teacher of the run {folder} computes as in its training: leave out --teacher-precision."
                )
            result = evaluate_run(Run(folder), settings, progress=progress, **common)
        elif os.path.isdir(folder) and Run(folder).config_path.is_file():
            raise ConfigError(f"The run {folder} is not finished. Run `understudy train` on it again: it resumes.")
        else:
            precision = options.teacher_precision or "auto"
            result = evaluate_model(options.model, settings, precision=precision, progress=progress, **common)
    if options.out:
        from understudy.artifacts import write_json

        write_json(options.out, result)
    print_figures([("", result)], details=True)
    return 0


def _compare_flags(parser: argparse.ArgumentParser) -> None:
    from understudy.compare import ComparisonSettings

    _config_flag(parser)
    _recipe_flags(parser)
    add_settings(parser, ComparisonSettings, skip=("evaluation.eval_data", "method", "vary"))


def compare(options: argparse.Namespace) -> int:
    """Several methods x seeds over one teacher, each at its best learning rate of a few, as one table.

    Same images, views, first weights of a seed, head, optimizer and image passes (or minutes) for all. The rates are
    judged without labels, on training images held out of every run. What is finished is not done again.
    """
    return _compared(options, "compare")


def _ablate_flags(parser: argparse.ArgumentParser) -> None:
    from understudy.compare import ComparisonSettings

    _config_flag(parser)
    _recipe_flags(parser)
    add_settings(parser, ComparisonSettings, skip=("evaluation.eval_data", "methods", "vary"))
    parser.add_argument(
        "--vary", action="append", default=argparse.SUPPRESS, metavar="KEY=V1,V2",
        help="Any setting and its values, e.g. method.weight=0,0.5,1; several --vary make a grid.",
    )  # fmt: skip


def ablate(options: argparse.Namespace) -> int:
    """A grid over any settings, each point at its best learning rate of a few, as one table.

    Otherwise as `compare`.
    """
    return _compared(options, "ablate")


def _compared(options: argparse.Namespace, kind: str) -> int:
    from understudy import pipeline
    from understudy.compare import ComparisonSettings
    from understudy.compare import compare as run_comparison
    from understudy.recipes import merge_layers
    from understudy.train.settings import DEFAULT_METHOD

    if kind == "compare" and options.recipe == "authors":
        raise ConfigError(
            "The methods of a comparison share one budget, and each method's authors had their own. Use "
            "`understudy run --method NAME --recipe authors` for each, or a recipe file for all."
        )
    written = layers(ComparisonSettings, options, "recipe", "preset")
    settings = resolve(ComparisonSettings, *merge_layers(*written, method=DEFAULT_METHOD))
    try:
        found = run_comparison(settings, kind=kind)
    except pipeline.Stopped:
        print(f"Stopped; the same command goes on from here: {settings.out}", file=sys.stderr)
        return 143
    print_comparison(found)
    print(f"report: {Path(str(settings.out)) / 'report.html'}")
    return int(any(row["failure"] or any(cell["failure"] for cell in row["cells"]) for row in found["variants"]))


def print_comparison(comparison: dict[str, Any]) -> None:
    """The table of a comparison, its footnotes and the sentence of every run that failed."""
    from rich.console import Console
    from rich.table import Table

    from understudy.report.comparison import footnotes, table_of

    headings, rows = table_of(comparison)
    table = Table(show_edge=False)
    for position, heading in enumerate(headings):
        table.add_column(heading, justify="right" if position else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    for sentence in footnotes(comparison):
        print(sentence)


def _report_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="Run folders; the first is the main one, the others controls."
    )
    parser.add_argument("--out", metavar="FILE.html", help="The page; report.html in the first run unless given.")


def report(options: argparse.Namespace) -> int:
    """Run folder(s) to one self-contained HTML page."""
    from understudy.artifacts import Run
    from understudy.errors import StoreError
    from understudy.report.page import write_report

    runs = [Run(folder) for folder in options.runs]
    for folder in runs:
        if not folder.path.is_dir():
            raise StoreError(f"There is no run folder {folder.path}. Known runs lie under runs/.")
    print(write_report(runs, Path(options.out) if options.out else runs[0].report_path))
    return 0


def _cite_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="?", metavar="RUN|METHOD", help="A run folder or a method; the software alone unless given."
    )


def cite(options: argparse.Namespace) -> int:
    """BibTeX of exactly what a run used."""
    from understudy.citation import cite as bibtex

    print(bibtex(options.what))
    return 0


def _doctor_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="SPEC", help="Also check this data source.")
    parser.add_argument("--teacher", metavar="SPEC", help="Also check this teacher.")
    parser.add_argument("--store", default="store", metavar="FOLDER", help="Where stores would be written. [store]")


def doctor(options: argparse.Namespace) -> int:
    """Say what is wrong with this installation, device or data, and the fix."""
    from understudy.doctor import checks, render

    found = checks(data=options.data, teacher=options.teacher, store=options.store)
    render(found)
    return int(any(check.status == "fail" for check in found))


def _demo_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="runs/demo", metavar="FOLDER", help="Where the demo's runs go. [runs/demo]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="Seed of everything random. [0]")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, mps or auto. [auto]")


def demo(options: argparse.Namespace) -> int:
    """The whole flow on embedded real data (handwritten digits): no network, no files needed."""
    from understudy import pipeline
    from understudy.demo import demo as run_demo

    try:
        runs, page = run_demo(Path(options.out), seed=options.seed, device=options.device)
    except pipeline.Stopped:
        return 143
    print_table(runs)
    print(f"report: {page}")
    return 0


def print_table(runs: Sequence[Any]) -> None:
    """The figures of finished runs as a table on standard output; the first run brings the teacher's row."""
    rows = []
    for position, folder in enumerate(runs):
        figures = folder.evaluation
        if position:
            figures = {name: value for name, value in figures.items() if name != "teacher"}
        rows.append((folder.path.name, figures))
    print_figures(rows)


def print_figures(figures: Sequence[tuple[str, dict[str, Any]]], *, details: bool = False) -> None:
    """One row per model, one column per headline figure; then a table of each other protocol.

    Args:
        figures: (run, what evaluation.json holds).
        details: a table of the protocols with a headline figure too.
    """
    from rich.console import Console
    from rich.table import Table

    columns = {
        ("knn", "top1@10"): "10-NN", ("knn", "top1@20"): "20-NN", ("linear", "top1"): "linear",
        ("linear_sgd", "top1"): "linear SGD", ("asymmetric_knn", "top1@10"): "asym. 10-NN",
        ("fidelity", "overlap@11"): "overlap@11", ("fidelity", "cka"): "CKA",
        ("fidelity", "row_cosine"): "row cos", ("fidelity", "column_cosine"): "col cos",
    }  # fmt: skip
    models = [(run, name, protocols) for run, found in figures for name, protocols in found.items() if name != "about"]
    used = [
        (key, title) for key, title in columns.items()
        if any(isinstance(protocols.get(key[0], {}).get(key[1]), int | float) for _, _, protocols in models)
    ]  # fmt: skip
    table = Table(show_edge=False)
    table.add_column("model", overflow="fold")
    for _, title in used:
        table.add_column(title, justify="right")
    for run, name, protocols in models:
        cells = []
        for (protocol, figure), _ in used:
            value = protocols.get(protocol, {}).get(figure)
            cells.append(f"{value:.2f}" if isinstance(value, int | float) else "")
        table.add_row(name if not run or name == "teacher" else f"{run}: {name}", *cells)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for protocol in dict.fromkeys(name for _, _, protocols in models for name in protocols):
        names = dict.fromkeys(
            figure for _, _, protocols in models for figure, value in protocols.get(protocol, {}).items()
            if isinstance(value, int | float)
        )  # fmt: skip
        if not names or (not details and any((protocol, figure) in columns for figure in names)):
            continue
        level = next(
            (p[protocol]["interval_level"] for _, _, p in models if "interval_level" in p.get(protocol, {})), 0
        )
        title = f"{protocol}, with {level} % intervals" if level else protocol
        table = Table("figure", title=title, title_justify="left", show_edge=False)
        measured = [model for model in models if protocol in model[2]]
        for run, name, _ in measured:
            table.add_column(f"{run}: {name}".removeprefix(": "), justify="right")
        for figure in names:
            if figure.startswith("interval_") or figure.removesuffix("_low").removesuffix("_high") in names.keys() - {
                figure
            }:
                continue  # it stands behind its figure
            table.add_row(figure, *(_cell(protocols[protocol], figure) for _, _, protocols in measured))
        console.print(table)
    for run, found in figures:
        said: dict[str, tuple[dict[str, None], dict[str, None]]] = {}  # one sentence once, whoever it is about
        for name, protocols in found.items():
            for protocol, values in protocols.items() if name != "about" else ():
                for sentence in (values.get("error"), values.get("note")):
                    if sentence:
                        names, jobs = said.setdefault(sentence, ({}, {}))
                        names[name] = jobs[protocol] = None
        for sentence, (names, jobs) in said.items():
            print(f"{run} {', '.join(names)} {', '.join(jobs)}: {sentence}".strip())
        about = found.get("about", {})
        for sentence in [*about.get("caveats", []), about.get("sample")]:
            if sentence:
                print(f"{run}: {sentence}".removeprefix(": "))


def _cell(figures: dict[str, Any], figure: str) -> str:
    """A figure, and its interval where it has one."""

    def written(value: float) -> str:
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"

    if not isinstance(figures.get(figure), int | float):
        return ""
    ends = [written(figures[f"{figure}_{end}"]) for end in ("low", "high") if f"{figure}_{end}" in figures]
    return written(figures[figure]) + (f"  {ends[0]} to {ends[1]}" if len(ends) == 2 else "")


def _is_main() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


VERBS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "demo": (_demo_flags, demo),
    "pretrain": (_pretrain_flags, pretrain),
    "embed": (_embed_flags, embed),
    "graph": (_graph_flags, graph),
    "train": (_run_flags, train),
    "run": (_run_flags, run),
    "plan": (_plan_flags, plan),
    "evaluate": (_evaluate_flags, evaluate),
    "compare": (_compare_flags, compare),
    "ablate": (_ablate_flags, ablate),
    "report": (_report_flags, report),
    "cite": (_cite_flags, cite),
    "doctor": (_doctor_flags, doctor),
}
