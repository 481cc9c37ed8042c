"""eegvision.ledger: every look at a test set leaves a line, and a line that was changed shows."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from eegvision import ledger
from eegvision.vocab import InputError


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("EEGVISION_HOME", str(tmp_path))


def model(number: int) -> dict[str, str]:
    return {"run": "demo", "trial": f"t{number}", "fingerprint": f"f{number}", "model_sha256": f"{number:064x}"}


def opened(*numbers: int, study: str = "demo", test: str = "side"):
    return ledger.open_test("demo", test, study=study, models=[model(n) for n in numbers], purpose="final score")


def test_an_opening_is_written_with_its_models_and_knows_the_earlier_ones():
    first, before = opened(1)
    assert (first.number, before) == (1, ())
    second, before = opened(2)
    assert (second.number, before) == (2, (first,))
    assert [entry.models[0]["trial"] for entry in ledger.openings("side")] == ["t1", "t2"]


def test_the_same_models_looked_at_again_are_no_new_opening():
    opened(1, 2)
    again, before = opened(2)
    assert (again.number, before) == (1, ())
    assert len(ledger.openings()) == 1


def test_the_same_models_in_another_study_are_a_new_opening():
    opened(1)
    assert opened(1, study="other")[0].number == 2


def test_other_test_sets_do_not_count():
    opened(1, test="a")
    _, before = opened(2, test="b")
    assert before == ()
    assert [len(ledger.openings(test)) for test in ("a", "b", "c")] == [1, 1, 0]


def test_openings_at_the_same_time_all_get_a_line_of_their_own():
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: opened(n), range(24)))
    assert [entry.number for entry in ledger.openings()] == list(range(1, 25))


CHANGES = ["another model", "taken out", "no JSON", "another purpose"]


# Cutting off the end of a file leaves no trace.
@pytest.mark.parametrize(("line", "change"), [(n, c) for n in range(3) for c in CHANGES if (n, c) != (2, "taken out")])
def test_a_changed_line_is_named(line, change):
    for number in range(3):
        opened(number)
    path = ledger.ledger_path()
    lines = path.read_text().splitlines()
    entry = json.loads(lines[line])
    if change == "another model":
        entry["models"][0]["trial"] = "x"
    elif change == "another purpose":
        entry["purpose"] = "nothing"
    lines[line] = json.dumps(entry) if change != "no JSON" else "{"
    if change == "taken out":
        del lines[line]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=f"line {line + 1}, is not what was written there"):
        ledger.openings()
    with pytest.raises(InputError, match="the record of who opened the test set was altered"):
        opened(9)
