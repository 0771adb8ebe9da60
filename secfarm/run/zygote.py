"""The zygote: confines itself once, imports what workers need, then forks workers, each ready in milliseconds.

No key, no socket but the one to its server, and no code of a task is ever in it. It is process 1 of a namespace: when
it ends, the kernel ends every worker. Orders and reports: birth.py.
"""

from __future__ import annotations

import _socket
import array
import contextlib
import gc
import os
import select
import signal
import sys
import time
from dataclasses import dataclass
from fcntl import F_DUPFD_CLOEXEC, fcntl
from typing import Final, NoReturn

from secfarm.run import libc, worker
from secfarm.run.birth import (
    MAX_MESSAGE_BYTES,
    Born,
    Exited,
    Fork,
    Go,
    Kill,
    Ready,
    Refused,
    Report,
    Start,
    Stop,
    Stopped,
    decode_order,
    encode,
)
from secfarm.run.confine import Plan, RefusedLayerError, confine, enter_inner, enter_outer, make_plan, survey
from secfarm.run.control_groups import Group, Groups, usage_s
from secfarm.run.pipe import encode_report
from secfarm.run.profile import Bounds, ConfinementError, Layer, LayerState, Openings, check_layers
from secfarm.run.role import ZYGOTE
from secfarm.task.outcome import Done, ErrorRecord

ROLE: Final = ZYGOTE
_REQUESTS, _RESULTS, _STATM, _KEEP = 3, 4, 5, 6  # a worker's descriptors
_NOT_FORKED: Final = 75  # EX_TEMPFAIL of sysexits.h
_STOPS_WITHIN_S: Final = 0.05
_LOOK_MS: Final = 2
_INTS: Final = "i"
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ)


@dataclass(slots=True)
class Child:
    """A worker that was forked and is not yet reaped."""

    number: int
    pid: int
    pidfd: int
    slot: int
    group: Group | None
    usage: int | None  # the descriptor of what the group has used


