"""`open_clip:ARCH/TAG`: the image towers of open_clip."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from understudy.errors import MissingDependency, ModelError
from understudy.models.families import BuiltNetwork, Family, Request, closest

FILES = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin",
)  # fmt: skip
"""Weights in a folder, the first that is there is taken, as open_clip does."""


class OpenClip(Family):
    """The image tower of a model of image and text, after its projection, its contract from its configuration."""

    name = "open_clip"
    form = "open_clip:ARCH/TAG"
    summary = "the image tower of a model of [open_clip](https://github.com/mlfoundations/open_clip), after its "
    summary += "projection; `open_clip:FOLDER` one that was saved, `open_clip:ARCH@FILE` weights of your own"
    paper = """@software{ilharco2021openclip,
  title  = {OpenCLIP},
  author = {Ilharco, Gabriel and Wortsman, Mitchell and Wightman, Ross and Gordon, Cade and others},
  year   = {2021},
  doi    = {10.5281/zenodo.5143773}
}"""
    publishes_weights = True

    @staticmethod
    def build(request: Request) -> BuiltNetwork:
        """See `Family.build`; position embeddings are resampled to the size that is asked for."""
        try:
            import open_clip
        except ImportError:
            raise MissingDependency("open_clip: specs need open_clip: pip install 'understudy[clip]'.") from None
        from understudy.models.checkpoints import load_into
        from understudy.models.families.timm import set_input_size
        from understudy.models.open_clip_encoder import OpenClipEncoder, build_tower, describe, tower_contract

        config, preprocessing, file, origin = _parts(request)
        tower = build_tower(config, request.spec)
        contract = tower_contract(tower, preprocessing, request.spec)
        weights = ""
        if file is not None:
            weights = load_into(tower, file, whole=request.pretrained) + (f"; {origin}" if origin else "")
        module = OpenClipEncoder(tower)
        size, native = request.image_size or contract.size, contract.size
        if size != native:
            set_input_size(module, (size, size), request.spec)
            weights += weights and f"; position embeddings resampled from {native} to {size} pixels"
        library = f"open_clip {open_clip.__version__}"
        if hasattr(tower, "trunk"):
            import timm

            library += f", timm {timm.__version__}"
        architecture = f"open_clip:{describe(config)}"
        return BuiltNetwork(module, contract, weights, architecture, library=library)


def _parts(request: Request) -> tuple[dict[str, Any], dict[str, Any], str | None, str]:
    """The configurations of model and preprocessing, the weight file that is asked for, and where it is from."""
    import open_clip

    from understudy.models.open_clip_encoder import read_folder

    if request.name.startswith("{"):  # as `describe` has it: of a student that was saved
        return json.loads(request.name), {}, None, ""
    folder = Path(request.name).expanduser()
    if folder.is_dir():
        config, preprocessing = read_folder(folder, request.spec)
        file = request.file or next((str(folder / name) for name in FILES if (folder / name).is_file()), None)
        if request.pretrained and file is None:
            raise ModelError(f"{request.spec} holds no weights: none of {', '.join(FILES)}.")
        return config, preprocessing, file if request.pretrained or request.file else None, ""
    architecture, _, tag = request.name.partition("/")
    config = open_clip.get_model_config(architecture)
    if config is None:
        raise ModelError(
            f"open_clip has no model '{architecture}', and there is no such folder. "
            f"{closest(architecture, open_clip.list_models())}"
        )
    published = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    if tag and not published:
        known = open_clip.list_pretrained_tags_by_model(architecture)
        raise ModelError(f"open_clip has no weights '{tag}' of {architecture}. {closest(tag, known)}")
    plain = architecture.removesuffix("-quickgelu")
    other = plain if plain != architecture else f"{architecture}-quickgelu"
    mismatch = bool(published.get("quick_gelu")) != bool(config.get("quick_gelu")) if published else False
    if mismatch and open_clip.get_pretrained_cfg(other, tag):  # open_clip warns, and computes something else
        raise ModelError(
            f"{request.spec}: these weights were trained with another activation than {architecture} has. Take "
            f"open_clip:{other}/{tag}."
        )
    if not request.download:
        return config, dict(published), request.file, ""
    if not tag:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise ModelError(
            f"{request.spec} names no weights. Published for {architecture}: {tags} (open_clip:{architecture}/TAG); or "
            f"pass a local file: open_clip:{architecture}@FILE."
        )
    return config, dict(published), *_published(request, published)


def _published(request: Request, published: dict[str, Any]) -> tuple[str, str]:
    """The file of published weights, downloaded if need be, and where it is from."""
    import open_clip

    from understudy.models.hub import snapshot

    if not published.get("hf_hub"):
        file = request.downloaded(lambda: str(open_clip.download_pretrained_from_url(published["url"])))
        return file, str(published["url"])
    repository, name = os.path.split(published["hf_hub"])
    names = [f"{name.rpartition('.')[0]}.safetensors", name] if name else [*FILES]

    def choose(files: Sequence[str]) -> list[str]:
        return [name for name in names if name in files][:1]

    def whole(folder: Path) -> bool:
        return any((folder / name).is_file() for name in names)

    folder = snapshot(repository, None, choose, whole, names)
    found = next((name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise ModelError(f"{repository} holds none of the weights that open_clip expects there: {', '.join(names)}.")
    return str(folder / found), f"{repository} at commit {folder.name}"
