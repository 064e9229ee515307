"""The report page, made from run folders written here by hand from scikit-learn's digits."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from understudy.artifacts import Run, write_json
from understudy.errors import ConfigError, StoreError
from understudy.evaluate.protocols import display_tables
from understudy.report import rendering
from understudy.report.page import write_report
from understudy.report.tables import in_words
from understudy.settings import write_toml

NASTY = "<script>alert('class')</script>"
HOSTILE = (
    "</script></style></pre>\x00\x1b[1m\u2028]]>--><img src=x onerror='a(\"b\")'>"
    "&lt;script&gt;{{ 7 * 7 }}{% raw %}`c`\\"
)
"""What would end every context that a text stands in: script, style, attribute, comment, template."""


def nearest(embeddings: np.ndarray, k: int = 10) -> np.ndarray:
    rows = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    similarities = rows @ rows.T
    np.fill_diagonal(similarities, -np.inf)
    return np.argsort(-similarities, axis=1, kind="stable")[:, :k]


def write_evaluation(run: Run, evaluation: dict[str, Any]) -> None:
    """evaluation.json as `understudy evaluate` writes it, with how its protocols are shown."""
    about = evaluation["about"] | {"protocols": display_tables(evaluation)}
    write_json(run.evaluation_path, evaluation | {"about": about})


def make_run(
    folder: Path,
    *,
    noise: float = 0.5,
    n: int = 120,
    method: dict[str, Any] | None = None,
    labels: bool = True,
    class_names: list[str] | None = None,
    seed: int = 0,
    knn: float = 92.0,
    teacher: bool = True,
) -> Run:
    """A finished run folder: the teacher is PCA of real digits, the student its noisy copy, the curves are smooth.

    Args:
        folder: the run folder to make.
        noise: how far the student is from the teacher.
        n: images of the sample.
        method: the method's table.
        labels: whether the evaluation images have labels.
        class_names: ten names.
        seed: of the noise and of the run.
        knn: top1@1 of the student; top1@10 is one less, and the teacher's are 96 and 95.
        teacher: whether the run was trained with one.
    """
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA

    method = method or {"name": "coss"}
    run = Run(folder)
    folder.mkdir(parents=True)
    settings = {"data": "digits:train", "student": "small:resnet8", "seed": seed, "method": method, "passes": 30.0}
    if teacher:
        settings["teacher"] = "run:runs/teacher"
    run.config_path.write_text(write_toml(settings | {"out": str(folder)}))

    rows: list[dict[str, Any]] = [{"kind": "start", "step": 0, "time": 1.0, "device": "cpu", "torch": "2.15.0"}]
    for step in range(1, 61):
        done = step / 60
        at = {"step": step, "time": 1.0 + step, "passes": 30 * done}
        terms = {"feature": -1 + 0.6 * np.exp(-4 * done), "space": -1 + (0.4 + noise / 9) * np.exp(-3 * done)}
        pace = {"lr": 0.002 * (1 - done), "images_per_s": 900 + 30 * np.sin(step), "data_wait": 0.02}
        rows.append({"kind": "step", **at, "loss": sum(terms.values()), "terms": terms, **pace})
        if step % 6 == 0:
            fit = {"row_cosine": 0.9 * done, "column_cosine": 0.8 * done, "overlap@10": 60 * done, "spread": 0.6}
            accuracy = {
                "knn": knn * (0.5 + done / 2),
                "teacher_knn": 95.0,
                "knn_relative": knn * (0.5 + done / 2) / 0.95,
            }
            rows.append({"kind": "signal", **at, **fit, **accuracy})
    rows.append({"kind": "end", "step": 60, "time": 62.0, "seconds": 63.2, "images": 43110, "teacher_forwards": 43110})
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    origin = {"spec": "run:runs/teacher", "width": 16, "parameters": 1_080_000, "flops": 160_000_000}
    student = {
        "format": 1,
        "understudy": "0.1",
        "spec": "small:resnet8",
        "head": {"kind": "mlp", "width": 64, "hidden": 2048, "out": 16},
        "contract": {"size": 32},
        "width": 64,
        "embed_dim": 16,
        "parameters": {"backbone": 78_000, "head": 165_904},
        "flops": 12_500_000,
        "method": method,
        "teacher": origin if teacher else None,
        "data": {"spec": "digits:train", "images": 1437, "fingerprint": "f00d"},
        "passes": 30.0,
        "steps": 60,
        "batch_size": 256,
        "seed": seed,
        "seconds": 63.2,
        "skipped": [],
    }
    write_json(run.student_path, student)
    run.weights_path.write_bytes(b"")

    digits, random = load_digits(), np.random.default_rng(seed)
    t = PCA(16, random_state=0).fit_transform(digits.data)[:n] + 4
    s = t + noise * t.std() * random.normal(size=t.shape)
    cosines = (s * t).sum(0) / np.linalg.norm(s, axis=0) / np.linalg.norm(t, axis=0)
    np.savez(
        run.sample_path,
        teacher=t.astype(np.float16),
        student=s.astype(np.float16),
        features=s.astype(np.float16),
        labels=digits.target[:n] if labels else np.full(n, -1),
        class_names=np.array(class_names or [str(i) for i in range(10)]),
        names=np.array([f"digits/{i}.png" for i in range(n)]),
        thumbnails=np.kron(digits.images[:n] * 15.9, np.ones((8, 8))).astype(np.uint8)[..., None].repeat(3, axis=3),
        teacher_neighbors=nearest(t),
        student_neighbors=nearest(s),
        column_cosine=cosines,
    )

    def accuracies(top1: float) -> dict[str, dict[str, float]]:
        voted = {"top1@1": top1, "top1@10": top1 - 1, "top1@20": top1 - 2}
        return {"knn": voted, "linear": {"top1": top1 + 1.5, "top5": 99.4, "l2": 0.01}} if labels else {}

    near, far = (
        {"overlap@11": 55.0 - 20 * noise, "cka": 0.9},
        {"row_cosine": 0.93, "column_cosine": float(cosines.mean())},
    )
    about = {"test_images": 360, "train_images": 1437, "classes": 10, "eval_data": "digits"}
    if not labels:
        about = {"test_images": 500, "caveats": ["Fidelity was measured on 500 images held out of training."]}
    evaluation = {
        "teacher": accuracies(96.0),
        "student": accuracies(knn) | {"fidelity": near},
        "student_embed": accuracies(knn - 0.5) | {"fidelity": near | far},
        "about": about,
    }
    write_evaluation(run, evaluation)
    return run


class Page(HTMLParser):
    """A page as its elements, its text and the JSON in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.json, self.open = "", [], [""]
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag if tag != "script" or not attrs else "json")

    def handle_endtag(self, tag: str) -> None:
        self.open.append("")

    def handle_data(self, data: str) -> None:
        if self.open[-1] == "json":
            self.json.append(json.loads(data))
        elif self.open[-1] not in ("script", "style"):
            self.text += f"{data} "

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag and attributes.items() <= found.items()]


