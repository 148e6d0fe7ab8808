"""What every process of a test run does; the fixtures that all share are in shared/networks.py."""

import gc
import signal

import pytest


def pytest_configure(config):
    # A shell's background jobs ignore Ctrl-C, and so would the processes that tests interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Who only hands tests out to other processes does not wait ten seconds for torch and diffusers.
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("networks")


def pytest_collection_finish():
    """What is here now stays: no garbage collection looks through it again, half a second each."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
