"""From a YAML file and dotted overrides to a frozen config; every fault is one line that names file, key, rule and value."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from omr_ray.types import UserError


class Config(BaseModel):
    """Frozen, and refuses unknown keys. A value that can take several shapes is a union chosen by `type` or `kind`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file, apply dotted overrides ("sampler.steps=20"), validate. Every fault is one UserError line."""
        path = Path(path)
        try:
            values = yaml.safe_load(path.read_text())
        except FileNotFoundError:
            raise UserError(f"{path}: no such config file; the shipped ones are in configs/") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise UserError(f"{path}: a config is a mapping of keys to values, got {type(values).__name__}; see configs/atelier.yaml")
        return _validated(_merged(values, overrides), cls, source=str(path))


AnyConfig = TypeVar("AnyConfig", bound=Config)


def with_overrides(config: AnyConfig, overrides: Sequence[str]) -> AnyConfig:
    """`config` with dotted overrides applied; the command line and Ray Tune use the same keys."""
    return _validated(_merged(config.model_dump(), overrides), type(config), source="override")


def dump(config: Config) -> str:
    """The resolved config as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _merged(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"override {override!r}: write KEY=VALUE with a dotted key, for example sampler.steps=20")
        values = _with(values, key.split("."), yaml.safe_load(text), override)
    return values


def _with(node: Any, keys: Sequence[str], value: Any, override: str) -> Any:
    """A copy of `node` in which the value at `keys` is `value`; a number is a place in a list."""
    if not keys:
        return value
    if isinstance(node, list | tuple):
        if not keys[0].isdigit() or int(keys[0]) >= len(node):
            raise UserError(f"override {override!r}: {keys[0]!r} is no place in a list of {len(node)}; they are counted from 0")
        place = int(keys[0])
        return [*node[:place], _with(node[place], keys[1:], value, override), *node[place + 1 :]]
    known = node if isinstance(node, dict) else {}
    return {**known, keys[0]: _with(known.get(keys[0]), keys[1:], value, override)}


def _validated(values: dict[str, Any], kind: type[AnyConfig], source: str) -> AnyConfig:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(_explain(item, kind, source) for item in error.errors()[:5])) from None


def _explain(item: Any, kind: type[Config], source: str) -> str:
    """One pydantic error as: file, key, rule, value and, for an unknown key, the nearest known one."""
    location = [str(part) for part in item["loc"]]
    key = ".".join(part for part in location if part not in set(_all_tags(kind))) or "config"
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _known_keys(location, kind), n=1, cutoff=0.0)
        return f"{source}: unknown key {key!r}; the nearest known one is {near[0]!r}"
    message = item["msg"].removeprefix("Value error, ")
    value = "" if isinstance(item["input"], dict) or item["type"] == "missing" else f", got {item['input']!r}"
    return f"{source}: {key}: {message}{value}"


def _known_keys(location: list[str], kind: type[Config]) -> list[str]:
    """Field names of the class in which the last part of a pydantic error location was looked up."""
    models: list[type[BaseModel]] = [kind]
    for part in location[:-1]:
        if part.isdigit():  # the place in a list, whose members were found with the list
            continue
        members = [m for model in models if part in model.model_fields for m in _models_in(model.model_fields[part].annotation)]
        models = members or [model for model in models if part in _tags_of(model)]
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The config classes that a type names, in unions and tuples too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _tags_of(model: type[BaseModel]) -> tuple[str, ...]:
    return tuple(tag for name in ("type", "kind") if name in model.model_fields for tag in get_args(model.model_fields[name].annotation))


def _all_tags(model: type[BaseModel]) -> Iterator[str]:
    """Values of `type` and `kind`: pydantic puts them into error locations, a person did not write them there."""
    yield from _tags_of(model)
    for field in model.model_fields.values():
        for child in _models_in(field.annotation):
            yield from _all_tags(child)