def elements_of(html: str) -> list[str]:
    """The names of a page's elements and of their attributes."""
    found: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.append(" ".join([tag, *(name for name, _ in attrs)]))  # type: ignore[method-assign]
    parser.feed(html)
    return found


def report(folder: Path, *runs: Run) -> Page:
    return Page(write_report(runs, folder / "report.html"))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Run], Path]:
    """A student, the control without the space term that is ahead by a little, and one far behind."""
    folder = tmp_path_factory.mktemp("three")
    runs = [
        make_run(folder / "coss"),
        make_run(folder / "weight-0", method={"name": "coss", "weight": 0.0}, knn=93.0, noise=0.9),
        make_run(folder / "moco", method={"name": "moco"}, knn=60.0, noise=2.0, teacher=False),
    ]
    return runs, write_report(runs, folder / "all" / "report.html")


def test_the_page_asks_for_nothing(three: tuple[list[Run], Path]) -> None:
    page = Page(three[1])
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), attributes
        addresses = re.findall(r"url\(([^)]{0,5})", attributes.get("style") or "")
        assert all(address == "data:" for address in addresses)
    assert not page.all("link")
    assert not page.all("iframe")
    text = three[1].read_text(encoding="utf-8")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_torch_is_not_imported(three: tuple[list[Run], Path], tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from understudy.artifacts import Run\n"
        "from understudy.report.page import write_report\n"
        f"write_report([Run({str(three[0][0].path)!r})], Path({str(tmp_path / 'x.html')!r}))\n"
        "assert not {'torch', 'torchvision', 'timm'} & set(sys.modules), 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_same_runs_same_page(three: tuple[list[Run], Path], tmp_path: Path) -> None:
    again = write_report(three[0], tmp_path / "report.html")
    assert again.read_bytes() == three[1].read_bytes()


def test_the_table_has_a_row_for_each_model_and_marks_the_best_student(three: tuple[list[Run], Path]) -> None:
    text = three[1].read_text(encoding="utf-8")
    table = text[text.index("<table>") : text.index("</table>")]
    rows = re.findall(r"<tr.*?</tr>", table, flags=re.DOTALL)
    names = [re.sub(r"<[^>]+>", "|", row).strip("|").split("|")[0] for row in rows]
    assert names == ["Model", "Teacher", "coss", "coss", "weight-0", "weight-0", "moco", "moco"]
    assert all(
        heading in rows[0]
        for heading in ("10\u2011NN", "Linear probe", "11\u2011NN shared", "Column cosine", "Parameters")
    )
    assert all('scope="col"' in cell for cell in re.findall("<th[^>]*>", rows[0]))
    first = [re.findall(r"<td.*?</td>", row, flags=re.DOTALL)[0] for row in rows[1:]]
    assert [("★" in cell) for cell in first] == [False, False, False, True, False, False, False]
    assert "91.0" in first[1]  # top1@10 of the main student
    assert "87.6 to 93.5" in first[1]
    assert "method.weight 0.0" in rows[4]
    assert "78\u00a0k" in rows[2]
    assert "244\u00a0k" in rows[3]


def test_curves_carry_the_numbers_of_the_metrics(three: tuple[list[Run], Path]) -> None:
    page = Page(three[1])
    labels = [found["aria-label"] or "" for found in page.all("div") if "plot" in (found.get("class") or "")]
    for chart in (
        "feature",
        "space",
        "Total loss",
        "Row cosine",
        "Column cosine",
        "kNN accuracy, %",
        "Images per second",
    ):
        assert any(label.startswith(f"{chart} over image passes: coss from") for label in labels), chart
    knn = next(figure for figure, label in zip(charts(page), labels, strict=True) if label.startswith("kNN"))
    assert [trace["name"] for trace in knn["data"]] == ["coss", "teacher", "weight-0", "moco"]


def charts(page: Page) -> list[dict[str, Any]]:
    return [value for value in page.json if isinstance(value, dict)]


def drawn(page: Page, start: str) -> dict[str, Any]:
    """The one chart whose description begins so."""
    labels = [found["aria-label"] or "" for found in page.all("div") if "plot" in (found.get("class") or "")]
    (found,) = [figure for figure, label in zip(charts(page), labels, strict=True) if label.startswith(start)]
    return found


def figure_values(trace: dict[str, Any], axis: str) -> np.ndarray:
    """Numbers of a trace, which plotly writes as a list or as base64."""
    value = trace[axis]
    return (
        np.array(value) if isinstance(value, list) else np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"])
    )


def test_the_last_point_of_a_curve_is_the_last_row(three: tuple[list[Run], Path]) -> None:
    rows = [row for row in three[0][0].metrics() if row["kind"] == "step"]
    trace = drawn(Page(three[1]), "feature over")["data"][0]
    assert figure_values(trace, "x")[-1] == pytest.approx(rows[-1]["passes"])
    assert figure_values(trace, "y") == pytest.approx([row["terms"]["feature"] for row in rows])


def test_the_gallery_shows_the_neighbors_of_the_sample(three: tuple[list[Run], Path]) -> None:
    page = Page(three[1])
    images = [image for image in page.all("img") if image["src"]]
    assert all((image["src"] or "").startswith("data:image/jpeg;base64,/9j/") and image["alt"] for image in images)
    queries = [image for image in images if (image["alt"] or "").startswith("Query: ")]
    assert len(queries) == 12
    assert len(images) == 12 * 21
    sample = np.load(three[0][0].sample_path)
    at = images.index(queries[5])
    query = int((queries[5]["title"] or "").removeprefix("digits/").removesuffix(".png"))
    for offset, who in ((1, "teacher"), (11, "student")):
        shown = [(image["title"], image["alt"] or "") for image in images[at + offset : at + offset + 10]]
        wanted = sample[f"{who}_neighbors"][query].tolist()
        assert [title for title, _ in shown] == [f"digits/{i}.png" for i in wanted]
        other = sample["student_neighbors" if who == "teacher" else "teacher_neighbors"][query]
        assert ["found by both" in alt for _, alt in shown] == [i in other for i in wanted]
        same = [sample["labels"][i] == sample["labels"][query] for i in wanted]
        assert ["same class" in alt for _, alt in shown] == same


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    plain = make_run(tmp_path / "plain" / "run", n=60)
    nasty = make_run(tmp_path / "nasty" / "<img src=x>&run", n=60, class_names=[NASTY, *map(str, range(1, 10))])
    table = json.loads(nasty.student_path.read_text())
    table["spec"] = f"small:{NASTY}"
    write_json(nasty.student_path, table)
    nasty.config_path.write_text(nasty.config_path.read_text() + f'note = "{NASTY}</pre>"\n')
    plain.config_path.write_text(plain.config_path.read_text() + 'note = "x"\n')
    first, second = report(tmp_path / "plain", plain), report(tmp_path / "nasty", nasty)
    assert [tag for tag, _ in second.elements] == [tag for tag, _ in first.elements]
    assert NASTY in second.text
    text = (tmp_path / "nasty" / "report.html").read_text(encoding="utf-8")
    title = text[text.index("<title>") : text.index("</title>")]
    assert title == "<title>script&gt;, understudy of teacher"  # a spec is shortened to what follows its last slash
    # Plotly reads a little HTML in its own texts, so they are escaped once more inside the JSON.
    hovers = [text for chart in charts(second) for trace in chart["data"] for text in trace.get("text", [])]
    assert any("&lt;script&gt;" in text for text in hovers)
    assert not any("<script>" in text for text in hovers)


def told(folder: Path, text: str) -> str:
    """The page of a run in which every text that somebody else can choose is that one."""
    run = make_run(
        folder / "run", n=60, class_names=[text, *map(str, range(1, 10))], method={"name": text, "key": text}
    )
    student = run.student | {"spec": text, "skipped": [[text, text]], "extra": text}
    student["teacher"] |= {"spec": text, "weights": text}
    student["data"] |= {"spec": text}
    student["head"] |= {"kind": text}
    write_json(run.student_path, student)
    run.config_path.write_text(run.config_path.read_text() + f"note = {json.dumps(text)}\n")
    rows = [{"kind": "start", "device": text, "compiled": {text: [text, {text: text}]}}, *run.metrics()[1:]]
    rows[1]["terms"][text] = rows[2]["terms"][text] = 1.0
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = run.evaluation
    evaluation["student"] |= {f"{text}@{text}": {text: 1.0, "note": text}, f"knn@{text}": {"top1@10": 50.0}}
    evaluation["teacher"] |= {f"knn@{text}": {"top1@10": 60.0}, f"broken {text}": {"error": text}}
    evaluation["about"] |= {"caveats": [text], "eval_data": text, "settings": {"seed": text}}
    for part in ("title", "short", "sentence", "source"):
        evaluation["about"]["protocols"]["knn"][part] = text
    evaluation["about"]["protocols"]["linear"] |= {"figures": {"top1": text}, "labels": {"top1": text}}
    write_json(run.evaluation_path, evaluation)
    with np.load(run.sample_path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["names"] = np.array([text] * 60)
    figures = {"runtime": text, "parity": {text: {"cosine_mean": 1.0}}}
    run.exports_path.parent.mkdir()
    write_json(
        run.exports_path, {"targets": {text: figures, f"{text} 2": {"failed": text}, f"{text} 3": {"why": text}}}
    )
    np.savez(run.sample_path, **arrays)
    return write_report([run], folder / "report.html").read_text(encoding="utf-8")


def test_hostile_strings_are_no_markup(tmp_path: Path) -> None:
    plain, hostile = told(tmp_path / "plain", "pl`c`ain"), told(tmp_path / "hostile", HOSTILE)
    assert elements_of(hostile) == elements_of(plain)
    blocks = re.findall(r'<script type="application/json">(.*?)</script>', hostile, flags=re.DOTALL)
    assert len(blocks) == len(charts(Page(tmp_path / "plain" / "report.html"))) + 1  # and the texts of the maps
    for block in blocks:
        json.loads(block)
        assert not set("<>&'") & set(block)
    assert "{{ 7 * 7 }}{% raw %}" in hostile


def test_markup_is_in_templates_and_only_our_own_assets_are_not_escaped() -> None:
    room = Path(rendering.__file__).parent
    templates = "".join(path.read_text() for path in sorted((room / "templates").iterdir()))
    assert re.findall(r"\w+ \| *safe|autoescape|Markup", templates) == ["style | safe", "script | safe"]
    assert rendering.environment().autoescape is True
    for path in room.glob("*.py"):  # plotly's own <br> and <extra></extra> are the only ones
        assert not re.search(r"</?(?!br>|extra>)[a-z][a-z0-9]*[ >]|Markup", path.read_text()), path.name


def test_the_result_stands_before_what_was_done(three: tuple[list[Run], Path]) -> None:
    page = Page(three[1])
    sections = [found["id"] for found in page.all("section")]
    assert sections == [
        "result", "protocols", "curves", "neighbors", "map", "dimensions", "done", "caveats"
    ]  # fmt: skip
    assert [(found["href"] or "").removeprefix("#") for found in page.all("a")] == sections


def test_facts_are_words(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=20, method={"name": "coss", "layers": [1, 2], "center": False, "extra": {}})
    start, *rest = run.metrics()
    start |= {"compiled": {"student": False, "teacher": True, "device": "cpu"}, "teacher_precision": None}
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in [start, *rest]))
    text = re.sub(r"<[^>]+>", "|", report_text(tmp_path, run))
    text = re.sub(r"[|\s]*\|[|\s]*", "|", text)
    assert "|compiled|student no, teacher yes, on cpu|" in text
    assert "|layers|1, 2|" in text
    assert "|center|no|" in text
    assert "|extra|" not in text
    assert "teacher precision" not in text
    assert not re.search(r"[\[{]&#39;|: (True|False)\b|None", text)


