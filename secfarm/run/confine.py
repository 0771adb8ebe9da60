"""Confinement: what a zygote does to itself once and to each worker that it forks, layer by layer, in order.

Nothing falls back. `survey` says beforehand which layers this machine has; what it promised must succeed in every
worker, and an exception here ends that worker before it has read a byte. Order and reasons: docs/confinement.md.
"""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from secfarm.run import control_groups, landlock, libc, seccomp
from secfarm.run.calls import worker_rules, zygote_rules
from secfarm.run.profile import Layer, LayerState
from secfarm.run.syscalls import this_machine
from secfarm.run.view import build, everybody_reads, host_view

if TYPE_CHECKING:
    from secfarm.run.profile import Bounds, Openings, Profile
    from secfarm.run.view import View

FIRST_UID: Final = 1_900_000_000  # beyond what distributions, containers and directories hand out
_UIDS: Final = (1 << 31) - FIRST_UID  # some tools take those beyond for negative
_UIDS_EACH: Final = 58  # of a zygote: so many for each of the 2**22 process ids that Linux has at most
SHARED_PROCESSES: Final = 512  # where workers have no uid of their own, all processes of the server's user count
_SIGKILL: Final = 9
_USER_REMEDY: Final = (
    "Allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone; on Ubuntu an AppArmor "
    "profile with `userns,` or sysctl kernel.apparmor_restrict_unprivileged_userns=0), or start the server as root, "
    "or choose the profile `container` inside a container"
)
_NOT_DELEGATED: Final = "none was delegated to this server alone (systemd: Delegate=memory pids cpu)"
_LANDLOCK_REMEDY: Final = "Use Linux 6.2 or later with `landlock` among the `lsm=` of its command line"
_FLAGS: Final = {
    Layer.NET: libc.CLONE_NEWNET,
    Layer.IPC: libc.CLONE_NEWIPC,
    Layer.UTS: libc.CLONE_NEWUTS,
    Layer.CGROUP: libc.CLONE_NEWCGROUP,
}


@dataclass(slots=True)
class Plan:
    """What a zygote found out and will do; `layers` are those that are engaged, without exception."""

    layers: frozenset[Layer]
    openings: Openings
    view: View
    as_root: bool
    first_uid: int  # of root's workers
    all_uids: bool = True  # effective and saved uid too; else Python lies where only root may read
    landlock_abi: int = 0
    has_mdwe: bool = False
    program: bytes = b""  # of seccomp, where every worker is process 1 to itself


def survey(profile: Profile, openings: Openings) -> tuple[frozenset[Layer], list[LayerState]]:
    """Return the layers to engage, and the state of all of them, as far as asking tells.

    Namespaces are not among what can be asked: `enter_outer` and `enter_inner` find out by doing.
    """
    states = [_ask(layer, profile, openings) for layer in Layer]
    return frozenset(state.layer for state in states if state.engaged), states


def make_plan(layers: frozenset[Layer], openings: Openings) -> Plan:
    """Return the plan for the layers that `survey` named."""
    view = host_view(openings)
    all_uids = everybody_reads(view, with_parents=Layer.ROOT not in layers)
    # Before the namespaces: a number that no other zygote of this machine has at the same time.
    first_uid = FIRST_UID + os.getpid() * _UIDS_EACH % _UIDS
    return Plan(layers, openings, view, as_root=os.geteuid() == 0, first_uid=first_uid, all_uids=all_uids)


def _ask(layer: Layer, profile: Profile, openings: Openings) -> LayerState:
    as_root = os.geteuid() == 0
    absent = {
        Layer.USER: as_root and "not needed: the server runs as root",
        Layer.IDENTITY: not (as_root or Layer.USER in profile.layers) and "not root: workers share the server's user",
        Layer.GROUP: control_groups.controllers() is None and _NOT_DELEGATED,
        Layer.NET: openings.network and "opened by the policy",
        Layer.WRITE_XOR_EXECUTE: openings.generated_code and "opened by the policy",
    }.get(layer)
    if layer not in profile.layers or absent:
        return LayerState(layer, engaged=False, required=False, why=absent or f"not of profile {profile.name}")
    engaged, why, remedy = True, "engaged", ""
    if layer is Layer.IDENTITY and as_root:
        if not everybody_reads(host_view(openings), with_parents=Layer.ROOT not in profile.layers):
            why = "real uid only, which counts processes: not everybody may read this Python, or what was opened"
            remedy = "Install Python where every user may read it"
    elif layer is Layer.GROUP:
        why = ", ".join(sorted(control_groups.controllers() or ())) or "without controllers: it counts and ends"
    elif layer is Layer.LANDLOCK:
        engaged, why = _ask_landlock()
        remedy = "" if engaged else _LANDLOCK_REMEDY
    elif layer is Layer.WRITE_XOR_EXECUTE:
        why = "by seccomp and PR_SET_MDWE" if _has_mdwe() else "by seccomp; PR_SET_MDWE is Linux 6.3's"
    return LayerState(layer, engaged, layer in profile.required, why, remedy)


