"""eegvision.report.study_page: all pieces or none, struck scores struck everywhere, damaged files named."""

import re
import shutil

import pandas as pd
import pytest
import yaml

from eegvision.config import RunConfig
from eegvision.report.leaderboard import validation_board
from eegvision.report.study_files import read_run
from eegvision.report.study_page import study_page
from eegvision.vocab import InputError
from report import run_folders


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """A supported and an unsupported run with every piece, and the report of both."""
    home = tmp_path_factory.mktemp("rich")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EEGVISION_HOME", str(home))
        run_folders.write_everything("good", n_trials=9)
        run_folders.write_everything("bad", "unsupported", n_trials=9, seed=3)
        run_folders.open_test("good", "id001", purpose="again, because <b>")
        written = study_page(["good", "bad"], home / "out" / "both.html")
    return written, written.page.read_text()


def test_the_page_holds_every_section_and_needs_nothing_but_itself(rich):
    _, page = rich
    for title in (
        "The papers' tables", "Leaderboard", "Audit", "Openings of the test set", "Architectures and settings",
        "Learning curves", "Subjects", "Confusion of classes", "Semantic categories", "Presentations averaged",
        "To run it again",
    ):  # fmt: skip
        assert f"<h2>{title}</h2>" in page
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!#|data:image/)', page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', page)) <= set(ids)


def test_every_number_says_its_circumstances(rich):
    _, page = rich
    for words in (
        "data demo (11565a2ea831)", "test side of the split by-image", "the very picture among 30", "unit length: both",
        "not transductive", "single presentations", "32 channels", "n = 540 of 30 pictures", "best pass by val/top1",
        "significance line", "chance",
    ):  # fmt: skip
        assert words in page


def test_scores_of_an_unsupported_run_are_struck_and_those_of_a_supported_one_are_not(rich):
    written, page = rich
    rows = re.findall(r'<tr><th scope="row">((?:good|bad), [^<]*)</th>(.*?)</tr>', page)
    assert {label.split(",")[0] for label, _ in rows} == {"good", "bad"}
    for label, cells in rows:
        scores = re.findall(r'class="number"[^>]*><span>(<s>)?', cells)
        assert scores
        assert all(bool(mark) == label.startswith("bad") for mark in scores)
    latex = (written.folder / "tables.tex").read_text()
    assert r"\sout{" in latex
    csv = pd.read_csv(written.rows)
    assert csv[csv["run"] == "bad"]["is_struck"].all()
    assert not csv[csv["run"] == "good"]["is_struck"].any()


def test_the_audit_is_shown_with_reasons_and_decides_the_head(rich):
    _, page = rich
    assert '<span class="badge">unsupported</span>' in page
    assert "The time before the picture alone names it: drifts, not vision." in page
    assert page.count('<tr class="red">') == 1


def test_a_test_set_opened_for_other_models_is_said_in_red(rich):
    _, page = rich
    sentence = r'class="?warn"?>The test set of demo was opened 3 times for different models of these runs'
    assert len(re.findall(sentence, page)) == 2  # in the head and in the section
    assert "again, because &lt;b&gt;" in page


def test_published_figures_stand_beside_ours(rich):
    _, page = rich
    row = re.search(r'<th scope="row">alexnet \+ GRU</th>(.*?)</tr>', page)
    assert row
    assert re.findall(r'number paper"[^>]*><span>([\d.]+)', row[1]) == ["77.2", "69.9", "73.6"]


def test_numbers_tables_figures_and_configurations_lie_beside_the_page(rich):
    written, _ = rich
    csv = pd.read_csv(written.rows)
    assert set(csv["kind"]) == {"evaluation", "repetition curve", "validation, chosen on", "audit control", "table"}
    assert csv[csv["kind"] == "evaluation"]["chance"].notna().all()
    figures = {path.name for path in (written.folder / "figures").iterdir()}
    for stem in ("scores-0", "effects-good", "trials-good", "passes-good", "subject-0", "confusion-0", "repetitions-0"):
        assert {f"{stem}.svg", f"{stem}.pdf", f"{stem}.csv"} <= figures
    latex = (written.folder / "tables.tex").read_text()
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == latex.count(r"\bottomrule") > 3
    assert csv["kind"].notna().all()


