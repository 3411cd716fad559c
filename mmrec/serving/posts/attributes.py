"""Attributes of published posts, which filters compare with those of the export."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mmrec.errors import near_names
from mmrec.serving.model.exported import Exported
from mmrec.serving.posts.published import Published, attribute_table
from mmrec.serving.problems import ProblemError
from mmrec.serving.stores.store import Attribute


def check_attributes(exported: Exported, attributes: Mapping[str, Attribute]) -> None:
    """Refuse what filters could not compare with what the export has.

    Raises:
        ProblemError: an unknown attribute, or a value of another type.
    """
    for name, value in attributes.items():
        where = f"attributes.{name[:100]}"
        if name not in exported.attributes:
            raise ProblemError(
                422,
                "an attribute of the export",
                got=repr(name[:100]),
                where=where,
                fix=near_names(name[:100], exported.attributes),
            )
        probe = Published("", None, {name: value}, (), np.zeros(0, np.float32), 0)
        try:
            attribute_table([probe], exported.table[[name]].iloc[:0])
        except (TypeError, ValueError, OverflowError) as error:
            kind = str(exported.table[name].dtype)
            raise ProblemError(422, f"a value of type {kind}", got=type(value).__name__, where=where) from error


def fitting(exported: Exported, attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    """Return those that this export has too: a post may have been published beside another one."""
    fit = {}
    for name, value in attributes.items():
        try:
            check_attributes(exported, {name: value})
        except ProblemError:
            continue
        fit[name] = value
    return fit