def _ask_landlock() -> tuple[bool, str]:
    try:
        version = landlock.abi()
    except OSError as error:
        return False, f"{error.strerror} (landlock_create_ruleset)"
    return version >= landlock.MIN_ABI, f"ABI {version}"


def _has_mdwe() -> bool:
    try:
        libc.prctl(66)  # PR_GET_MDWE
    except OSError:
        return False
    return True


class RefusedLayerError(Exception):
    """The kernel refused a step of a layer."""

    def __init__(self, layer: Layer, error: OSError) -> None:
        why = f"{error.strerror} ({error.filename})"
        super().__init__(f"{layer}: {why}")
        self.state = LayerState(layer, engaged=False, required=True, why=why, remedy=_remedy(layer, error))


def _remedy(layer: Layer, error: OSError) -> str:
    if error.errno in {errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS} and layer in {Layer.USER, *_LATER}:
        return _USER_REMEDY
    return "Linux 5.12 or later is needed" if error.errno == errno.ENOSYS else ""


_LATER: Final = frozenset({Layer.PID, Layer.ROOT, Layer.SCRATCH, *_FLAGS})  # need the privileges of a user namespace


# --- the zygote, once -------------------------------------------------------------------------------------------------


def enter_outer(plan: Plan) -> None:
    """Enter the user namespace and the process namespace, of which the next process that is forked is the first.

    From here on a filter of its own lets the zygote make namespaces and workers, and otherwise do what those may.

    Raises:
        RefusedLayerError: the kernel did not let us.
    """
    if Layer.USER in plan.layers:
        _own_user_namespace(Layer.USER, "/proc")
    if Layer.PID in plan.layers:
        _unshare(Layer.PID, libc.CLONE_NEWPID)
    if Layer.SECCOMP in plan.layers:
        seccomp.engage(seccomp.build(zygote_rules(plan.openings), this_machine()))


def enter_inner(plan: Plan) -> None:
    """In the namespace's first process: the other namespaces, the root, and no way back to privileges.

    Raises:
        RefusedLayerError: the kernel did not let us.
    """
    for layer, flag in _FLAGS.items():
        if layer in plan.layers:
            _unshare(layer, flag)
    if Layer.UTS in plan.layers:
        libc.syscall("sethostname", b"worker", 6)
    if Layer.ROOT in plan.layers:
        try:
            libc.syscall("unshare", libc.CLONE_NEWNS)
            build(plan.view)
        except OSError as error:
            raise RefusedLayerError(Layer.ROOT, error) from error
    if Layer.CAPABILITIES in plan.layers and (plan.as_root or Layer.USER in plan.layers):
        try:
            libc.drop_bounding_set()
            libc.prctl(libc.PR_SET_SECUREBITS, libc.SECUREBITS)
        except OSError as error:
            raise RefusedLayerError(Layer.CAPABILITIES, error) from error
    if Layer.LANDLOCK in plan.layers:
        plan.landlock_abi = landlock.abi()
    plan.has_mdwe = Layer.WRITE_XOR_EXECUTE in plan.layers and _has_mdwe()
    if Layer.SECCOMP in plan.layers and Layer.PID in plan.layers:
        plan.program = _filter(plan, 1)


def _unshare(layer: Layer, flag: int) -> None:
    try:
        libc.syscall("unshare", flag)
    except OSError as error:
        raise RefusedLayerError(layer, error) from error


