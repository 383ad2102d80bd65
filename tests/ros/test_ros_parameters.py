import array

import pytest

from vismem.ros.health import ERROR, OK, WARN, Health, Spread
from vismem.ros.parameters import SETTINGS, problem_of


def test_every_default_is_allowed():
    for setting in SETTINGS:
        assert setting.problem(setting.default) == ""
        assert setting.about.endswith(".")


@pytest.mark.parametrize(
    "name, value",
    [
        ("fps", -0.1), ("fps", 241.0), ("fps", float("nan")), ("fps", 2), ("fps", "2"),
        ("queue", 0), ("queue", 2.0), ("queue", True), ("depth", 1), ("depth", "true"),
        ("policy", "hoard"), ("image_reliability", ""), ("budget", "lots"), ("budget", "-1MB"),
        ("mount", [0.0] * 7), ("mount", [0.0, 0.0, 0.0, 1.0]), ("mount", [0] * 6 + [1]),
        ("mount", [0.0] * 6 + [float("inf")]), ("path", 3), ("detect", False),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(name, value):
    assert name in problem_of({name: value}, configured=False)


def test_edges_are_in_range():
    for setting in SETTINGS:
        if setting.low is not None:
            kind = type(setting.default)
            assert setting.problem(kind(setting.high)) == ""
            assert setting.problem(kind(setting.low)) == ""
    assert problem_of({"mount": array.array("d", [1, 2, 3, 0, 0, 0, 2])}, configured=False) == ""


def test_what_may_change_while_it_runs():
    assert problem_of({"fps": 5.0, "standoff": 1.0, "use_sim_time": True}, configured=True) == ""
    for setting in SETTINGS:
        problem = problem_of({setting.name: setting.default}, configured=True)
        assert bool(problem) != setting.dynamic


class TestHealth:
    def test_silence_is_told_after_a_while_and_only_while_active(self):
        health = Health(min_rate=1.0)
        health.arrived(0.0, 100.0)
        assert health.report(101.0, {})[0] == OK
        level, line, values = health.report(110.0, {})
        assert level == WARN and "0.0 pictures a second" in line and values["rate"] == "0.0"
        assert health.report(110.0, {}, active=False)[0] == OK

    def test_rates_and_ages(self):
        health = Health(max_age=0.5)
        for number in range(150):
            health.arrived(0.01 if number < 148 else 0.9, 100 + number / 30)
        level, line, values = health.report(105.0, {"bytes": 5})
        assert values["rate"] == "30.0" and values["late"] == "2" and values["bytes"] == "5"
        assert level == WARN and "2 late" in line
        assert health.report(105.1, {})[1] == "remembers"  # told once, not for ever

    def test_failures_are_errors_and_notes_keep_an_example(self):
        health = Health()
        health.note("failed", "disk full")
        health.count("remembered", 5)
        level, line, values = health.report(1.0, {})
        assert level == ERROR and line.count("failed") == 1 and "remembered" not in line
        assert values["note: failed"] == "disk full"

    def test_spread_forgets(self):
        spread = Spread(most=3)
        for value in (9.0, 1.0, 2.0, 3.0):
            spread.add(value)
        assert (spread.at(0), spread.at(0.5), spread.at(1)) == (1.0, 2.0, 3.0)
        assert Spread().at(0.5) == 0.0
