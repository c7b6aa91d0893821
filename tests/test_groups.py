"""Tests of an xdist_group run in one process, where they share a fixture or the memory."""

from __future__ import annotations

import os

import pytest

GROUP = "groups_of_tests"


@pytest.mark.xdist_group(GROUP)
@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="only parallel runs have groups")
def test_the_runner_knows_the_group_of_a_test(request):
    # pytest-xdist 3.8 puts the group into the test's name. With pytest 9.2 it fails to, and every process makes the
    # fixture of a group for itself.
    assert request.node.nodeid.endswith(f"@{GROUP}")
