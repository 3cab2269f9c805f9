"""Assertions of the situations show their values when they fail."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("reports")