class Zygote:
    """The state of this process: its plan and its children."""

    def __init__(self, control: _socket.socket, plan: Plan, groups: Groups | None, proc: int) -> None:
        self._control = control
        self._plan = plan
        self._groups = groups
        self._proc = proc
        self._children: dict[int, Child] = {}  # by number
        self._by_pidfd: dict[int, Child] = {}
        self._leaving: list[tuple[Group | None, Exited]] = []  # reaped; what they started may not be gone yet
        self._poll = select.poll()
        self._poll.register(control.fileno(), select.POLLIN)
        self._pid = os.getpid()
        # Without process namespaces what a worker started outlives it, and becomes a child of this process.
        self._adopts = Layer.PID not in plan.layers
        self._own_pids = os.open("self/ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)

    def serve(self) -> None:
        """Obey until the server has closed its end; where no namespace ends what was started, until that is gone."""
        ending = False
        while self._children or self._leaving or not ending:
            for fd, _ in self._poll.poll(_LOOK_MS if self._leaving else None):
                if fd in self._by_pidfd:
                    self._reap(self._by_pidfd[fd])
                elif fd == self._control.fileno() and not self._obey():
                    if not self._adopts:
                        return
                    ending = True
                    self._poll.unregister(fd)
                    for number in self._children:
                        self._signal(number, signal.SIGKILL)
            self._leaving = [one for one in self._leaving if not self._is_gone(*one)]

    def _obey(self) -> bool:
        data, fds = _receive(self._control)
        if not data:
            return False
        order = decode_order(data)
        match order:
            case Fork():
                self._fork(order, fds)
            case Stop():
                self._tell(Stopped(order.number, self._stop(order.number)))
            case Go():
                self._signal(order.number, signal.SIGCONT)
            case Kill():
                self._signal(order.number, signal.SIGKILL)
            case Start():
                raise ConfinementError("the zygote was started twice")
        return True

    def _tell(self, report: Report, *fds: int) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server is gone
            _send(self._control, report, *fds)

    # --- children ---------------------------------------------------------------------------------------------------

    def _fork(self, order: Fork, fds: list[int]) -> None:
        taken = {child.slot for child in self._children.values()}
        slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        group = usage = pid = None
        with contextlib.suppress(OSError, ValueError):  # no room for another one, or for descriptors of its order
            requests, results = fds
            if self._groups is not None:
                group = self._groups.add(order.number, order.bounds)
                usage = group.open_usage()
            self._unshare()
            pid = os.fork()
        if pid == 0:
            self._become_worker(order.bounds, group, requests, results, slot)
        self._return()
        for fd in fds:
            os.close(fd)
        if pid is None:
            if group is not None:
                group.remove()
            if usage is not None:
                os.close(usage)
            self._tell(Exited(order.number, None, _NOT_FORKED, 0.0))
            return
        pidfd = os.pidfd_open(pid)
        child = self._children[order.number] = self._by_pidfd[pidfd] = Child(
            order.number, pid, pidfd, slot, group, usage
        )
        self._poll.register(pidfd, select.POLLIN)
        self._tell(Born(child.number), pidfd, *(() if usage is None else (usage,)))

    def _unshare(self) -> None:
        """Have the next fork make a process namespace of the child's own."""
        if Layer.PID in self._plan.layers:
            libc.syscall("unshare", libc.CLONE_NEWPID)

    def _return(self) -> None:
        """Have the next fork make none."""
        if Layer.PID in self._plan.layers:
            libc.syscall("setns", self._own_pids, libc.CLONE_NEWPID)

    def _become_worker(self, bounds: Bounds, group: Group | None, requests: int, results: int, slot: int) -> NoReturn:
        """In the child: never returns, whatever happens."""
        status = 1
        try:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            self._control.detach()  # its number may be taken
            try:
                if group is not None:
                    group.join()  # by a descriptor whose number a worker's is about to take
                proc = _place(requests, results, self._proc)
                results = _RESULTS
                confine(self._plan, bounds, slot=slot, proc=proc, keep=_KEEP)
                if Layer.PID not in self._plan.layers and os.getppid() != self._pid:
                    raise ConfinementError("the zygote ended meanwhile")  # before it could be a death signal
            except (OSError, RefusedLayerError, ConfinementError) as error:
                # The server reads this where the worker would have said that it is ready.
                text = f"a worker could not be confined: {error}; it was ended"
                os.write(results, encode_report(Done(0, None, ErrorRecord("confinement", text), 0.0, 0.0)))
                os._exit(1)
            _reseed()
            sys.argv = ["worker", str(_REQUESTS), str(_RESULTS)]
            worker.main(_REQUESTS, _RESULTS, _STATM, bounds)
            status = 0
        finally:
            os._exit(status)

    def _signal(self, number: int, which: int) -> None:
        # Not reaped, so the number cannot be another's.
        if (child := self._children.get(number)) is not None:
            os.kill(child.pid, which)

    def _stop(self, number: int) -> bool:
        child = self._children.get(number)
        if child is None:
            return False
        os.kill(child.pid, signal.SIGSTOP)
        deadline_s = time.monotonic() + _STOPS_WITHIN_S
        options = os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG
        while (found := os.waitid(os.P_PID, child.pid, options)) is None:
            if time.monotonic() > deadline_s:
                return False  # in an uninterruptible sleep of the kernel
            os.sched_yield()
        return found.si_code == os.CLD_STOPPED

    def _reap(self, child: Child) -> None:
        _, status, used = os.wait4(child.pid, 0)
        del self._children[child.number], self._by_pidfd[child.pidfd]
        self._poll.unregister(child.pidfd)
        os.close(child.pidfd)
        code = os.waitstatus_to_exitcode(status)
        ended_by, with_status = (-code, None) if code < 0 else (None, code)
        if ended_by == signal.SIGSYS:
            ended_by = signal.SIGKILL  # its filter ended it: most likely because it would kill itself
        cpu_s = used.ru_utime + used.ru_stime
        if child.usage is not None:
            cpu_s = usage_s(child.usage)
            os.close(child.usage)
        out_of_memory = child.group is not None and child.group.was_out_of_memory()
        self._leaving.append((child.group, Exited(child.number, ended_by, with_status, cpu_s, out_of_memory)))

    def _is_gone(self, group: Group | None, exited: Exited) -> bool:
        """Tell of the end of a worker if nothing that it started is left, else end that."""
        gone = (group is None or group.remove()) and not (self._adopts and self._end_adopted())
        if gone:
            self._tell(exited)
        return gone

    def _end_adopted(self) -> bool:
        """End what a task started and its worker left, and return whether there was something."""
        fd = os.open(f"self/task/{self._pid}/children", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        with os.fdopen(fd, encoding="ascii") as children:
            adopted = {int(pid) for pid in children.read().split()} - {child.pid for child in self._children.values()}
        for pid in adopted:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, os.WNOHANG)
        return bool(adopted)


def _place(requests: int, results: int, proc: int) -> int:
    """Give a worker's descriptors their numbers, over whatever had these before, and return a new one of `proc`."""
    statm = os.open("self/statm", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    # Wherever they are now: first out of the way.
    away = [fcntl(fd, F_DUPFD_CLOEXEC, _KEEP) for fd in (requests, results, statm, proc)]
    for number, fd in zip((_REQUESTS, _RESULTS, _STATM), away, strict=False):
        os.dup2(fd, number, inheritable=False)
    return away[-1]


def _reseed() -> None:
    """Give this worker random numbers of its own where a library drew its seed before the fork."""
    if (random := sys.modules.get("numpy.random")) is not None:
        random.seed()


# --- the socket -----------------------------------------------------------------------------------------------------


def _send(control: _socket.socket, report: Report, *fds: int) -> None:
    beside = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array(_INTS, fds).tobytes())] if fds else []
    control.sendmsg([encode(report)], beside)


