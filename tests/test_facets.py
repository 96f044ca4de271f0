"""Results by facet: each value beside its run, and runs that diverged beside the values of the others."""

import math

import pandas as pd

from bestiary.runs.facets import join_facets


def test_each_value_of_a_facet_is_a_row_and_a_diverged_run_scores_nothing_at_all_of_them() -> None:
    outcomes = {"a": "solved", "b": "diverged", "c": "finished"}
    runs = [{"key": key, "segment": 0, "task": "mqar", "rate": 0.1, "outcome": end} for key, end in outcomes.items()]
    table = pd.DataFrame([{**run, "right": 9, "asked": 12, "accuracy": 0.75, "loss": 0.1} for run in runs])
    counts = [("a", 2, 4, 5), ("a", 4, 5, 7), ("c", 4, 3, 4)]
    parts = [
        {"key": key, "segment": 0, "distance": at, "right": right, "asked": asked, "accuracy": right / asked, "loss": 1}
        for key, at, right, asked in counts
    ]
    found = join_facets(table, pd.DataFrame(parts), "distance").set_index(["key", "distance"])
    assert found["right"].to_dict() == {("a", 2): 4, ("a", 4): 5, ("b", 2): 0, ("b", 4): 0, ("c", 4): 3}
    assert found.loc[("a", 4), "accuracy"] == 5 / 7
    assert math.isnan(found.loc[("b", 2), "asked"])
    assert set(found["rate"]) == {0.1}
