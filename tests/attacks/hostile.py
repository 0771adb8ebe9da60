"""Hostile tasks: what promise P5 says cannot be done, tried. One corpus for the bare zygote and for a real server.

Each task returns what it got hold of, or nothing, or raises. What it got is an escape; so is an end that is not among
the attack's. `world` tells it what there is to steal: see world.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final


class End(Enum):
    """How a call ended."""

    NOTHING = "it returned nothing or raised"
    DIED = "its worker died"
    KILLED = "it ran until it was killed at the deadline"


@dataclass(frozen=True, slots=True)
class Attack:
    """A hostile task and the ends that it may come to."""

    task: Callable[[dict[str, object]], object]
    ends: frozenset[End]
    needs_namespaces: bool = False  # to be stopped: Landlock hides neither names and sizes of files nor the host's

    @property
    def name(self) -> str:
        return self.task.__name__


CORPUS: Final[list[Attack]] = []


def attack(*ends: End, needs_namespaces: bool = False) -> Callable[[Callable[..., object]], Callable[..., object]]:
    def enter(task: Callable[..., object]) -> Callable[..., object]:
        CORPUS.append(Attack(task, frozenset(ends or {End.NOTHING}), needs_namespaces))
        return task

    return enter


def named(name: str) -> Attack:
    return next(one for one in CORPUS if one.name == name)


# --- secrets by path ------------------------------------------------------------------------------------------------
@attack()
def reads_a_file_by_path(world):
    return open(world["canary"]).read()


@attack()
def reads_a_file_through_proc(world):
    for pid in ("self", "1", "2", world["server"], world["victim"]):
        try:
            return open(f"/proc/{pid}/root{world['canary']}").read()
        except OSError:
            pass


@attack()
def reads_the_users_of_the_machine(world):
    for path in ("/etc/passwd", "/etc/shadow", "/etc/hostname", "/etc/machine-id"):
        try:
            return open(path).read()
        except OSError:
            pass


@attack()
def reads_an_environment(world):
    import os

    if world["marker"][::-1] in repr(dict(os.environ)):
        return "own"
    return open(f"/proc/{world['server']}/environ", "rb").read()


@attack()
def reads_the_memory_of_the_server_by_path(world):
    return open(f"/proc/{world['server']}/mem", "rb").read(1)


@attack()
def reads_the_memory_of_a_process_by_call(world):
    import ctypes

    libc = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(8)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    for pid in (world["server"], world["victim"], 1):
        foreign = (ctypes.c_void_p * 2)(world["address"], 8)
        if libc.process_vm_readv(pid, vector, 1, foreign, 1, 0) > 0:
            return buffer.raw


@attack(needs_namespaces=True)
def learns_of_a_file_outside(world):
    import os

    return os.stat(world["canary"]).st_size


@attack()
def walks_from_the_root(world):
    import os

    name = world["canary"].rsplit("/", 1)[1]
    for directory, _, files in os.walk("/"):
        if name in files:
            return directory


@attack()
def climbs_out_through_a_descriptor(world):
    import os

    fd = os.open(".", os.O_PATH)
    for _ in range(40):
        fd = os.open("..", os.O_PATH, dir_fd=fd)
    return os.read(os.open(world["canary"][1:], os.O_RDONLY, dir_fd=fd), 100)


@attack()
def follows_a_symbolic_link(world):
    import os

    os.symlink(world["canary"], "link")
    return open("link").read()


@attack()
def makes_a_hard_link(world):
    import os

    os.link(world["canary"], "hard")
    return open("hard").read()


@attack()
def plants_a_link_or_a_pipe(world):
    import os

    for plant in (lambda: os.symlink("/etc/passwd", "planted"), lambda: os.mkfifo("pipe")):
        try:
            plant()
        except OSError:
            continue
        return os.listdir(".")


@attack()
def opens_a_file_by_handle(world):
    import ctypes

    handle = (ctypes.c_uint8 * 136)(128)
    mount = ctypes.c_int()
    libc = ctypes.CDLL(None)
    if libc.name_to_handle_at(-100, world["canary"].encode(), handle, ctypes.byref(mount), 0) == 0:
        return bytes(handle)


# --- secrets that are in the process ----------------------------------------------------------------------------------
@attack()
def searches_all_objects(world):
    import gc

    wanted = world["marker"][::-1]
    for one in gc.get_objects():
        if one is not world and isinstance(one, dict | list | tuple) and wanted in repr(one):
            return type(one).__name__


@attack()
def searches_the_frames(world):
    import sys

    wanted, frame = world["marker"][::-1], sys._getframe()
    while frame:
        for name, value in frame.f_locals.items():
            if name not in {"world", "wanted"} and wanted in repr(value):
                return name
        frame = frame.f_back


@attack()
def finds_inherited_descriptors(world):
    import os

    found = []
    for fd in range(3, 1024):
        try:
            kind = os.fstat(fd).st_mode & 0o170000
        except OSError:
            continue
        if fd > 5 or kind not in {0o010000, 0o100000}:
            found.append((fd, oct(kind)))
    return found


@attack()
def reads_the_arguments(world):
    import sys

    return [one for one in (*sys.argv, *sys.orig_argv) if world["marker"][::-1] in one or "key" in one]


# --- writing outside --------------------------------------------------------------------------------------------------
@attack()
def writes_a_file(world):
    with open(world["canary"], "a") as file:
        return file.write("x")


@attack()
def truncates_a_file(world):
    import os

    os.truncate(world["canary"], 0)
    return True


@attack()
def truncates_by_opening(world):
    import os

    return os.open(world["canary"], os.O_RDONLY | os.O_TRUNC)


@attack()
def removes_a_file(world):
    import os

    for remove in (os.unlink, lambda path: os.rename(path, path + "x"), lambda path: os.replace("/tmp/x", path)):
        try:
            remove(world["canary"])
        except OSError:
            continue
        return True


@attack()
def creates_where_everybody_may(world):
    for directory in (world["open_directory"], "/var/tmp", "/dev/shm", "/dev"):
        try:
            with open(f"{directory}/planted", "x"):
                return directory
        except OSError:
            pass


@attack()
def changes_a_mode(world):
    import os

    os.chmod(world["own_file"], 0o777)
    return True


@attack()
def changes_a_time(world):
    import os

    os.utime(world["open_file"])
    return True


@attack()
def writes_into_python(world):
    import json
    import os

    import msgspec

    for module in (json, msgspec):
        try:
            with open(os.path.join(os.path.dirname(module.__file__), "planted.py"), "x") as file:
                return file.name
        except OSError:
            pass


@attack()
def makes_a_device(world):
    import os
    import stat

    os.mknod("disk", 0o600 | stat.S_IFBLK, os.makedev(254, 0))
    return os.read(os.open("disk", os.O_RDONLY), 16)


@attack()
def mounts(world):
    import ctypes

    libc = ctypes.CDLL(None)
    for where in (b"/tmp", b"/", b"/usr"):
        for kind, flags in ((b"tmpfs", 0), (b"proc", 0), (None, 4096), (None, 32 | 4096)):
            if libc.mount(b"none", where, kind, flags, None) == 0:
                return where


@attack()
def unmounts(world):
    import ctypes

    return ctypes.CDLL(None).umount2(b"/tmp", 2) == 0


@attack()
def makes_mounts_writable(world):
    import ctypes

    class Attributes(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]

    return ctypes.CDLL(None).syscall(442, -100, b"/", 0x8000, ctypes.byref(Attributes(0, 1, 0, 0)), 32) == 0


@attack()
def changes_the_root(world):
    import os

    os.mkdir("jail")
    os.chroot("jail")
    return True


# --- other programs and processes -------------------------------------------------------------------------------------
@attack()
def becomes_another_user(world):
    import os

    before = os.getresuid(), os.getresgid()
    calls = (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.setresuid(0, 0, 0))
    for become in calls:
        try:
            become()
        except OSError:
            continue
        return before, os.getresuid()


@attack()
def runs_a_shell(world):
    import os

    return os.system("true") == 0


@attack()
def runs_a_program(world):
    import subprocess
    import sys

    return subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True).stdout


@attack(End.NOTHING, End.DIED)
def replaces_itself(world):
    import os
    import sys

    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)"])


@attack()
def forks(world):
    import os

    if (pid := os.fork()) == 0:
        os._exit(0)
    return pid


@attack()
def forks_by_number(world):
    import ctypes
    import os
    import platform

    libc = ctypes.CDLL(None)
    # clone, vfork, fork, clone3; with flags of all kinds
    numbers = {"x86_64": (56, 58, 57, 435), "aarch64": (220, 435)}[platform.machine()]
    for number in numbers:
        for flags in (17, 0x4100 | 17, 0x100 | 17, 0x7E020011, 0x80000000 | 17):
            pid = libc.syscall(number, ctypes.c_long(flags), 0, 0, 0, 0)
            if pid == 0:
                os._exit(0)
            if pid > 0:
                return number


@attack()
def runs_from_memory(world):
    import os
    import sys

    fd = os.memfd_create("program")
    with open(sys.executable, "rb") as file:
        os.write(fd, file.read(64))
    return fd


@attack()
def kills(world):
    import os
    import signal

    for pid in (world["victim"], world["server"], os.getppid() or 2, 1, 2, -1, 0):
        if pid == os.getpid():
            continue
        try:
            os.kill(pid, signal.SIGCONT)
        except OSError:
            continue
        return pid


@attack()
def kills_by_other_calls(world):
    import ctypes

    libc = ctypes.CDLL(None)
    for pid in (world["victim"], world["server"]):
        fd = libc.syscall(434, pid, 0)
        if fd >= 0 or libc.syscall(424, fd, 0, None, 0) == 0 or libc.sigqueue(pid, 0, None) == 0:
            return pid


@attack()
def signals_through_a_descriptor(world):
    import fcntl
    import os

    read, _ = os.pipe()
    fcntl.fcntl(read, 8, world["victim"])  # F_SETOWN
    return True


@attack()
def traces(world):
    import ctypes

    libc = ctypes.CDLL(None)
    for request, pid in ((16, world["victim"]), (0x4206, world["victim"]), (16, world["server"]), (0, 0)):
        if libc.ptrace(request, pid, None, None) == 0:
            return request, pid


@attack()
def enters_namespaces(world):
    import ctypes

    libc = ctypes.CDLL(None)
    for flag in (0x10000000, 0x00020000, 0x40000000, 0x20000000, 0x08000000, 0x04000000, 0x02000000, 0x80, 0x200):
        if libc.unshare(flag) == 0:
            return hex(flag)


@attack()
def uses_the_keys_of_the_kernel(world):
    import ctypes
    import platform

    libc = ctypes.CDLL(None)
    for number in {"x86_64": (248, 249, 250), "aarch64": (217, 218, 219)}[platform.machine()]:  # add_key and others
        if libc.syscall(number, b"user", b"a", b"b", 1, -3) > 0:
            return number


@attack()
def calls_what_is_dangerous(world):
    """bpf, perf_event_open, userfaultfd, io_uring, memfd_secret, kcmp, fanotify, open_tree, fsopen, seccomp."""
    import ctypes
    import platform

    libc = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(256)
    own = {"x86_64": (321, 298, 323, 312, 300, 317), "aarch64": (280, 241, 282, 272, 262, 277)}[platform.machine()]
    for number in (*own, 425, 447, 428, 430, 438, 440, 448):
        if libc.syscall(number, 1, buffer, 120, 0, 0) >= 0:
            return number


@attack()
def changes_the_machine(world):
    import ctypes
    import socket
    import time

    try:
        socket.sethostname("mine")
        return "host name"
    except OSError:
        pass
    try:
        time.clock_settime(time.CLOCK_REALTIME, 0)
        return "clock"
    except OSError:
        pass
    libc = ctypes.CDLL(None)
    for name, args in (("reboot", (0x89ABCDEF,)), ("klogctl", (10, None, 0)), ("swapoff", (b"/x",)), ("iopl", (3,))):
        if hasattr(libc, name) and getattr(libc, name)(*args) == 0:
            return name


@attack()
def takes_precedence(world):
    import os

    for take in (lambda: os.nice(-5), lambda: os.sched_setaffinity(0, {0}), lambda: os.setpriority(0, 0, -5)):
        try:
            take()
        except OSError:
            continue
        return True


@attack()
def writes_to_a_terminal(world):
    import fcntl

    for fd in (0, 1, 2):
        try:
            fcntl.ioctl(fd, 0x5412, b"x")  # TIOCSTI
        except PermissionError:
            continue
        except OSError as error:
            if error.errno == 25:
                return "the filter let it through"
        else:
            return fd


@attack()
def learns_its_cgroup(world):
    with open("/proc/self/cgroup") as file:
        own = file.read()
    return world["cgroup"] != "/" and world["cgroup"] in own


@attack(needs_namespaces=True)
def learns_the_name_of_the_machine(world):
    import os

    return os.uname().nodename == world["host"]


# --- confinement itself -----------------------------------------------------------------------------------------------
@attack()
def undoes_its_confinement(world):
    import ctypes

    libc = ctypes.CDLL(None)
    # PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_SECCOMP, PR_SET_SECUREBITS, PR_SET_MM, PR_SET_MDWE
    for option in (1, 4, 8, 22, 28, 35, 65, 59):
        if libc.prctl(option, 0, 0, 0, 0) == 0:
            return option


@attack()
def raises_its_limits(world):
    import resource

    for which in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
        hard = resource.getrlimit(which)[1]
        try:
            resource.setrlimit(which, (hard + 1, hard + 1))
        except (OSError, ValueError):
            continue
        return which


@attack()
def limits_another_process(world):
    import resource

    for pid in (world["victim"], world["server"]):
        try:
            return resource.prlimit(pid, resource.RLIMIT_NOFILE)
        except OSError:
            pass


@attack()
def holds_capabilities(world):
    import ctypes

    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capget(header, sets)
    return [hex(one) for one in sets if one]


@attack()
def runs_machine_code(world):
    import ctypes
    import mmap
    import platform

    code = {"x86_64": b"\xb8\x2a\0\0\0\xc3", "aarch64": b"\x40\x05\x80\x52\xc0\x03\x5f\xd6"}[platform.machine()]
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))() == 42


@attack()
def makes_memory_executable(world):
    import ctypes
    import mmap

    memory = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), 4096, 5) == 0


@attack()
def maps_a_file_that_it_wrote_as_code(world):
    import mmap

    with open("code", "w+b") as file:
        file.write(b"\xc3" * 4096)
        file.flush()
        return mmap.mmap(file.fileno(), 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)[0]


@attack(End.DIED, End.NOTHING)
def calls_by_a_foreign_convention(world):
    import ctypes
    import platform

    if platform.machine() == "x86_64":
        return ctypes.CDLL(None).syscall(0x40000000 + 39)  # x32's getpid


# --- the network ------------------------------------------------------------------------------------------------------
@attack()
def connects(world):
    import socket

    return socket.create_connection(("127.0.0.1", world["tcp"]), 2).getsockname()


@attack()
def sends_a_datagram(world):
    import socket

    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"escaped", ("127.0.0.1", world["udp"]))


@attack()
def connects_to_a_unix_socket(world):
    import socket

    socket.socket(socket.AF_UNIX).connect(world["unix"])
    return True


@attack()
def connects_to_an_abstract_socket(world):
    import socket

    socket.socket(socket.AF_UNIX).connect(f"\0{world['abstract']}")
    return True


@attack()
def sends_from_one_of_a_pair(world):
    import socket

    one, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return one.sendto(b"escaped", world["unix_datagram"])


@attack()
def listens(world):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()


@attack()
def opens_sockets_of_all_families(world):
    import socket

    got = []
    for family in range(1, 46):
        for kind in (1, 2, 3, 5):
            for protocol in (0, 255, 262):  # raw, MPTCP
                try:
                    got.append(socket.socket(family, kind, protocol).family)
                except OSError:
                    pass
    return got


@attack()
def passes_a_descriptor(world):
    import array
    import socket

    one, two = socket.socketpair()
    one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]).tobytes())])
    return two.recv(1)


@attack()
def looks_into_shared_memory(world):
    import ctypes

    return ctypes.CDLL(None).shmget(world["shm_key"], 0, 0) >= 0


# --- bombs ------------------------------------------------------------------------------------------------------------
@attack(End.NOTHING, End.DIED)
def fork_bomb(world):
    import os

    pids = []
    while len(pids) < 100:
        pid = os.fork()
        if pid == 0:
            while True:
                os.fork()
        pids.append(pid)
    return pids


@attack()
def thread_bomb(world):
    import threading

    threading.stack_size(65536)
    stop, threads = threading.Event(), []
    try:
        for _ in range(world["most_threads"] + 1):
            thread = threading.Thread(target=stop.wait)
            thread.start()
            threads.append(thread)
    except RuntimeError:
        pass
    stop.set()
    return len(threads) if len(threads) > world["most_threads"] else None


@attack(End.NOTHING, End.DIED)
def memory_bomb(world):
    held = []
    while len(held) << 20 <= world["most_memory"]:
        held.append(bytearray(1 << 20))
    return len(held)


@attack(End.NOTHING, End.DIED)
def shared_memory_bomb(world):
    import ctypes
    import mmap
    import os

    got = 0
    try:
        for number in range(64):
            os.ftruncate(os.memfd_create(str(number)), 64 << 20)
            got += 64 << 20
    except OSError:
        pass
    libc = ctypes.CDLL(None)
    for _ in range(64):
        if libc.shmget(0, 64 << 20, 0o1600) >= 0:
            got += 64 << 20
    try:
        maps = []
        while got <= world["most_memory"]:
            maps.append(mmap.mmap(-1, 16 << 20))
            got += 16 << 20
    except (OSError, MemoryError):
        pass
    return got if got > world["most_memory"] else None


@attack(End.NOTHING, End.DIED)
def disk_bomb(world):
    written = 0
    for number in range(64):
        try:
            with open(f"big{number}", "wb", buffering=0) as file:
                while written <= world["most_scratch"]:
                    written += file.write(bytes(1 << 20))
        except OSError:
            continue
    return written if written > world["most_scratch"] else None


@attack()
def inode_bomb(world):
    import os

    made = 0
    try:
        while made <= world["most_files"]:
            os.mkdir(f"directory{made}")
            made += 1
    except OSError:
        return None
    return made


@attack()
def descriptor_bomb(world):
    import os

    held = []
    try:
        while len(held) <= world["most_descriptors"]:
            held.append(os.dup(0))
    except OSError:
        return None
    return len(held)


@attack()
def pipe_bomb(world):
    import fcntl
    import os

    _, write = os.pipe()
    return fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 20)


@attack()
def deep_result(world):
    value = []
    for _ in range(100_000):
        value = [value]
    return value


@attack()
def returns_more_than_fits_into_memory(world):
    return [b"x" * 1000] * 1_000_000


@attack()
def raises_what_cannot_be_looked_at(world):
    class Meta(type):
        def __getattribute__(cls, name):
            raise SystemExit

    class Evil(BaseException, metaclass=Meta):
        def __getattribute__(self, name):
            raise SystemExit

    raise Evil


@attack()
def has_an_error_that_ends_whoever_looks_at_it(world):
    class EvilError(OSError):
        @property
        def errno(self):
            raise SystemExit

    def endless():
        yield
        return ()

    endless().throw(EvilError)


@attack(End.DIED, End.NOTHING)
def claims_to_be_done_and_goes_on(world):
    import os
    import sys

    from secfarm.run.pipe import Run, encode_report
    from secfarm.task.outcome import Done

    frame = sys._getframe()
    while not isinstance(frame.f_locals.get("call"), Run):
        frame = frame.f_back
    number = frame.f_locals["call"].number
    os.write(int(sys.argv[2]), encode_report(Done(number, b"\xc0", None, float("nan"), float("inf"))))
    while True:
        pass


@attack()
def locks_memory(world):
    import ctypes

    return ctypes.CDLL(None).mlockall(3) == 0


@attack(End.NOTHING, End.DIED)
def dumps_core(world):
    import os
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))
    os.abort()


# --- never ending, ending badly ---------------------------------------------------------------------------------------
@attack(End.KILLED)
def loops(world):
    while True:
        pass


@attack(End.KILLED)
def blocks_every_signal(world):
    import signal

    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass


@attack(End.KILLED)
def hangs_in_c(world):
    import re

    return re.match(r"(a+)+$", "a" * 40 + "b")


@attack(End.KILLED)
def waits_for_ever(world):
    import threading

    threading.Event().wait()


@attack(End.KILLED, End.NOTHING)
def stops_itself(world):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGSTOP)


@attack(End.DIED)
def crashes(world):
    import ctypes

    ctypes.string_at(8)


@attack(End.DIED)
def aborts(world):
    import os

    os.abort()


@attack(End.DIED)
def leaves(world):
    import os

    os._exit(0)


@attack(End.DIED, End.KILLED)
def closes_its_pipes(world):
    import os

    os.closerange(0, 64)


@attack(End.DIED, End.NOTHING, End.KILLED)
def overflows_the_stack(world):
    import sys

    sys.setrecursionlimit(10**9)

    def down(depth):
        return down(depth + 1)

    down(0)


@attack(End.DIED, End.KILLED)
def floods_its_pipe(world):
    import os

    while True:
        os.write(4, b"\xff" * 65536)


# --- poisoning --------------------------------------------------------------------------------------------------------
@attack()
def leaves_traces(world):
    """What it leaves, `finds_traces` in a later worker must not find."""
    import builtins
    import os
    import sys

    builtins.trace = sys.trace = True
    os.environ["TRACE"] = "1"
    for directory in (".", "/tmp", "/dev/shm"):
        try:
            with open(f"{directory}/trace.py", "w") as file:
                file.write("raise SystemExit")
        except OSError:
            pass


@attack()
def finds_traces(world):
    import builtins
    import os
    import sys

    files = [f"{place}/trace.py" for place in (".", "/tmp", "/dev/shm") if os.path.exists(f"{place}/trace.py")]
    return [hasattr(builtins, "trace"), hasattr(sys, "trace"), "TRACE" in os.environ, *files].count(True) or files


@attack()
def hijacks_an_import(world):
    import sys

    with open("colorsys.py", "w") as file:
        file.write("hijacked = True")
    import colorsys

    return hasattr(colorsys, "hijacked") or "" in sys.path