def report_text(folder: Path, *runs: Run) -> str:
    """The page without its scripts and styles."""
    text = write_report(runs, folder / "report.html").read_text(encoding="utf-8")
    return re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (True, "yes"), (None, "none"), (0.5, "0.5"), ("a", "a"), ([1, 2], "1, 2"), (("a", "b"), "a, b"),
        ({"student": False, "teacher": False, "device": "cpu"}, "student no, teacher no, on cpu"),
        ({"gpu_memory": [1, 2], "none": None}, "gpu memory 1, 2"),
        ([["a.jpg", "damaged"], ["b.jpg", "empty"]], "a.jpg, damaged; b.jpg, empty"), ([], ""), ({}, ""),
    ],
)  # fmt: skip
def test_values_in_words(value: Any, words: str) -> None:
    assert in_words(value) == words


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("config.toml", "The run folder has no config.toml"),
        ("metrics.jsonl", "metrics.jsonl has no steps yet"),
        ("student.json", "Training has not ended"),
        ("evaluation.json", "nothing has been measured yet"),
        ("sample.npz", "There is no sample of evaluation images"),
    ],
)
def test_a_missing_file_is_a_sentence(tmp_path: Path, file: str, sentence: str) -> None:
    run = make_run(tmp_path / "run", n=20)
    (run.path / file).unlink()
    assert sentence in report(tmp_path, run).text


