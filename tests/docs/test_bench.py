# SPDX-License-Identifier: Apache-2.0
"""The bench's arithmetic: ratios, tables, what got worse, and the check of what arrived."""

import json
import random
from pathlib import Path

import pytest

from bench import check, report
from bench.adapters import CONTESTANTS, RIVALS
from bench.harness import BEST, ITSELF, Comparison, Outcome, Ratio, orders
from bench.plan import C_PLANS, GROWTH_PLANS, PLANS
from bench.work import Checker, Work, cycle_of, last_cycle

pytestmark = pytest.mark.no_core


def rate(value: float) -> Outcome:
    return Outcome({"rate": value, "cpu": 1e6 / value}, due=10)


def comparison(rounds: list[dict[str, Outcome]], *ratios: Ratio) -> Comparison:
    return Comparison("work", "group", list(rounds[0]), ratios, rounds)


def test_a_ratio_is_the_median_of_the_rounds_ratios_and_not_the_ratio_of_medians() -> None:
    rounds = [(10.0, 1.0), (20.0, 10.0), (90.0, 30.0)]
    made = comparison(
        [{"jumiks": rate(ours), "pyzmq": rate(theirs)} for ours, theirs in rounds],
        Ratio("jumiks", "pyzmq", target=4.0),
    )
    assert made.values("jumiks", "pyzmq") == [10.0, 2.0, 3.0]
    *_, ratio, spread, target = report.row(made, made.ratios[0])
    assert (ratio, spread, target) == ("3.00x", "2.00 .. 10.00", ">= 4x MISSED")


def test_a_target_is_met_from_above_for_rates_and_from_below_for_times() -> None:
    assert Ratio("a", "b", "rate", 2.0).met(2.0)
    assert not Ratio("a", "b", "rate", 2.0).met(1.9)
    assert Ratio("a", "b", "p50", 2.0).met(1.9)
    assert not Ratio("a", "b", "cpu", 2.0).met(2.1)


def test_a_library_that_lost_messages_has_no_figure_and_is_no_best_rival() -> None:
    lossy = Outcome({"rate": 900.0}, due=10, lost=3)
    made = comparison(
        [{"jumiks": rate(20), "pyzmq": rate(10), "socket": rate(5), "pynng": lossy}] * 2,
        Ratio("jumiks", BEST),
        Ratio("jumiks", "pynng"),
    )
    assert made.best_rival() == "pyzmq"
    best, lost = (report.row(made, ratio) for ratio in made.ratios)
    assert best[3:6] == ("pyzmq, the best", "10/s", "2.00x")
    assert lost[4:6] == ("lost 6 of 20", "-")


def test_a_summary_has_ours_beside_the_best_rival_that_lost_nothing() -> None:
    lossy = Outcome({"rate": 900.0}, due=10, lost=3)
    others = {"pyzmq": rate(10), "socket": rate(5), "pynng": lossy}
    rounds = [{"jumiks": rate(ours), **others} for ours in (20, 40, 30)]
    *_, line = report.summary([comparison(rounds), comparison([{"jumiks": rate(1)}])])
    assert line == "| work | 30/s | pyzmq, 10/s | 3x | 2.00 .. 4.00 |"


def test_the_best_rival_in_latency_is_the_one_with_the_least() -> None:
    round_ = {name: Outcome({"p50": p50}, 1) for name, p50 in (("pyzmq", 30.0), ("socket", 5.0))}
    assert comparison([round_]).best_rival("p50") == "socket"


def test_a_rival_without_a_figure_is_not_the_best_in_it() -> None:
    made = comparison([{"jumiks": rate(1), "pyzmq": Outcome({"calls": 9.0}, 1)}])
    assert made.best_rival() is None
    assert made.best_rival("calls") == "pyzmq"


def test_a_figure_may_be_asked_for_by_itself() -> None:
    made = comparison([{"jumiks": rate(100)}], Ratio("jumiks", ITSELF, "cpu", 20_000))
    assert report.row(made, made.ratios[0])[-1] == "<= 20000"


def test_a_run_of_ours_that_lost_messages_is_named_as_broken() -> None:
    made = comparison([{"jumiks": Outcome({}, 10, lost=1), "pynng": Outcome({}, 10, lost=1)}])
    assert made.broken() == ["jumiks lost 1 of 10"]


def test_a_comparison_survives_the_results_file() -> None:
    made = comparison([{"jumiks": rate(20), "pyzmq": rate(10)}], Ratio("jumiks", "pyzmq"))
    stored = json.dumps(made.as_json())
    assert json.dumps(Comparison.from_json(json.loads(stored)).as_json()) == stored


def test_each_round_begins_with_another_contestant() -> None:
    turns = orders(["a", "b", "c"])
    assert [next(turns)[0] for _ in range(4)] == ["a", "b", "c", "a"]


