"""What metrics.csv and the log lines say of losses whose roles change from step to step."""

import math
import re

import paddle
import pytest

from resnet48.training import metrics

ROLES = ("largest", "smallest", "random")


def filled(*steps, first=0):
    """A meter after some steps, each given as losses by role."""
    since = metrics.Meter(first, ROLES)
    for losses in steps:
        since.add({role: paddle.to_tensor(loss, "float32") for role, loss in losses.items()}, 8)
    return since


def flushed(*steps, first=0):
    return filled(*steps, first=first).flush(first + len(steps), 4, 100, 0.1)


def cells(folder):
    """metrics.csv as lists of words, without the columns before the losses."""
    lines = (folder / "metrics.csv").read_text().split("\n")[:-1]
    return [line.split(",")[len(metrics.Table.COLUMNS):] for line in lines]


def test_a_row_holds_the_mean_over_the_steps_that_had_the_role_whenever_it_came():
    row = flushed({"largest": 1, "random": 4}, {"largest": 2}, {"largest": 6, "random": 2})
    assert row["losses"] == {"largest": 3, "smallest": None, "random": 3}
    assert "random 3.0000" in metrics.line(row, 5) and "smallest" not in metrics.line(row, 5)


def test_the_next_row_begins_with_nothing():
    since = filled({"smallest": 5})
    since.flush(1, 4, 100, 0.1)
    since.add({"random": paddle.to_tensor(2.0)}, 8)
    assert since.flush(2, 4, 100, 0.1)["losses"] == {"largest": None, "smallest": None, "random": 2}


def test_a_loss_that_is_not_finite_is_seen_in_a_role_that_comes_late():
    row = flushed({"largest": 1}, {"largest": 1, "random": math.inf, "smallest": math.nan}, {"random": math.nan},
                  first=10)
    assert row["not_finite"] == (12, ["random", "smallest"])
    assert flushed({"largest": 1})["not_finite"] is None


def test_a_role_that_the_recipe_does_not_have_is_an_error_and_not_dropped():
    with pytest.raises(ValueError, match="archive"):
        filled({"archive": 1})


def test_the_columns_are_those_of_the_recipe_and_an_absent_role_is_an_empty_cell(tmp_path):
    table = metrics.Table(tmp_path, 0, ROLES)
    table.write(flushed({"random": 2}))
    table.write(flushed({"largest": 1, "smallest": 3}))
    assert cells(tmp_path) == [["loss_largest", "loss_smallest", "loss_random"], ["", "", "2"], ["1", "3", ""]]


def test_a_resumed_run_keeps_the_columns_whichever_roles_come(tmp_path):
    metrics.Table(tmp_path, 0, ROLES).write(flushed({"random": 2}))
    metrics.Table(tmp_path, 1, ROLES).write(flushed({"largest": 1}, first=1))
    assert cells(tmp_path)[1:] == [["", "", "2"], ["1", "", ""]]


def test_rows_of_a_file_with_other_columns_stay_under_their_own_names(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,lr,images_per_s,data_wait,loss_random,loss_other\n"
                                          "1,1,.1,5,0,7,8\n")
    metrics.Table(tmp_path, 1, ROLES).write(flushed({"random": 2}, first=1))
    assert cells(tmp_path) == [["loss_largest", "loss_smallest", "loss_random", "loss_other"], ["", "", "7", "8"],
                               ["", "", "2", ""]]


def written(folder, rows=3):
    """The lines of the file after so many rows, one a step."""
    table = metrics.Table(folder, 0, ROLES)
    for step in range(rows):
        table.write(flushed({"random": 2}, first=step))
    return (folder / "metrics.csv").read_text().splitlines(keepends=True)


DAMAGE = {
    "an empty line": (lambda lines: [*lines[:2], "\n", *lines[2:]], "line 3 has 0 cells, the first has 8"),
    "an empty line at the end": (lambda lines: [*lines, "\r\n"], "line 5 has"),
    "a doubled heading": (lambda lines: [*lines[:2], lines[0], *lines[2:]], "line 3 holds what is no number"),
    "a NUL": (lambda lines: [*lines[:-1], lines[-1].replace("2", "\0")], "NUL|no number"),
    "an edited step": (lambda lines: [lines[0], lines[1].replace("0.25,1,", "0.25,1st,"), *lines[2:]],
                       "line 2 holds what is no number"),
    "an edited loss": (lambda lines: [*lines[:-1], lines[-1].replace("\n", "x\n")], "line 4 holds what is no number"),
    "a further cell": (lambda lines: [*lines[:-1], "5," + lines[-1]], "line 4 has 9 cells, the first has 8"),
    "a missing cell": (lambda lines: [*lines[:-1], lines[-1].partition(",")[2]], "line 4 has 7 cells"),
    "a doubled row": (lambda lines: [*lines, lines[-1]], "line 5 is of step 3, the one before of step 3"),
    "a missing heading": (lambda lines: lines[1:], "line 1 does not name the columns"),
    "a doubled column": (lambda lines: [lines[0].replace("lr", "step"), *lines[1:]], "line 1 does not name"),
    "an open quote": (lambda lines: [lines[0], '"' + lines[1], *lines[2:]], "quote|unexpected end|new-line"),
    "nothing": (lambda lines: [], "line 1 does not name the columns"),
    "another encoding": (lambda lines: [*lines, "\udcff\n"], "utf-8"),
}


@pytest.mark.parametrize("change, words", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_set_aside_and_named_and_a_new_one_begins(tmp_path, capsys, change, words):
    path = tmp_path / "metrics.csv"
    path.write_text("".join(change(written(tmp_path))), errors="surrogateescape")
    before = path.read_bytes()
    metrics.Table(tmp_path, 3, ROLES).write(flushed({"largest": 1}, first=3))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{path} is damaged (") and line.isprintable() and re.search(words, line), line
    assert line.endswith(f"): it is now {tmp_path}/metrics.damaged-1.csv, and a new one begins after step 3")
    assert (tmp_path / "metrics.damaged-1.csv").read_bytes() == before
    assert cells(tmp_path) == [["loss_largest", "loss_smallest", "loss_random"], ["1", "", ""]]
    path.write_text("damaged again\n")
    metrics.Table(tmp_path, 3, ROLES)
    assert (tmp_path / "metrics.damaged-1.csv").read_bytes() == before
    assert (tmp_path / "metrics.damaged-2.csv").read_text() == "damaged again\n"


@pytest.mark.parametrize("change", [lambda text: text, lambda text: text.replace("\r\n", "\n"),
                                    lambda text: "\ufeff" + text], ids=["", "other ends of lines", "a mark of UTF-8"])
def test_a_file_that_says_the_same_in_other_bytes_is_not_damaged(tmp_path, change):
    path, text = tmp_path / "metrics.csv", "".join(written(tmp_path))
    path.write_bytes(change(text).encode())
    metrics.Table(tmp_path, 3, ROLES)
    assert path.read_text() == text and len(list(tmp_path.iterdir())) == 1
