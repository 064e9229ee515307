"""The scikit-learn transformer: in a pipeline, cloned, pickled, and by scikit-learn's own checks."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags
from sklearn.utils._set_output import ADAPTERS_MANAGER
from sklearn.utils.estimator_checks import estimator_checks_generator
from sklearn.utils.validation import check_is_fitted, validate_data

import understudy
from test_export import make_student
from understudy.artifacts import Run
from understudy.errors import ShapeError, StoreError
from understudy.models.student import load_student
from understudy.models.transformer import StudentTransformer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_student(tmp_path_factory.mktemp("transformer") / "run", head="mlp", hidden=32)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Twelve pictures, bright ones and dark ones in turn."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 60, (40, 50, 3), np.uint8) + np.uint8(150 * (number % 2))
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return sorted(map(str, folder.glob("*.png")))


def test_a_pipeline_learns_searches_and_predicts(run: Run, paths: list[str]) -> None:
    labels = ["dark", "bright"] * 6
    model = make_pipeline(understudy.StudentTransformer(str(run.path)), LogisticRegression())
    assert model.fit(paths[:8], labels[:8]).predict(paths[8:]).tolist() == labels[8:]
    grid = GridSearchCV(model, {"studenttransformer__normalize": [False, True]}, cv=2).fit(paths, labels)
    assert grid.best_score_ == 1


def test_rows_are_those_of_encode_whatever_holds_the_images(run: Run, paths: list[str]) -> None:
    student = load_student(run)
    wanted = student.encode(paths)
    transformer = StudentTransformer(run.path, batch_size=5).fit(paths)
    column = np.array(paths)[:, None]

    class Series:
        """As pandas and polars have it."""

        def to_numpy(self) -> np.ndarray:
            return np.array(paths, dtype=object)

    images = [np.asarray(Image.open(path)) for path in paths]
    for given in (paths, np.array(paths), column, Series(), images, np.stack(images), str(Path(paths[0]).parent)):
        assert np.allclose(transformer.transform(given), wanted, atol=1e-5)
    unit = StudentTransformer(student, normalize=True).fit_transform(paths)
    assert np.allclose(unit, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)


class Frames:
    """In the place of pandas, which is not among our requirements: a frame is its rows by the names of columns."""

    container_lib = "pandas"

    def create_container(self, rows, original, columns, inplace=False):
        return dict(zip(columns(), rows.T, strict=True))


def test_columns_have_names_and_any_container(run: Run, paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = StudentTransformer(run.path).fit(paths)
    names = transformer.get_feature_names_out()
    assert names.tolist() == [f"studenttransformer{number}" for number in range(24)]
    wanted = transformer.transform(paths)
    monkeypatch.setitem(ADAPTERS_MANAGER.adapters, "pandas", Frames())
    frame = transformer.set_output(transform="pandas").transform(paths)
    assert list(frame) == names.tolist()
    assert np.array_equal(np.stack(list(frame.values()), axis=1), wanted)


def test_it_is_cloned_and_pickled(run: Run, paths: list[str]) -> None:
    transformer = StudentTransformer(str(run.path), batch_size=3).fit(paths)
    copy = clone(transformer)
    assert copy.get_params() == {"student": str(run.path), "batch_size": 3, "normalize": False}
    with pytest.raises(NotFittedError):
        copy.transform(paths)
    assert len(pickle.dumps(copy)) < 1000
    wanted = transformer.transform(paths)
    again = pickle.loads(pickle.dumps(transformer))
    assert np.array_equal(again.transform(paths), wanted)
    loaded = clone(StudentTransformer(load_student(run))).fit(paths)  # with the network itself as the parameter
    assert np.allclose(loaded.transform(paths), wanted, atol=1e-5)


def test_what_it_cannot_take_is_a_sentence(run: Run, paths: list[str], tmp_path: Path) -> None:
    transformer = StudentTransformer(run.path).fit(paths)
    for single in (paths[0], Image.new("RGB", (50, 40)), np.zeros((40, 50, 3), np.uint8)):
        with pytest.raises(ShapeError, match="put this one into a list"):
            transformer.transform(single)
    with pytest.raises(ShapeError, match=r"one column, of images or their paths; got an array \(6, 2\)"):
        transformer.transform(np.array(paths).reshape(6, 2))
    with pytest.raises(StoreError, match="There is no run folder"):
        StudentTransformer(tmp_path / "nowhere").fit(paths)


class OfTables(StudentTransformer):
    """Takes the tables of scikit-learn's checks, each row drawn as a small gray picture."""

    def fit(self, X, y=None):
        validate_data(self, X)
        return super().fit(X, y)

    def transform(self, X):
        check_is_fitted(self)
        rows = np.arctan(validate_data(self, X, reset=False)) / np.pi + 0.5
        return super().transform([np.tile(np.uint8(255 * row), (4, 1)) for row in rows])

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.string, tags.no_validation = True, False, False
        return tags


NOT_APPLICABLE = {
    "check_do_not_raise_errors_in_init_or_set_params": "these tests check annotations when they run, and -1 is no path",
    "check_array_api_input": "scikit-learn skips it without SCIPY_ARRAY_API",
}


@pytest.mark.slow
def test_scikit_learn_s_own_checks_pass_where_they_apply(run: Run) -> None:
    done, failed = set(), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for estimator, check in estimator_checks_generator(OfTables(str(run.path)), mark=None):
            name = check.func.__name__
            try:
                check(estimator)
                done.add(name)
            except Exception as error:
                failed[name] = str(error)[:200]
    assert set(failed) == set(NOT_APPLICABLE), failed
    assert {"check_transformer_general", "check_estimators_pickle", "check_fit_idempotent"} <= done
    assert len(done) > 30


def test_of_itself_it_says_that_it_takes_no_tables_of_numbers(run: Run) -> None:
    tags = get_tags(StudentTransformer(run.path))
    assert (tags.input_tags.two_d_array, tags.input_tags.string, tags.target_tags.required) == (False, True, False)
