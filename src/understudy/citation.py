"""BibTeX of exactly what a run used: the method, the models, the views, the protocols, and this program.

A method's own paper lies beside its loss (`Loss.paper`); what several methods share is listed here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from understudy import __version__
from understudy.artifacts import Run
from understudy.errors import ConfigError, StoreError
from understudy.evaluate.protocols import PROTOCOLS
from understudy.evaluate.protocols.davis import DINO
from understudy.evaluate.protocols.segmentation import DINOV2
from understudy.models.families import PUBLISHED, parse_spec
from understudy.settings import nearest, read_toml

SOFTWARE = f"""@software{{understudy,
  title   = {{Understudy: a large frozen encoder, distilled without labels into a small one that can stand in for it}},
  author  = {{{{The Understudy authors}}}},
  version = {{{__version__}}},
  year    = {{2026}},
  license = {{Apache-2.0}}
}}"""

PAPERS = {
    "dino": DINO,
    "dinov2": DINOV2,
    "torch": """@inproceedings{paszke2019pytorch,
  title     = {{PyTorch}: An Imperative Style, High-Performance Deep Learning Library},
  author    = {Paszke, Adam and Gross, Sam and Massa, Francisco and Lerer, Adam and Bradbury, James and Chanan, Gregory
               and Killeen, Trevor and Lin, Zeming and Gimelshein, Natalia and Antiga, Luca and others},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2019}
}""",
    "resnet": """@inproceedings{he2016resnet,
  title     = {Deep Residual Learning for Image Recognition},
  author    = {He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  booktitle = {Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2016}
}""",
    "vit": """@inproceedings{dosovitskiy2021vit,
  title     = {An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale},
  author    = {Dosovitskiy, Alexey and Beyer, Lucas and Kolesnikov, Alexander and Weissenborn, Dirk and Zhai, Xiaohua
               and Unterthiner, Thomas and Dehghani, Mostafa and Minderer, Matthias and Heigold, Georg and
               Gelly, Sylvain and Uszkoreit, Jakob and Houlsby, Neil},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2021}
}""",
    "deit": """@inproceedings{touvron2021deit,
  title     = {Training data-efficient image transformers \\& distillation through attention},
  author    = {Touvron, Hugo and Cord, Matthieu and Douze, Matthijs and Massa, Francisco and Sablayrolles, Alexandre
               and J{\\'e}gou, Herv{\\'e}},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2021}
}""",
    "efficientnet": """@inproceedings{tan2019efficientnet,
  title     = {{EfficientNet}: Rethinking Model Scaling for Convolutional Neural Networks},
  author    = {Tan, Mingxing and Le, Quoc V.},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2019}
}""",
    "mobilenetv2": """@inproceedings{sandler2018mobilenetv2,
  title     = {{MobileNetV2}: Inverted Residuals and Linear Bottlenecks},
  author    = {Sandler, Mark and Howard, Andrew and Zhu, Menglong and Zhmoginov, Andrey and Chen, Liang-Chieh},
  booktitle = {Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2018}
}""",
    "mobilenetv3": """@inproceedings{howard2019mobilenetv3,
  title     = {Searching for {MobileNetV3}},
  author    = {Howard, Andrew and Sandler, Mark and Chu, Grace and Chen, Liang-Chieh and Chen, Bo and Tan, Mingxing and
               Wang, Weijun and Zhu, Yukun and Pang, Ruoming and Vasudevan, Vijay and Le, Quoc V. and Adam, Hartwig},
  booktitle = {International Conference on Computer Vision (ICCV)},
  year      = {2019}
}""",
    "convnext": """@inproceedings{liu2022convnext,
  title     = {A {ConvNet} for the 2020s},
  author    = {Liu, Zhuang and Mao, Hanzi and Wu, Chao-Yuan and Feichtenhofer, Christoph and Darrell, Trevor and
               Xie, Saining},
  booktitle = {Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2022}
}""",
    "eman": """@inproceedings{cai2021eman,
  title     = {Exponential Moving Average Normalization for Self-supervised and Semi-supervised Learning},
  author    = {Cai, Zhaowei and Ravichandran, Avinash and Maji, Subhransu and Fowlkes, Charless and Tu, Zhuowen and
               Soatto, Stefano},
  booktitle = {Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2021}
}""",
    "moco-v2": """@article{chen2020mocov2,
  title   = {Improved Baselines with Momentum Contrastive Learning},
  author  = {Chen, Xinlei and Fan, Haoqi and Girshick, Ross and He, Kaiming},
  journal = {arXiv preprint arXiv:2003.04297},
  year    = {2020}
}""",
    "faiss": """@article{douze2024faiss,
  title   = {The {Faiss} library},
  author  = {Douze, Matthijs and Guzhva, Alexandr and Deng, Chengqi and Johnson, Jeff and Szilvasy, Gergely and
             Mazar{\\'e}, Pierre-Emmanuel and Lomeli, Maria and Hosseini, Lucas and J{\\'e}gou, Herv{\\'e}},
  journal = {arXiv preprint arXiv:2401.08281},
  year    = {2024}
}""",
    "digits": """@misc{alpaydin1998digits,
  title     = {Optical Recognition of Handwritten Digits},
  author    = {Alpaydin, E. and Kaynak, C.},
  publisher = {UCI Machine Learning Repository},
  year      = {1998},
  doi       = {10.24432/C50P49}
}""",
    "cifar": """@techreport{krizhevsky2009cifar,
  title       = {Learning Multiple Layers of Features from Tiny Images},
  author      = {Krizhevsky, Alex},
  institution = {University of Toronto},
  year        = {2009}
}""",
}

# What a model's name gives away, several at once (a DINO ViT is both). Only names that a library defines are read so:
# what a user called a file proves nothing.
ARCHITECTURES = {
    r"resnet|resnext": "resnet",
    r"(^|_)vit": "vit",
    r"deit": "deit",
    r"dino(?!v)": "dino",
    r"dinov2": "dinov2",
    r"efficientnet(?!v2)": "efficientnet",
    r"mobilenet_?v2": "mobilenetv2",
    r"mobilenet_?v3": "mobilenetv3",
    r"convnext(?!_?v2)": "convnext",
}


def cite(run_or_method: str | os.PathLike[str] | None = None) -> str:
    """BibTeX of what a run used, of one method, or of this program alone.

    Args:
        run_or_method: a run folder, finished or not, or the name of a method.

    Returns:
        One entry per work, this program last, each preceded by a comment that says what it was used for. What cannot
        be known from the run (who trained the weights in a file) is asked for in a comment.

    Raises:
        ConfigError: neither a method nor a folder; the sentence lists the methods.
        StoreError: a folder that is no run.
    """
    if run_or_method is None:
        return _bibliography([("software", SOFTWARE)])
    from understudy.losses import LOSSES

    name = os.fspath(run_or_method)
    if name in LOSSES:
        return _bibliography([*_method(name), ("software", SOFTWARE)])
    if not Path(name).is_dir():
        raise ConfigError(f"'{name}' is neither a run folder nor a method. {nearest(name, LOSSES)}")
    return _bibliography([*_run(Run(name), seen=set()), ("framework", PAPERS["torch"]), ("software", SOFTWARE)])


def _method(name: str) -> list[tuple[str, str]]:
    from understudy.losses import LOSSES

    entries = [(f"method {name}", LOSSES[name].paper)]
    if LOSSES[name].needs.key:
        entries.append(("normalization of the key encoder", PAPERS["eman"]))
    return entries


def _run(run: Run, seen: set[Path]) -> list[tuple[str, str]]:
    """(used for, BibTeX or a comment) of one run, its teacher's own run included."""
    if not run.config_path.is_file():
        raise StoreError(f"{run.path} is not a run folder (no config.toml). Name the folder that --out was given.")
    seen.add(run.path.resolve())
    config = read_toml(run.config_path)
    entries = _method(config["method"]["name"])
    for use in ("student", "teacher"):
        spec = config.get(use) or ""
        entries += _model(use, spec)
        prefix, _, folder = spec.partition(":")
        if prefix == "run" and Path(folder).resolve() not in seen and Run(folder).config_path.is_file():
            entries += [(f"{inner} of the {use}", text) for inner, text in _run(Run(folder), seen)]
    recipe = config.get("views", {}).get("recipe") or "moco-v2"
    if recipe.startswith("moco-v2"):
        entries.append((f"views {recipe}", PAPERS["moco-v2"]))
    if config.get("neighbors", {}).get("index") in ("ivf", "hnsw"):
        entries.append(("neighbor graph", PAPERS["faiss"]))
    for use in ("data", "eval_data"):
        entries += _data(use.replace("_", " "), config.get(use) or "")
    if run.evaluation_path.is_file():
        entries += _protocols(run.evaluation)
    return entries


def _model(use: str, spec: str) -> list[tuple[str, str]]:
    if not spec or spec.startswith("run:"):  # a run cites what it used itself
        return []
    family, name, file = parse_spec(spec)
    entries = [(f"{use} {family.name}:{name}", family.paper)] if family.paper else []
    if family.names_architecture:
        papers = [PAPERS[key] for pattern, key in ARCHITECTURES.items() if re.search(pattern, name.lower())]
        unknown = "% (cite its architecture as its library's documentation says)"
        entries += [(f"{use} {family.name}:{name}", text) for text in papers or [unknown]]
    if file not in (None, PUBLISHED) or not family.names_architecture:
        entries.append((f"{use} {spec}", "% (cite whoever trained it: a file does not say)"))
    return entries


def _data(use: str, spec: str) -> list[tuple[str, str]]:
    if spec.split(":")[0] == "digits":
        return [(f"{use} digits", PAPERS["digits"])]
    if re.match(r"torchvision:cifar", spec.lower()):
        return [(f"{use} {spec}", PAPERS["cifar"])]
    return [(f"{use} {spec}", "% (cite whoever made it)")] if spec else []


def _protocols(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The papers of the protocols of an evaluation, then those of its published sets."""
    from understudy.evaluate.datasets import DATASETS

    keys = {key for name, figures in evaluation.items() if name != "about" for key in figures}
    used, sets = ({key.partition("@")[part] for key in keys} for part in (0, 2))
    entries = [(f"evaluation {name}", text) for name in PROTOCOLS if name in used for text in PROTOCOLS[name].paper]
    papers = {name: DATASETS[name].paper for name in DATASETS if name in sets}
    return entries + [(f"evaluation set {name}", f"% (cite {paper})") for name, paper in papers.items() if paper]


def _bibliography(entries: Iterable[tuple[str, str]]) -> str:
    """Each work once, under a comment with all its uses, in order of first use."""
    uses: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for use, text in entries:
        key = match.group(1) if (match := re.match(r"@\w+\{([^,]+),", text)) else f"{use} {text}"
        texts.setdefault(key, text)
        if use not in uses.setdefault(key, []):
            uses[key].append(use)
    return "\n\n".join(f"% {', '.join(uses[key])}\n{text}" for key, text in texts.items()) + "\n"