def test_an_empty_folder_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    page = report(tmp_path, Run(tmp_path / "run"))
    assert "nothing has been measured yet" in page.text
    assert charts(page) == []


def test_without_labels_agreement_and_clusters_take_their_place(tmp_path: Path) -> None:
    page = report(tmp_path, make_run(tmp_path / "run", n=60, labels=False))
    assert "The student reaches 45.0\u00a0% in overlap of the 11 nearest neighbors with the teacher" in page.text
    assert "No accuracy was measured" in page.text
    assert "Fidelity was measured on 500 images held out" in page.text
    assert "k-means clusters of the teacher's space" in page.text
    assert "classes are not marked" in page.text
    assert "cluster 1" in page.text


def test_without_a_teacher_the_page_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=20, teacher=False)
    write_evaluation(run, {"student": {"knn": {"top1@10": 81.0}}, "about": {"test_images": 360, "classes": 10}})
    with np.load(run.sample_path) as file:
        kept = {
            name: file[name] for name in file.files if name not in {"teacher", "teacher_neighbors", "column_cosine"}
        }
    np.savez(run.sample_path, **kept)
    page = report(tmp_path, run)
    assert (
        "The student reaches 81.0\u00a0% 10-NN accuracy, 360 test images; no teacher was measured beside it."
        in page.text
    )
    assert "trained without a teacher" in page.text
    assert page.text.count("This run has no teacher, so there are no two spaces to compare here.") == 3