def test_the_configuration_files_make_the_same_runs(rich):
    written, _ = rich
    best = yaml.safe_load((written.folder / "good-best.yaml").read_text())
    config = RunConfig.from_dict(best)
    assert config.eeg.encoder == "tsconv"
    assert config.train.max_passes == 12
    sweep = yaml.safe_load((written.folder / "good.yaml").read_text())
    assert (sweep["name"], sweep["trials"], sweep["space"]) == ("good", 9, "search_spaces/demo.py")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EEGVISION_HOME", str(tmp_path))
    return tmp_path


def test_a_run_with_nothing_but_its_folder_makes_a_page_of_sentences_with_commands(home):
    (home / "runs" / "empty").mkdir(parents=True)
    page = study_page(["empty"], home / "out.html").page.read_text()
    assert "not settled" in page
    for command in ("evaluate.py --run empty", "audit.py --run empty", "palazzo.py", "sweep.py"):
        assert f"python jobs/{command}" in page
    assert "<svg" not in page


@pytest.mark.parametrize("removed", ["sweep.json", "trials", "evaluations", "audit.json", "tables.json", "spool",
                                     "trials.csv", "environment.json"])  # fmt: skip
def test_any_piece_can_be_missing(home, removed, monkeypatch):
    folder = run_folders.write_everything("demo", n_trials=3)
    path = folder / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    # Drawing is what takes time, and is looked at elsewhere.
    monkeypatch.setattr("eegvision.report.charts.Chart.html", lambda chart: f"<svg>{chart.name}</svg>")
    monkeypatch.setattr("eegvision.report.charts.Chart.save", lambda *_: [])
    assert "</html>" in study_page(["demo"], home / "out.html").page.read_text()


@pytest.mark.parametrize(
    "file",
    ["sweep.json", "audit.json", "tables.json", "environment.json", "trials/id001/trial.json", "trials/id001/end.json",
     "trials/id001/last/pass-000012/state.json", "trials/id001/best/pass-000012/predictions.npz",
     "evaluations/id003.zero-shot.test.0.json"],
)  # fmt: skip
@pytest.mark.parametrize("content", ["", "[1]", '{"rows": [{}], "tables": 3}'])
def test_a_damaged_file_is_named(home, file, content):
    folder = run_folders.write_everything("demo", n_trials=3)
    assert (folder / file).exists()
    (folder / file).write_text(content)
    if file in ("sweep.json", "environment.json") and content.startswith("{"):
        read_run("demo")  # other names than ours are no damage there
        return
    with pytest.raises(InputError, match=re.escape(file.rsplit("/", 1)[-1])):
        study_page(["demo"], home / "out.html")
    assert not (home / "out.html").exists()


def test_wrong_names_and_endings_are_refused_with_what_is_there(home):
    run_folders.write_sweep("demo", 3)
    with pytest.raises(InputError, match=r"there is no run 'dem'.*runs there: demo"):
        study_page(["dem"], home / "out.html")
    with pytest.raises(InputError, match="each once"):
        study_page(["demo", "demo"], home / "out.html")
    with pytest.raises(InputError, match=r"\.html"):
        study_page(["demo"], home / "out.pdf")


@pytest.mark.usefixtures("home")
def test_validation_scores_are_marked_as_chosen_on_and_corrected_for_the_trials():
    run_folders.write_sweep("demo", 5)
    board = validation_board(read_run("demo"))
    assert board is not None
    text = " ".join(board.table.to_text().split())
    assert "chosen on, not evidence" in text
    assert "divided by 5 trials" in text
    cell = board.table.rows["trial 3"][0]
    assert cell.line == pytest.approx(5 / 30)  # least h with P(X >= h) <= 0.01, X ~ Binomial(30, 1/30)
    assert cell.chance == pytest.approx(1 / 30)
    assert cell.low is not None


def test_a_run_without_search_is_run_again_by_the_training_job(home):
    run_folders.write_sweep("one", 1, is_searched=False)
    page = study_page(["one"], home / "report.html").page.read_text()
    assert "python jobs/train.py --config report/one.yaml" in page
    assert "fewer than two trials" in page
