"""`understudy embed`."""

from pathlib import Path

from understudy.cli.flags import Flags
from understudy.cli.options import Options
from understudy.cli.verb import Verb


class Embed(Verb):
    """Run a teacher (or a student) over images and store the embeddings. Resumes; torchrun shares the work."""

    name = "embed"
    models = True
    group = "embed.settings.EmbedSettings"
    usage = "--data DATA --teacher SPEC [flags]"
    main = ("data", "teacher", "store", "image_size", "batch_size", "dtype", "limit", "device")

    def flags(self, flags: Flags) -> None:
        flags.config()
        flags.settings(self.settings_class)

    def run(self, options: Options) -> int:
        from understudy.embed.embedding import Inference, embed
        from understudy.embed.verification import verify_images
        from understudy.models.sharded import ShardedTeacher, require_processes
        from understudy.models.teacher import build_teacher
        from understudy.sources.source import open_source
        from understudy.train.distributed import join
        from understudy.train.log import StageProgress, notify

        settings = options.settings
        processes = join(settings.device)
        if settings.teacher_sharding == "fsdp":
            require_processes(processes)
        source = open_source(settings.data, limit=settings.limit, listings=Path(settings.store) / "listings")
        teacher = build_teacher(
            settings.teacher, mean=settings.teacher_mean, std=settings.teacher_std, image_size=settings.image_size,
            output=settings.teacher_output, precision=settings.teacher_precision, device=processes.device,
        )  # fmt: skip
        if settings.teacher_sharding == "fsdp":
            teacher = ShardedTeacher(teacher, processes, processes.device)
        if processes.main:
            notify(f"teacher: {teacher.spec}, D = {teacher.width}, {teacher.precision}; {teacher.weights}")
        with StageProgress("embed", quiet=not processes.main) as progress:
            inference = Inference(processes.device, settings.batch_size, settings.workers, progress)
            store = embed(teacher, source, settings.store, inference, dtype=settings.dtype, writers=processes)
            if settings.verify_images:
                verify_images(store, source, inference, processes)
        if not processes.main:
            return 0
        manifest = store.manifest
        for name, reason in manifest.get("skipped", []):
            notify(f"skipped {name}: {reason}")
        notify(f"{manifest['rows']:,} x {manifest['D']} embeddings, {len(manifest.get('skipped', []))} images skipped")
        print(store.folder)
        return 0
