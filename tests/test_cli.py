"""eegvision.cli: flags over file over defaults, errors that name file and setting, exit codes."""

import errno
import os
import signal
from dataclasses import dataclass, field
from typing import Annotated

import pytest
import tyro

from eegvision.cli import BAD_INPUT, DONE, TRY_AGAIN, parse, run_job
from eegvision.config import RunConfig, SweepConfig
from eegvision.vocab import InputError, TryAgainError


@dataclass(frozen=True, kw_only=True)
class Options:
    """A job."""

    name: str
    sweep: Annotated[SweepConfig, tyro.conf.arg(name="")] = field(default_factory=SweepConfig)
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def test_flags_go_over_the_file_and_the_file_over_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("trials: 5\noptim: {lr: 0.5, name: adamw}\ndata: {subjects: [a, b]}\n")
    argv = ["--config", str(tmp_path / "c.yaml"), "--name", "x", "--optim.lr", "0.25"]
    options = parse(Options, argv, {"optim.lr": 0.75, "optim.name": "adam", "seed": 3})
    assert (options.run.optim.lr, options.run.optim.name, options.run.seed) == (0.25, "adamw", 3)
    assert (options.sweep.trials, options.run.data.subjects) == (5, ("a", "b"))


@dataclass(frozen=True, kw_only=True)
class OtherKind:
    """Another job."""

    size: int


def test_a_file_holds_options_of_the_subcommand_it_comes_after(tmp_path):
    (tmp_path / "c.yaml").write_text("size: 5\n")
    options = parse(Options | OtherKind, ["other-kind", "--config", str(tmp_path / "c.yaml")])
    assert options == OtherKind(size=5)
    with pytest.raises(InputError, match="unknown setting 'size'"):
        parse(Options | OtherKind, ["options", "--name", "x", "--config", str(tmp_path / "c.yaml")])
    with pytest.raises(InputError, match="comes after the name of the subcommand"):
        parse(Options | OtherKind, ["--config", str(tmp_path / "c.yaml"), "other-kind"])


@pytest.mark.parametrize("flags", [["--dataset", "mine"], ["--dataset=mine"], ["--data.dataset", "mine"]])
def test_dataset_has_a_short_flag(flags):
    assert parse(Options, ["--name", "x", *flags]).run.data.dataset == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optin: {lr: 1}", "unknown setting 'optin'; did you mean 'optim'"),
        ("optim: {lrr: 1}", "unknown setting 'optim.lrr'; did you mean 'optim.lr'"),
        ("optim: {lr: -1}", "optim.lr is -1.0; expected above 0"),
        ("optim: {lr: high}", "optim.lr is 'high'; expected a value of type float"),
        ("- 1\n- 2", "holds one list"),
        ("a: &a [1]\nb: *a", "aliases"),
        ("a: [1", "cannot read the configuration"),
        ("a: !!python/object/apply:os.system [true]", "cannot read the configuration"),
    ],
)
def test_a_bad_file_is_named_with_its_setting(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        parse(Options, ["--name", "x", "--config", str(path)])
    assert str(path) in str(caught.value)


def test_a_missing_or_huge_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        parse(Options, ["--config", str(tmp_path / "none.yaml")])
    (tmp_path / "huge.yaml").write_text("#" * 1_000_001)
    with pytest.raises(InputError, match="1000001 bytes"):
        parse(Options, ["--config", str(tmp_path / "huge.yaml")])
    with pytest.raises(InputError, match="--config needs the path"):
        parse(Options, ["--config"])


def test_exit_codes_tell_bad_input_from_what_another_try_mends(capsys):
    def refuse(_: Options) -> None:
        raise InputError("no such thing; use another")

    def terminate(_: Options) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def find_it_full(_: Options) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("could not write the state") from error

    def wait(_: Options) -> None:
        raise TryAgainError("trial 3 could not store its work")

    before = signal.getsignal(signal.SIGTERM)
    try:
        argv = ["--name", "x"]
        assert run_job(Options, lambda _: None, argv=argv) == DONE
        assert run_job(Options, refuse, argv=argv) == BAD_INPUT
        assert capsys.readouterr().err == "error: no such thing; use another\n"
        assert run_job(Options, terminate, argv=argv) == TRY_AGAIN
        assert "the same command goes on" in capsys.readouterr().err
        assert run_job(Options, wait, argv=argv) == TRY_AGAIN
        assert capsys.readouterr().err == "error: trial 3 could not store its work\n"
        assert run_job(Options, find_it_full, argv=argv) == TRY_AGAIN
        assert "no space is left on the disk (could not write the state)" in capsys.readouterr().err
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_fault_of_the_program_keeps_its_traceback():
    def fail(_: Options) -> None:
        raise ZeroDivisionError

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(ZeroDivisionError):
            run_job(Options, fail, argv=["--name", "x"])
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_unknown_flag_names_the_nearest_one(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(Options, ["--name", "x", "--optim.lrr", "1"])
    assert caught.value.code == BAD_INPUT
    assert "--optim.lr" in capsys.readouterr().err
