"""The works that are cited, as BibTeX: `papers.bib` by key."""

from pathlib import Path

PAPERS = {
    entry.split("{", 1)[1].split(",", 1)[0]: entry.strip()
    for entry in Path(__file__).with_name("papers.bib").read_text(encoding="utf-8").split("\n\n")
}


def bibtex(paper: str) -> str:
    """The entry of a key, or the entry itself where a declaration brings its own."""
    return paper if paper.startswith("@") else PAPERS[paper]
