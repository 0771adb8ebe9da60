"""Rewritten: functions in which pytest put its own code in place of `assert` when it imported their module.

What was written there travels, once the same change of its text has given the code that runs.
"""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Callable
from types import CodeType
from typing import Any, Final

_MARK: Final = "@pytest_ar"  # the name by which code that was changed knows pytest
_REWRITER: Final = "_pytest.assertion.rewrite"


def rewriter_of(code: CodeType) -> Callable[[ast.Module], None] | None:
    """Return what changes a module as pytest changed the one of `code`, None when it did not."""
    pytest: Any = sys.modules.get(_REWRITER)
    if pytest is None or not _is_marked(code):
        return None
    hooks = [hook for hook in sys.meta_path if isinstance(hook, pytest.AssertionRewritingHook)]

    def rewrite(module: ast.Module) -> None:
        with warnings.catch_warnings():  # pytest said it before
            warnings.simplefilter("ignore")
            pytest.rewrite_asserts(module, b"", None, hooks[0].config if hooks else None)

    return rewrite


def _is_marked(code: CodeType) -> bool:
    return _MARK in code.co_names or any(_is_marked(inner) for inner in code.co_consts if isinstance(inner, CodeType))
