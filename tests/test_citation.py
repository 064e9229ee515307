"""Citations: exactly what a run used, each work once, as BibTeX that parses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from understudy import __version__, citation
from understudy.citation import cite
from understudy.errors import ConfigError, StoreError
from understudy.losses import LOSSES
from understudy.models.families import FAMILIES
from understudy.settings import write_toml

ROOT = Path(__file__).resolve().parents[1]


def keys(bibtex: str) -> list[str]:
    return re.findall(r"^@\w+\{([^,]+),$", bibtex, flags=re.MULTILINE)


def parse(entry: str) -> dict[str, str]:
    """One BibTeX entry, by a grammar of its own: balanced braces, `name = {value}` separated by commas."""
    head = re.match(r"@(\w+)\{([\w-]+),\n", entry)
    assert head, entry
    assert entry.endswith("\n}"), entry
    fields, depth, start = {}, 0, 0
    body = entry[head.end() : -1]
    for place, letter in enumerate(body + ","):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0, entry
        if letter == "," and depth == 0:
            match = re.fullmatch(r"\s*(\w+)\s*=\s*\{(.*)\}\s*", body[start:place], flags=re.DOTALL)
            assert match, body[start:place]
            fields[match.group(1)] = match.group(2)
            start = place + 1
    assert depth == 0, entry
    return {"key": head.group(2), **fields}


def run_folder(folder: Path, evaluation: dict[str, object] | None = None, **config: object) -> Path:
    folder.mkdir(parents=True)
    table = {"method": {"name": "coss"}, "student": "small:resnet8", "data": "digits", "views": {}, **config}
    (folder / "config.toml").write_text(write_toml(table))
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_method_names_its_paper(name: str):
    fields = parse(LOSSES[name].paper)
    assert {"title", "author", "year"} <= set(fields)
    assert keys(cite(name)) == [fields["key"], *(["cai2021eman"] if LOSSES[name].needs.key else []), "understudy"]


def test_the_table_parses_and_repeats_nothing():
    libraries = [family.paper for family in FAMILIES.values() if family.paper]
    entries = [parse(text) for text in [*citation.PAPERS.values(), *libraries, citation.SOFTWARE]]
    assert all({"title", "author", "year"} <= set(entry) for entry in entries)
    assert len({entry["key"] for entry in entries}) == len(entries)
    written = keys((ROOT / "src" / "understudy" / "papers.bib").read_text(encoding="utf-8"))
    assert len(written) == len(set(written)) == len(citation.PAPERS)  # one work, one entry
    assert {keys(loss.paper)[0] for loss in LOSSES.values()} <= set(written)
    assert all(parse(paper) for paper in citation.ARCHITECTURES.values())


def test_the_software_entry_says_what_citation_cff_says():
    lines = dict(line.split(": ", 1) for line in (ROOT / "CITATION.cff").read_text().splitlines() if ": " in line[:20])
    entry = parse(citation.SOFTWARE)
    assert entry["title"] == lines["title"].strip('"')
    assert entry["version"] == lines["version"] == __version__
    assert entry["year"] == lines["date-released"][:4]
    assert entry["license"] == lines["license"]


def test_a_run_cites_what_it_used_and_nothing_else(tmp_path: Path):
    figures = {"knn": {"top1@10": 90.0}, "fidelity": {"overlap@5": 50.0}}
    run = run_folder(
        tmp_path / "run",
        {"about": {"seconds": 1}, "student": figures, "teacher": {"knn": {}}},
        student="timm:mobilenetv3_small_100",
        teacher="torchvision:resnet50@weights.pth",
        data="photos",
        views={"recipe": "weak"},
        neighbors={"index": "hnsw"},
    )
    assert keys(cite(run)) == [
        "singh2024coss",
        "wightman2019timm",
        "howard2019mobilenetv3",
        "torchvision2016",
        "he2016resnet",
        "douze2024faiss",
        "wu2018instance",
        "kornblith2019cka",
        "venna2001neighborhood",
        "szekely2007measuring",
        "facco2017estimating",
        "roy2007effective",
        "maria2014gudhi",
        "paszke2019pytorch",
        "understudy",
    ]
    text = cite(run)
    assert "% teacher torchvision:resnet50@weights.pth\n% (cite whoever trained it" in text
    assert "% data photos\n% (cite whoever made it)" in text


def test_the_teacher_s_own_run_is_cited_too(tmp_path: Path):
    teacher = run_folder(tmp_path / "teacher", method={"name": "moco"}, student="small:resnet20")
    run = run_folder(tmp_path / "run", teacher=f"run:{teacher}")
    text = cite(run)
    assert keys(text).count("chen2020mocov2") == 1  # its views and the teacher's method
    assert {"he2016resnet", "cai2021eman", "alpaydin1998digits"} <= set(keys(text))
    assert "method moco of the teacher" in text
    (teacher / "config.toml").write_text(write_toml({"method": {"name": "coss"}, "student": "small:resnet8",
                                                     "data": "digits", "teacher": f"run:{teacher}"}))  # fmt: skip
    assert "understudy" in keys(cite(run))  # a run that names itself ends


def test_names_tell_architectures():
    def found(spec: str) -> list[str]:
        return [key for _, text in citation._model("student", spec) for key in keys(text)]

    assert found("small:resnet20x2") == ["he2016resnet"]
    assert found("timm:vit_small_patch14_dinov2.lvd142m") == [
        "wightman2019timm",
        "dosovitskiy2021vit",
        "oquab2024dinov2",
    ]
    assert found("timm:vit_small_patch16_224.dino") == ["wightman2019timm", "dosovitskiy2021vit", "caron2021dino"]
    assert found("torchvision:mobilenet_v2") == ["torchvision2016", "sandler2018mobilenetv2"]
    assert found("timm:hgnetv2_b0") == ["wightman2019timm"]
    assert found("onnx:resnet50.onnx") == []  # a file's name proves nothing


def test_the_program_alone():
    assert keys(cite()) == ["understudy"]


def test_what_cannot_be_cited_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"neither a run folder nor a method.*Did you mean 'coss'"):
        cite("cos")
    with pytest.raises(StoreError, match="not a run folder"):
        cite(tmp_path)
