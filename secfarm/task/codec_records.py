"""Records: instances of dataclasses, named tuples, enums, exceptions and plain Python classes, by class name and fields.

No constructor, hook or property of the class runs on either side. Where the class is not at hand the record becomes a
placeholder: an instance of an empty class of the same name, with the same fields. Sent back, it is the real thing again.
Format: docs/codec.md.
"""

from __future__ import annotations

import enum
import operator
import reprlib
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, cast

from secfarm.task.codec_classes import (
    EXCEPTION_EXTRAS,
    ClassName,
    Form,
    Placeholder,
    Shape,
    form_of,
    placeholder_class,
    real_class,
)
from secfarm.task.codec_decode import Make, TreeDecoder, Underway, text, whole
from secfarm.task.codec_encode import Fill, TreeEncoder, text_node
from secfarm.task.codec_kinds import RECORD, CannotTravel, Malformed, Node, shown