def _own_user_namespace(layer: Layer, proc: str | int) -> None:
    """Enter a user namespace that knows one user and one group, called as they are outside."""
    uid, gid = os.geteuid(), os.getegid()
    directory = os.open(proc, os.O_PATH | os.O_CLOEXEC) if isinstance(proc, str) else proc
    try:
        libc.syscall("unshare", libc.CLONE_NEWUSER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            fd = os.open(f"self/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
    except OSError as error:
        error.filename = error.filename or "uid_map"
        raise RefusedLayerError(layer, error) from error
    finally:
        if isinstance(proc, str):
            os.close(directory)


def _filter(plan: Plan, pid: int) -> bytes:
    rules = worker_rules(
        plan.openings,
        pid=pid,
        has_scratch=Layer.SCRATCH in plan.layers,
        write_xor_execute=Layer.WRITE_XOR_EXECUTE in plan.layers,
        signals_inside=Layer.PID in plan.layers or plan.landlock_abi >= landlock.SCOPE_ABI,
    )
    return seccomp.build(rules, this_machine())


# --- a worker, each ---------------------------------------------------------------------------------------------------


def confine(plan: Plan, bounds: Bounds, *, slot: int, proc: int, keep: int) -> None:
    """Confine this freshly forked process for good; what follows is the task's.

    Args:
        slot: makes the uid; no two workers of a zygote at once have the same one.
        proc: /proc as a descriptor (O_PATH).
        keep: descriptors below this one stay; 0, 1 and 2 are /dev/null.

    Raises:
        OSError, RefusedLayerError: the kernel refused a layer; the process must end.
    """
    layers = plan.layers
    own = plan.first_uid + slot if plan.as_root and Layer.IDENTITY in layers else os.geteuid()
    owner = own if plan.all_uids else os.geteuid()
    os.setsid()
    if Layer.SCRATCH in layers:
        libc.syscall("unshare", libc.CLONE_NEWNS)
        if Layer.ROOT not in layers:  # whose mounts are private already
            libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
        _scratch(plan.view.scratch, bounds, owner)
    used_bytes = _used_bytes(proc)
    if Layer.IDENTITY in layers and not plan.as_root:
        _own_user_namespace(Layer.IDENTITY, proc)
        # A new user namespace comes with a full set.
        libc.drop_bounding_set()
        libc.prctl(libc.PR_SET_SECUREBITS, libc.SECUREBITS)
    if Layer.DESCRIPTORS in layers:
        libc.syscall("close_range", keep, 0xFFFFFFFF, 0)
    if Layer.RLIMITS in layers:
        _limit(bounds, used_bytes, own_user=Layer.IDENTITY in layers)
    if Layer.IDENTITY in layers and plan.as_root:
        os.setgroups([])
        os.setresgid(own, own, own)
        os.setresuid(own, owner, owner)
    _drop_privileges(plan)
    if Layer.LANDLOCK in layers:
        landlock.engage(plan.landlock_abi, _file_rules(plan), tcp=landlock.TCP if plan.openings.network else 0)
    if Layer.SECCOMP in layers:
        seccomp.engage(plan.program or _filter(plan, os.getpid()))


def _drop_privileges(plan: Plan) -> None:
    if Layer.CAPABILITIES in plan.layers:
        libc.drop_capabilities()
    if Layer.NO_NEW_PRIVS in plan.layers:
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    if Layer.DEATH in plan.layers:
        libc.prctl(libc.PR_SET_PDEATHSIG, _SIGKILL)  # after setresuid, which clears it
    if Layer.DUMPABLE in plan.layers:
        libc.prctl(libc.PR_SET_DUMPABLE, 0)
    if plan.has_mdwe:
        libc.prctl(libc.PR_SET_MDWE, libc.PR_MDWE_REFUSE_EXEC_GAIN)


def _scratch(path: str, bounds: Bounds, owner: int) -> None:
    options = f"mode=0700,uid={owner},gid={owner if owner >= FIRST_UID else os.getegid()}"
    sizes = f"size={bounds.scratch_bytes},nr_inodes={bounds.scratch_files}"
    libc.mount("tmpfs", path, "tmpfs", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC, f"{options},{sizes}")
    os.chdir(path)


def _used_bytes(proc: int) -> int:
    fd = os.open("self/statm", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        return int(os.read(fd, 64).split()[0]) * resource.getpagesize()
    finally:
        os.close(fd)


def _limit(bounds: Bounds, used_bytes: int, *, own_user: bool) -> None:
    cpu = resource.RLIM_INFINITY if bounds.cpu_s is None else bounds.cpu_s
    processes = bounds.processes if own_user else bounds.processes + SHARED_PROCESSES
    for which, most in (
        (resource.RLIMIT_CORE, 0),  # it would hold other people's arguments
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, used_bytes + bounds.memory_bytes),
        (resource.RLIMIT_NOFILE, bounds.files),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_FSIZE, bounds.scratch_bytes),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, 256),
    ):
        hard = resource.getrlimit(which)[1]
        value = most if hard == resource.RLIM_INFINITY or (0 <= most < hard) else hard
        resource.setrlimit(which, (value, value))


def _file_rules(plan: Plan) -> list[tuple[str, int]]:
    read = landlock.READ | (landlock.EXECUTE if plan.openings.subprocesses else 0)
    device = landlock.READ_FILE | landlock.WRITE_FILE
    if Layer.ROOT in plan.layers:
        rules = [("/", read), ("/dev", device)]  # whatever is there was offered
    else:
        rules = [*((path, read) for path in plan.view.paths), *((path, device) for path in plan.view.devices)]
    return [*rules, (plan.view.scratch, landlock.WRITE)] if Layer.SCRATCH in plan.layers else rules
