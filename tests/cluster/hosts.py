"""Several hosts on one machine: network namespaces on a switch that leads nowhere else, with faults to order.

A host has a network, a name, mounts and processes of its own; files, memory and processors are the machine's. Names
are resolved by hosts files, so gRPC is told to use them (GRPC_DNS_RESOLVER=native).
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_NET = "198.51.100"  # set aside for documentation, so nobody's
_NETNS = Path("/etc/netns")
_MEMORY = Path("/sys/fs/cgroup/memory")
# Below these lies what programs need; elsewhere a host has an empty folder of its own in the place of the machine's.
_NEEDED = [Path(sys.prefix), Path(sys.base_prefix), Path(__file__).resolve(), Path(tempfile.gettempdir())]
_KEPT = {path.parts[1] for path in _NEEDED} | {"bin", "dev", "etc", "lib", "lib64", "proc", "run", "sys", "usr", "var"}


def missing() -> str | None:
    """Return why hosts cannot be made here, or None."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    absent = [tool for tool in ("ip", "unshare", "setpriv", "curl") if shutil.which(tool) is None]
    if absent:
        return f"needs {', '.join(absent)} (Debian: iproute2, util-linux, curl)"
    name = f"ev{os.getpid()}-probe"
    made = _run("ip", "netns", "add", name)
    try:
        if made.returncode:
            return f"cannot make a network namespace: {made.stderr.strip()}"
        if (veth := _run("ip", "-n", name, "link", "add", "x0", "type", "veth", "peer", "name", "x1")).returncode:
            return f"cannot make a network link: {veth.stderr.strip()}"
        bridge = _run("ip", "-n", name, "link", "add", "x2", "type", "bridge")
        return f"cannot make a network bridge: {bridge.stderr.strip()}" if bridge.returncode else None
    finally:
        _run("ip", "netns", "del", name)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True)


def _signal(pids: list[int], sign: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, sign)


def _must(*command: str) -> str:
    done = _run(*command)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {done.stderr.strip()}")
    return done.stdout


@dataclass(eq=False)
class Host:
    """A host of a Network; `start` runs programs on it."""

    name: str
    address: str
    space: str
    link: str
    _network: Network
    folder: Path
    programs: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self,
        command: str,
        *,
        log: str,
        env: Mapping[str, str],
        cwd: Path,
        mounts: Mapping[str, Path] | None = None,
        memory_bytes: int | None = None,
        user: str | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start bash on a command; what it prints goes to FOLDER/LOG.log.

        Args:
            mounts: folders of this machine by the path at which the host has them; these paths need not exist here.
            memory_bytes: limit for the program and all its children together, as a container has one.
            user: run it as this user.
        """
        lines = [f"hostname {shlex.quote(self.name)}"]
        own = dict(mounts or {})
        tops = sorted({Path(path).parts[1] for path in own} - _KEPT)
        below = [Path(path) for path in own if Path(path).parts[1] in _KEPT]
        self._network.note_missing([*(Path("/") / top for top in tops), *below])
        lines += [f"mkdir -p /{top} && mount -t tmpfs none /{top}" for top in tops]
        lines += [f"mkdir -p {path} && mount --bind {shlex.quote(str(source))} {path}" for path, source in own.items()]
        lines.append(f"cd {shlex.quote(str(cwd))}")
        inner = f"exec /bin/bash -c {shlex.quote(command)}"
        if user is not None:
            inner = f"exec setpriv --reuid={user} --regid={user} --init-groups /bin/bash -c {shlex.quote(command)}"
        script = " && ".join([*lines, inner])
        enter = f'exec ip netns exec {self.space} unshare --mount --uts --propagation private /bin/bash -c "$1"'
        if memory_bytes is not None:  # before entering: there the machine's control groups are out of sight
            enter = f"echo $$ > {self._memory_group(memory_bytes)}/cgroup.procs && {enter}"
        path = self.folder / f"{log}.log"
        with path.open("ab") as out:
            program = subprocess.Popen(
                ["/bin/bash", "-c", enter, "bash", script],
                env={"GRPC_DNS_RESOLVER": "native", **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.programs.append(program)
        return program

    def pids(self) -> list[int]:
        """Return the processes that run here."""
        return [int(pid) for pid in _run("ip", "netns", "pids", self.space).stdout.split()]

    def kill(self, sign: int = signal.SIGKILL) -> int:
        """Send all processes a signal, as the loss of a machine or its shutdown does; return how many there were."""
        pids = self.pids()
        _signal(pids, sign)
        if sign == signal.SIGKILL:
            for program in self.programs:
                program.wait(30)
        return len(pids)

    @contextmanager
    def standing_still(self, title: str) -> Iterator[None]:
        """Have processes of this title stand still meanwhile, once there are any: a fast machine is done too soon."""
        until(f"{title} runs on {self.name}", lambda: self._titled(title), timeout_s=60)
        pids = self._titled(title)
        _signal(pids, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(pids, signal.SIGCONT)

    def _titled(self, title: str) -> list[int]:
        found = []
        for pid in self.pids():
            with suppress(OSError):
                if title in Path(f"/proc/{pid}/cmdline").read_text(errors="replace"):
                    found.append(pid)
        return found

    def cut(self) -> None:
        """Pull the network cable."""
        _must("ip", "-n", self._network.switch, "link", "set", self.link, "down")

    def heal(self) -> None:
        """Plug it in again."""
        _must("ip", "-n", self._network.switch, "link", "set", self.link, "up")

    def _memory_group(self, limit: int) -> Path:
        group = _MEMORY / f"{self.space}-{len(self.programs)}"
        group.mkdir(exist_ok=True)
        (group / "memory.limit_in_bytes").write_text(str(limit))
        return group

    def log(self, name: str) -> str:
        """Return what a program printed."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""


