"""What metrics.csv and the log lines say of losses whose roles change from step to step."""

import math

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
