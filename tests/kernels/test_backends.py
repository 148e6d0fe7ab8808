import logging

import pytest
import torch

from pivotal_kernels.backends import Backend, Facts, Requirement, choose, installed, one_of

FACTS = Facts("cpu", torch.float32, 40)
NEVER = Requirement("a device that nobody has", lambda _: False)
ALWAYS = Requirement("nothing", lambda _: True)


def backends(**requirements):
    return {name: Backend(print, needs) for name, needs in requirements.items()}


def test_auto_takes_the_first_that_fits_and_logs_it(caplog):
    known = backends(first=(NEVER,), second=(ALWAYS,), third=())
    with caplog.at_level(logging.INFO):
        assert choose("op", "auto", ("first", "second", "third"), known, FACTS) == "second"
    assert "op for torch.float32 on cpu with heads of 40: second" in caplog.text


def test_a_named_one_is_taken_where_it_fits_and_never_replaced():
    known = backends(first=(NEVER,), second=())
    assert choose("op", "second", ("first",), known, FACTS) == "second"
    with pytest.raises(ValueError, match=r"first needs a device that nobody has$"):
        choose("op", "first", ("second",), known, FACTS)


def test_when_nothing_fits_every_candidate_says_why():
    halves = one_of(torch.float16, torch.bfloat16)
    known = backends(first=(NEVER, ALWAYS, halves), second=(installed("no_such_package"),))
    with pytest.raises(ValueError) as caught:
        choose("op", "auto", ("first", "second"), known, FACTS)
    assert str(caught.value) == (
        "impl='auto' does not fit torch.float32 on cpu with heads of 40 in op: first needs a "
        "device that nobody has and torch.float16 or torch.bfloat16; second needs the package "
        "no_such_package"
    )


def test_an_unknown_impl_is_refused_with_what_is_accepted():
    with pytest.raises(ValueError, match="impl='x' is unknown; accepted are auto, first, second"):
        choose("op", "x", ("first",), backends(first=(), second=()), FACTS)