@dataclass(eq=False)
class Network:
    """A switch, and the hosts that were plugged into it."""

    switch: str
    folder: Path
    hosts: list[Host] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    places: list[Path] = field(default_factory=list)

    def host(self, name: str, aliases: Sequence[str] = ()) -> Host:
        """Add a host; `aliases` are more names under which others find it, taken from whoever had them before."""
        number = len(self.hosts) + 10
        prefix = self.switch.removesuffix("-sw")
        space, link = f"{prefix}-{number}", f"p{number}"
        address = f"{_NET}.{number}"
        _must("ip", "netns", "add", space)
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        host = Host(name=name, address=address, space=space, link=link, _network=self, folder=folder)
        self.hosts.append(host)
        _must("ip", "-n", space, "link", "set", "lo", "up")
        peer = ("peer", "name", link, "netns", self.switch)
        _must("ip", "link", "add", "eth0", "netns", space, "type", "veth", *peer)
        _must("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        _must("ip", "-n", space, "link", "set", "eth0", "up")
        _must("ip", "-n", self.switch, "link", "set", link, "master", "br0")
        _must("ip", "-n", self.switch, "link", "set", link, "up")
        # It leads nowhere, but Ray finds a host's own address by the way it would take.
        _must("ip", "-n", space, "route", "add", "default", "via", f"{_NET}.1")
        self.aliases.update(dict.fromkeys([name, *aliases], address))
        self._write_names()
        return host

    def note_missing(self, places: Sequence[Path]) -> None:
        """Note folders of this machine that are made as places for mounts, to remove them in the end."""
        for place in places:
            self.places += [path for path in [*reversed(place.parents), place] if not path.exists()]

    def _write_names(self) -> None:
        """Tell every host all names; a program that is started afterwards finds them, and one that runs as well."""
        names = "".join(f"{address} {alias}\n" for alias, address in self.aliases.items())
        for host in self.hosts:
            path = _NETNS / host.space / "hosts"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"127.0.0.1 localhost\n{names}")  # in place: running programs have this very file mounted


@contextmanager
def network(folder: Path) -> Iterator[Network]:
    """Make a switch; in the end all hosts' processes are killed and nothing of them stays on the machine."""
    made = Network(switch=f"ev{os.getpid()}-sw", folder=folder)
    try:
        _must("ip", "netns", "add", made.switch)
        for setting in (["link", "add", "br0", "type", "bridge"], ["link", "set", "br0", "up"]):
            _must("ip", "-n", made.switch, *setting)
        _must("ip", "-n", made.switch, "addr", "add", f"{_NET}.1/24", "dev", "br0")
        yield made
    finally:
        for host in made.hosts:
            with suppress(subprocess.TimeoutExpired):
                host.kill()
        for host in made.hosts:
            _run("ip", "netns", "del", host.space)
            shutil.rmtree(_NETNS / host.space, ignore_errors=True)
            for group in _MEMORY.glob(f"{host.space}-*"):
                with suppress(OSError):
                    group.rmdir()
        _run("ip", "netns", "del", made.switch)
        for place in sorted(set(made.places), reverse=True):
            with suppress(OSError):
                place.rmdir()


def until(what: str, ready: object, *, timeout_s: float, every_s: float = 0.2) -> float:
    """Wait until `ready()` is true and return the seconds it took; fail with `what` after `timeout_s`."""
    assert callable(ready)
    began = time.monotonic()
    while not ready():
        if time.monotonic() - began > timeout_s:
            raise AssertionError(f"{what}: not within {timeout_s:g} s")
        time.sleep(every_s)
    return time.monotonic() - began