def test_all_plans_name_contestants_and_entries_that_exist() -> None:
    for plan in (*PLANS, *C_PLANS, *GROWTH_PLANS):
        assert {name for name, _work in plan.entries.values()} <= CONTESTANTS.keys()
        assert set(plan.quick) <= plan.entries.keys()
        for ratio in plan.ratios:
            assert {ratio.ours, ratio.theirs} <= plan.entries.keys() | {BEST, ITSELF}
    assert {"pyzmq", "socket", "iceoryx2"} <= set(RIVALS)


# ---- what got worse ----

BEFORE = {
    "g: w | jumiks | rate | c-send": (10.0, 9.0),
    "g: w | jumiks | rate | pyzmq": (5.0, 4.5),
}


def test_a_ratio_is_worse_only_if_it_is_so_beside_every_reference() -> None:
    one = {**BEFORE, "g: w | jumiks | rate | c-send": (5.0, 5.0)}
    assert check.worse(BEFORE, one) == []
    both = {key: (middle * 0.7, worst) for key, (middle, worst) in BEFORE.items()}
    assert check.worse(BEFORE, both) == [
        "g: w | jumiks | rate: worse by 30% beside c-send, 30% beside pyzmq"
    ]


@pytest.mark.parametrize(("figure", "now"), [("rate", 0.74), ("cpu", 1.26), ("p50", 1.26)])
def test_more_than_a_quarter_is_worse_whichever_way_is_better(figure: str, now: float) -> None:
    key = f"g: w | jumiks | {figure} | pyzmq"
    assert check.worse({key: (1.0, 1.0)}, {key: (now, now)})
    assert not check.worse({key: (1.0, 1.0)}, {key: (1 / now, 1 / now)})


def test_what_a_quarter_of_the_rounds_before_had_is_not_worse() -> None:
    key = "g: w | jumiks | p50 | pyzmq"
    assert not check.worse({key: (1.0, 1.4)}, {key: (1.39, 2.0)})
    assert check.worse({key: (1.0, 1.4)}, {key: (1.41, 1.41)})


def test_ratios_are_of_ours_to_references_that_lost_nothing() -> None:
    lossy = Outcome({"rate": 1.0}, 9, lost=1)
    rounds = [
        {"jumiks": rate(ours), "pyzmq": rate(10), "c-send": lossy}
        for ours in (20.0, 10.0, 40.0, 30.0, 15.0)
    ]
    assert check.ratios([comparison(rounds)]) == {
        "group: work | jumiks | rate | pyzmq": (2.0, 1.5),
        "group: work | jumiks | cpu | pyzmq": (0.5, pytest.approx(2 / 3)),
    }


def test_runs_of_two_commits_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, ours: str, value: float) -> str:
        made = comparison([{ours: rate(value), "pyzmq": rate(10)}]).as_json()
        path = tmp_path / name
        path.write_text(json.dumps({"benchmarks": [{"extra_info": {"comparison": made}}]}))
        return str(path)

    before = ["--before", run("a", "jumiks", 20), run("b", "jumiks", 40)]
    assert check.main([*before, "--now", run("c", "jumiks", 30), run("d", "jumiks", 31)]) == 0
    assert capsys.readouterr().out == "none of 2 ratios got worse\n"
    assert check.main([*before, "--now", run("e", "jumiks", 14)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "group: work | jumiks | cpu: worse by 90% beside pyzmq",
        "group: work | jumiks | rate: worse by 53% beside pyzmq",
    ]
    with pytest.raises(SystemExit):
        check.main([*before, "--now", run("f", "jumiks-framed", 30)])
    assert "no ratio was measured on both sides" in capsys.readouterr().err


# ---- what subscribers check ----


@pytest.mark.parametrize("size", [16, 64, 1024, 65536])
@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_all_that_was_published_is_counted_however_it_is_cut(size: int, kind: type) -> None:
    cycle = cycle_of(size)
    stream = cycle * 2 + last_cycle(size, 2 * len(cycle))
    checker, cut = Checker(size), random.Random(size)
    while stream:
        count = cut.randint(1, 700)
        checker.take([kind(message) for message in stream[:count]])
        stream = stream[count:]
        assert checker.done == (not stream)
    assert (checker.count, checker.wrong) == (3 * len(cycle), 0)


@pytest.mark.parametrize("size", [64, 65536])
def test_what_is_lost_or_wrong_is_noticed(size: int) -> None:
    cycle = cycle_of(size)
    spoiled = [cycle[0], bytes(size - 1) + b"x", *cycle[2:]]
    checker = Checker(size)
    checker.take(spoiled)
    checker.take(last_cycle(size, len(cycle) + 1))
    assert checker.wrong == 1
    assert not checker.done


def test_work_is_named_after_what_is_done() -> None:
    assert Work(64, 8).name == "64 B, 8 clients, batched"
    assert Work(1 << 20, batched=False).name == "1 MB, 1 client, one by one"
    assert Work(latency=True, pace=10_000, messages=9).name == "64 B, 1 client, 10 kHz"
