"""Threads take turns: one at a time, in the order they came, whatever ends them."""

import os
import threading
import time

import pytest

from pivotal.cancellation import Cancellation
from pivotal.errors import Cancelled
from pivotal.turns import Turns


def started(work):
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def wait_until(condition):
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)


def another_has_a_turn(turns):
    had = []

    def work():
        with turns.take():
            had.append(True)

    started(work).join(30)
    return bool(had)


def test_two_threads_never_have_their_turn_at_once():
    turns, inside, met = Turns(), [], []

    def work():
        for _ in range(200):
            with turns.take():
                inside.append(1)
                met.append(len(inside))
                time.sleep(0)
                inside.pop()

    threads = [started(work) for _ in range(4)]
    for thread in threads:
        thread.join()
    assert len(met) == 800
    assert set(met) == {1}


def test_who_came_first_is_served_first():
    turns, order = Turns(), []

    def work(number):
        with turns.take():
            order.append(number)

    with turns.take():
        threads = []
        for number in range(5):
            threads.append(started(lambda number=number: work(number)))
            wait_until(lambda number=number: len(turns._waiting) == number + 1)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_of_two_busy_threads_each_has_every_other_turn():
    turns, order = Turns(), []

    def work(name):
        for _ in range(20):
            with turns.take():
                order.append(name)
                wait_until(lambda: turns._waiting or len(order) > 19)

    threads = [started(lambda name=name: work(name)) for name in "ab"]
    for thread in threads:
        thread.join()
    assert order[:20] in (list("ab" * 10), list("ba" * 10))


def test_a_turn_may_be_taken_again_inside():
    turns = Turns()
    with turns.take(), turns.take():
        pass
    assert another_has_a_turn(turns)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_is_raised_in_a_turn_ends_it(error):
    turns = Turns()
    with pytest.raises(error), turns.take():
        raise error
    assert another_has_a_turn(turns)


def test_who_is_cancelled_while_waiting_leaves_the_queue():
    turns, cancellation, said = Turns(), Cancellation(), []

    def work():
        try:
            with turns.take(cancellation):
                said.append("had a turn")
        except Cancelled:
            said.append("cancelled")

    with turns.take():
        thread = started(work)
        wait_until(lambda: turns._waiting)
        cancellation.cancel()
        thread.join(30)
        assert said == ["cancelled"]
        assert not turns._waiting
    assert another_has_a_turn(turns)


def test_who_is_cancelled_beforehand_has_no_turn():
    turns, cancellation = Turns(), Cancellation()
    cancellation.cancel()
    with pytest.raises(Cancelled), turns.take(cancellation):
        raise AssertionError
    assert another_has_a_turn(turns)


def test_who_takes_every_other_turn_waits_for_one_of_those_that_came_before():
    turns, order = Turns(), []

    def work(name, **options):
        with turns.take(**options):
            order.append(name)

    with turns.take():
        threads = []
        for count, name in enumerate("abc", 1):
            threads.append(started(lambda name=name: work(name)))
            wait_until(lambda count=count: len(turns._waiting) == count)
        threads.append(started(lambda: work("worker", every_other=True)))
        wait_until(lambda: len(turns._waiting) == 4)
    for thread in threads:
        thread.join()
    assert order == ["a", "worker", "b", "c"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_turns_of_its_parents_threads():
    turns, inside, leave = Turns(), threading.Event(), threading.Event()

    def hold():
        with turns.take():
            inside.set()
            leave.wait(60)

    thread = started(hold)
    assert inside.wait(30)
    child = os.fork()
    if child == 0:
        with turns.take():
            os._exit(7)
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