def _receive(control: _socket.socket) -> tuple[bytes, list[int]]:
    space = _socket.CMSG_SPACE(2 * array.array(_INTS).itemsize)
    try:
        data, beside, _, _ = control.recvmsg(MAX_MESSAGE_BYTES, space, _socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:  # the server is gone, and had not heard everything
        return b"", []
    fds = array.array(_INTS)
    for level, kind, payload in beside:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            fds.frombytes(payload)
    return data, fds.tolist()


# --- start ----------------------------------------------------------------------------------------------------------


def main(control_fd: int) -> None:
    """Confine this process, then serve."""
    os.umask(0o022)  # the server's may be stricter, and workers of other uids could not enter the root that is made
    control = _socket.socket(fileno=control_fd)
    data, _ = _receive(control)
    if not data:
        return
    start = decode_order(data)
    if not isinstance(start, Start):
        raise ConfinementError("the first order is not Start")
    states: list[LayerState] = []
    try:
        layers, states = survey(start.profile, start.openings)
        check_layers(start.profile, states)
        plan = make_plan(layers, start.openings)
        groups = Groups() if Layer.GROUP in layers else None
        proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
        enter_outer(plan)
        if Layer.PID in plan.layers and (init := os.fork()):
            control.close()
            _wait_for(init)
        _settle(plan, groups)
        _check_single(proc)
    except RefusedLayerError as error:
        states = [error.state if one.layer is error.state.layer else one for one in states]
        try:
            check_layers(start.profile, states)
        except ConfinementError as refusal:
            _send(control, Refused(str(refusal), states))
        return
    except (ConfinementError, OSError) as error:
        _send(control, Refused(str(error), states))
        return
    gc.collect()
    gc.freeze()  # the collector's marks would copy every page that the workers share
    _send(control, Ready(states))
    Zygote(control, plan, groups, proc).serve()
    os._exit(0)


def _settle(plan: Plan, groups: Groups | None) -> None:
    """Everything between the process namespace and the first fork."""
    if Layer.PID in plan.layers:
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    if groups is not None:
        groups.enter()
    _warm(plan.openings, plan.view.scratch if Layer.SCRATCH in plan.layers else "/")
    enter_inner(plan)
    if groups is not None:
        groups.settle()


def _wait_for(init: int) -> NoReturn:
    """Outside of the process namespace: be there for the server to wait for, and end as the zygote ends."""
    _, status = os.waitpid(init, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


def _warm(openings: Openings, home: str) -> None:
    """Load, before the root is gone and once for all, what every worker would load."""
    os.environ.update(HOME=home, TMPDIR=home, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", LANG="C.UTF-8")
    if openings.subprocesses:
        os.environ["PATH"] = "/usr/local/bin:/usr/bin:/bin"
    if openings.numpy:
        import numpy as np

        np.random.default_rng()  # numpy loads its parts late


def _check_single(proc: int) -> None:
    """A forked process has one thread; a lock that another one held would stay locked in every worker."""
    fd = os.open("self/stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        threads = int(os.read(fd, 1024).rpartition(b")")[2].split()[17])
    finally:
        os.close(fd)
    if threads != 1:
        raise ConfinementError(f"the zygote has {threads} threads; it does not fork")