@pytest.mark.parametrize("n", [1, 2, 3, 11])
def test_tiny_samples(tmp_path: Path, n: int) -> None:
    page = report(tmp_path, make_run(tmp_path / "run", n=n))
    assert ("cannot be laid out" in page.text) == (n < 3)
    assert ("PCA of" in page.text) == (n >= 3)
    assert ("too few images for t-SNE" in page.text) == (n >= 3)


def test_notes_of_protocols_are_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=20)
    evaluation = run.evaluation
    evaluation["student"]["knn"]["note"] = "k = 50 left out: there are only 40 training images."
    write_json(run.evaluation_path, evaluation)
    evaluation["student"]["linear"] = {"error": "All 40 training images are of one class."}
    write_json(run.evaluation_path, evaluation)
    text = report(tmp_path, run).text
    assert "knn: k = 50 left out: there are only 40 training images." in text
    assert "linear of student was not measured: All 40 training images are of one class." in text


def test_errors_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one run folder"):
        write_report([], tmp_path / "x.html")
    with pytest.raises(StoreError, match="nowhere does not exist"):
        write_report([Run(tmp_path / "nowhere")], tmp_path / "x.html")
    run = make_run(tmp_path / "run", n=20)
    run.sample_path.write_bytes(b"PK damaged")
    with pytest.raises(StoreError, match="sample.npz cannot be read"):
        write_report([run], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()
