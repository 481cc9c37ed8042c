"""What every job shares: flags from a dataclass, `--config FILE.yaml`, one-line errors and exit codes."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, get_args, get_type_hints

import tyro
import yaml

from eegvision import failures
from eegvision.config import RunConfig
from eegvision.overrides import flatten
from eegvision.vocab import InputError, TryAgainError

Options = TypeVar("Options")

DONE, BAD_INPUT, TRY_AGAIN = 0, 2, 75

# A configuration is a page of text; anything larger is a mistake or an attempt to exhaust memory.
_MAX_CONFIG_BYTES = 1_000_000
_SHORT_FLAGS = {"--dataset": "--data.dataset"}


def run_job(
    options: type[Options],
    main: Callable[[Options], None],
    *,
    defaults: Callable[[Options], Mapping[str, Any]] | None = None,
    description: str | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse flags into `options`, call `main` and return the exit code.

    `defaults` may name settings (dotted) that hold unless a flag or the configuration file says otherwise.
    `description` stands at the top of the help; by default the docstring of `options` does.

    0 done; 2 bad input, which no retry mends (one message, no traceback); 75 interrupted by Ctrl-C or SIGTERM, or
    stopped by something outside the program such as a full disk, where the same command goes on from what is stored.
    A fault of the program itself keeps its traceback (1).
    """
    signal.signal(signal.SIGTERM, _interrupt)
    argv = sys.argv[1:] if argv is None else argv
    try:
        given = parse(options, argv, description=description)
        main(parse(options, argv, defaults(given)) if defaults else given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted: what is finished is stored; the same command goes on from there", file=sys.stderr)
        return TRY_AGAIN
    except TryAgainError as error:
        print(f"error: {error}", file=sys.stderr)
        return TRY_AGAIN
    except Exception as error:
        if not failures.is_disk_full(error):
            raise
        print(
            f"error: no space is left on the disk ({error}); what is finished is stored: free some space, or point "
            "EEGVISION_HOME at a larger disk, then the same command goes on from there",
            file=sys.stderr,
        )
        return TRY_AGAIN
    return DONE


def parse(
    options: type[Options],
    argv: Sequence[str],
    defaults: Mapping[str, Any] | None = None,
    *,
    description: str | None = None,
) -> Options:
    """Read flags into an options dataclass: over the values of `--config FILE.yaml`, and those over `defaults`.

    Raises:
        InputError: the file or a value in it is unusable. A wrong flag prints its help and exits with code 2.
    """
    # Everything becomes flags, weakest first: of a flag given twice the last one counts.
    flags = [word for name, value in (defaults or {}).items() for word in _flag(name, value)]
    rest = list(argv)
    if "--config" in rest:
        at = rest.index("--config")
        if at + 1 == len(rest):
            raise InputError("--config needs the path of a YAML file")
        flags += _flags_of_file(_chosen(options, rest), Path(rest[at + 1]))
        del rest[at : at + 2]
    rest = [_SHORT_FLAGS.get(name, name) + eq + value for name, eq, value in (flag.partition("=") for flag in rest)]
    verbs = list(itertools.takewhile(lambda word: not word.startswith("-"), rest))
    args = verbs + flags + rest[len(verbs) :]
    config = (tyro.conf.FlagConversionOff, tyro.conf.OmitSubcommandPrefixes)
    return tyro.cli(options, args=args, config=config, description=description)


def print_line(text: str) -> None:
    """Print at once: a submitted job's output goes through a pipe, where Python would hold it back."""
    print(text, flush=True)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class _NoAliasLoader(yaml.SafeLoader):
    """YAML without aliases: a few lines of nested aliases can unfold to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not accepted here; write the value out")
        return super().compose_node(parent, index)


def _flags_of_file(options: Any, path: Path) -> list[str]:
    """Turn a YAML file of job options and run settings into the flags that say the same."""
    values = _read_yaml(path)
    own, groups = _setting_names(options)
    for name in values:
        if name not in own | groups:
            near = difflib.get_close_matches(str(name), own | groups, n=1, cutoff=0)
            raise InputError(f"{path}: unknown setting {name!r}; did you mean {near[0]!r}?")
    given = flatten({name: value for name, value in values.items() if name in groups})
    try:
        plain = flatten(RunConfig().with_overrides(given).to_dict())
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return [
        word
        for name, value in [*((name, values[name]) for name in values if name in own), *((p, plain[p]) for p in given)]
        for word in _flag(name, value)
    ]


def _chosen(options: Any, rest: Sequence[str]) -> Any:
    """Return the options of the subcommand that is called, where there are subcommands (tyro names them so)."""
    for kind in get_args(options):
        if rest and rest[0] == re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", kind.__name__).lower():
            return kind
    if get_args(options):
        raise InputError("--config comes after the name of the subcommand, of whose options the file is made")
    return options


def _setting_names(options: Any) -> tuple[set[str], set[str]]:
    """Return the names a file may use: the job's own options, and the groups of a run's settings."""
    own: set[str] = set()
    groups: set[str] = set()
    for name, kind in get_type_hints(options).items():
        if kind is RunConfig:
            groups = {group.name for group in dataclasses.fields(RunConfig)}
        elif dataclasses.is_dataclass(kind):
            own |= {option.name for option in dataclasses.fields(kind)}
        else:
            own.add(name)
    return own, groups


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        if (size := path.stat().st_size) > _MAX_CONFIG_BYTES:
            raise InputError(f"{path} has {size} bytes; a configuration has at most {_MAX_CONFIG_BYTES}")
        values = yaml.load(path.read_text(), _NoAliasLoader) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read the configuration {path}: {error}") from error
    if not isinstance(values, dict):
        raise InputError(
            f"{path} holds one {type(values).__name__}; expected settings by name, such as `optim: {{lr: 0.001}}`"
        )
    return values


def _flag(name: str, value: Any) -> list[str]:
    words = value if isinstance(value, list | tuple) else [value]
    return [f"--{name.replace('_', '-')}", *map(str, words)]
