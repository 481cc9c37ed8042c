"""Nested frozen dataclasses as dotted settings: replacing them by name, and checking what is given."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from eegvision.vocab import InputError

C = TypeVar("C")

SPEED_ONLY = {"fingerprint": False}
"""Mark of a field that changes how fast a run is but not what it computes; it stays out of the fingerprint."""


def require(condition: bool, path: str, value: object, expected: str) -> None:
    """Raise InputError naming a setting, its value and what was expected, unless the condition holds."""
    if not condition:
        raise InputError(f"{path} is {value!r}; expected {expected}")


def require_applicable(config: Any, prefix: str, choice: str, defaults: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a choice-specific field that is set although the choice made does not have it."""
    for name in sorted({name for own in defaults.values() for name in own}):
        if getattr(config, name) is not None and name not in defaults[choice]:
            owners = ", ".join(sorted(other for other, own in defaults.items() if name in own))
            raise InputError(
                f"{prefix}.{name} is set to {getattr(config, name)!r}, but {choice!r} has no such setting "
                f"(only {owners}); remove it or choose one of those"
            )


def filled(config: C, defaults: Mapping[str, Any]) -> C:
    """Return a copy in which fields that are None have these values."""
    missing = {name: value for name, value in defaults.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **missing)  # type: ignore[type-var]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names: `{"optim": {"lr": 1}}` becomes `{"optim.lr": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def replaced(config: C, overrides: Mapping[str, Any]) -> C:
    """Return a copy with dotted fields replaced; all of them at once, so that only the result is checked.

    Raises:
        InputError: a path is unknown (the nearest is named) or a value has the wrong type or range.
    """
    nested = {name: {} for name, value in vars(config).items() if dataclasses.is_dataclass(value)}
    top: dict[str, Any] = {}
    paths = _field_types(type(config))
    for path, value in overrides.items():
        if path not in paths:
            near = difflib.get_close_matches(path, paths, n=1, cutoff=0)
            raise InputError(f"unknown setting {path!r}; did you mean {near[0]!r}?")
        group, _, name = path.rpartition(".")
        (nested[group] if group else top)[name] = _checked(path, value, paths[path])
    groups = {name: dataclasses.replace(getattr(config, name), **values) for name, values in nested.items()}
    return dataclasses.replace(config, **groups, **top)  # type: ignore[type-var]


def changes_results(config: Any, path: str) -> bool:
    """Say whether a dotted field changes what a run computes, rather than how fast."""
    group, _, name = path.rpartition(".")
    fields = dataclasses.fields(getattr(config, group) if group else config)
    return next(field.metadata.get("fingerprint", True) for field in fields if field.name == name)


def _field_types(cls: type) -> dict[str, Any]:
    """Map every dotted field of a config class to its annotation."""
    paths: dict[str, Any] = {}
    for name, kind in get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            paths |= {f"{name}.{inner}": inner_kind for inner, inner_kind in get_type_hints(kind).items()}
        else:
            paths[name] = kind
    return paths


def _checked(path: str, value: Any, kind: Any) -> Any:
    """Return `value` as an instance of the annotation `kind`, or raise naming the path and what was expected."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in get_args(kind) if option is not type(None))
        origin = get_origin(kind)
    if origin is Literal:
        require(value in get_args(kind), path, value, "one of " + ", ".join(map(repr, get_args(kind))))
        return value
    if origin is tuple:
        inner = get_args(kind)[0]
        allowed = (int, float) if inner is float else inner
        is_list = isinstance(value, list | tuple) and all(isinstance(item, allowed) for item in value)
        require(is_list, path, value, "a list of numbers" if inner is float else "a list of names")
        return tuple(map(inner, value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    is_right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    require(is_right, path, value, f"a value of type {kind.__name__}")
    require(not isinstance(value, float) or math.isfinite(value), path, value, "a finite number")
    return value
