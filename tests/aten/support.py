"""What the tests of the aten table share: calls that must not fall back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any


def silently(call: Callable[[], Any]) -> Any:
    """The result of a call that must not fall back, which a warning would tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call()
