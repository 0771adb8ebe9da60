"""Which system calls which worker may make: the lists that `seccomp` turns into a filter.

Allowed is what CPython and numpy need to compute, to use files and threads of their own, and asyncio. A call that is
in no list is ENOSYS. Reasons stand where a call looks harmless and is not.
"""

from __future__ import annotations

from signal import SIGKILL
from typing import TYPE_CHECKING, Final

from secfarm.run.seccomp import Rules, Whole, Word

if TYPE_CHECKING:
    from secfarm.run.profile import Openings
    from secfarm.run.seccomp import Cases

_ALWAYS: Final = frozenset(
    """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range dup dup2 dup3
    pipe pipe2 poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
    eventfd eventfd2 timerfd_create timerfd_settime timerfd_gettime signalfd signalfd4
    open openat stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 readlink readlinkat
    getcwd chdir fchdir getdents getdents64 umask ftruncate fsync fdatasync sync_file_range fadvise64 fallocate
    flock copy_file_range sendfile splice tee readahead
    getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr
    brk mmap munmap mremap mprotect pkey_mprotect madvise msync mincore membarrier rseq cachestat
    futex futex_waitv set_robust_list get_robust_list set_tid_address sched_yield exit exit_group restart_syscall
    nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times getrusage sysinfo uname getcpu
    getitimer setitimer alarm timer_create timer_settime timer_gettime timer_getoverrun timer_delete pause
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack
    getpid getppid gettid getpgid getpgrp getsid getuid geteuid getgid getegid getresuid getresgid getgroups
    wait4 waitid getrlimit setrlimit getpriority sched_getaffinity sched_getparam sched_getscheduler
    sched_get_priority_max sched_get_priority_min sched_rr_get_interval getrandom capget
    recvfrom getsockname getpeername getsockopt shutdown
    """.split()  # noqa: SIM905 a list of 150 names reads better so
)
# By path, and thus only where there is a scratch: of the rights of these calls Landlock knows some, of modes and
# times none.
_FILES: Final = frozenset(
    """
    creat truncate rename renameat renameat2 mkdir mkdirat rmdir unlink unlinkat link linkat symlink symlinkat
    chmod fchmod fchmodat fchmodat2 utime utimes futimesat utimensat
    """.split()  # noqa: SIM905 a list of 150 names reads better so
)
_PROCESSES: Final = frozenset({"fork", "vfork", "execve", "setsid", "setpgid", "arch_prctl", "kill", "tgkill"})
_NETWORK: Final = frozenset(
    {"connect", "bind", "listen", "accept", "accept4", "setsockopt"}
    | {"sendto", "sendmsg", "sendmmsg", "recvmsg", "recvmmsg"}
)
# Known and never: they read as forbidden. What is not listed here is refused all the same.
_NEVER: Final = frozenset(
    """
    fork vfork execve execveat setsid setpgid
    ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp pidfd_open pidfd_send_signal
    pidfd_getfd tkill rt_sigqueueinfo rt_tgsigqueueinfo
    unshare setns chroot pivot_root mount umount2 mount_setattr open_tree move_mount fsopen fsconfig fsmount fspick
    setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset personality seccomp
    landlock_create_ruleset landlock_add_rule landlock_restrict_self
    keyctl add_key request_key bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register
    io_setup io_submit io_cancel io_destroy io_getevents fanotify_init fanotify_mark
    open_by_handle_at name_to_handle_at mknod mknodat chown fchown lchown fchownat
    setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
    memfd_create memfd_secret shmget shmat shmctl shmdt semget semop semctl msgget msgsnd msgrcv msgctl
    mq_open mq_unlink remap_file_pages vmsplice modify_ldt iopl ioperm
    reboot kexec_load kexec_file_load init_module finit_module delete_module swapon swapoff acct syslog quotactl
    sethostname setdomainname settimeofday clock_settime clock_adjtime adjtimex vhangup
    sched_setaffinity sched_setscheduler sched_setparam sched_setattr setpriority ioprio_set
    mbind set_mempolicy migrate_pages move_pages mlock mlock2 mlockall
    """.split()  # noqa: SIM905 a list of 150 names reads better so
)

# glibc's and musl's flags of pthread_create, to the bit. clone3 keeps its flags in memory, where a filter cannot see
# them; libc falls back to clone when it is ENOSYS.
_THREAD: Final = (0x003D0F00, 0x007D0F00)
_NEW_NAMESPACES: Final = 0x7E020000
_PROT_WRITE, _PROT_EXEC = 2, 4
_STREAM, _DATAGRAM = 1, 2
_SOCKET_FLAGS: Final = 0x80800  # SOCK_CLOEXEC and SOCK_NONBLOCK
_WRITES: Final = 0o20001103  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, and O_TMPFILE's own bit
_IOCTLS: Final = (
    *(0x5401, 0x5413, 0x541B),  # TCGETS, TIOCGWINSZ, FIONREAD
    *(0x5421, 0x5450, 0x5451),  # FIONBIO, FIONCLEX, FIOCLEX
)
# No F_SETOWN and F_SETSIG, which send signals; no F_SETPIPE_SZ and F_SETLEASE, which take memory and stop others.
_FCNTLS: Final = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1034)
_PRCTLS: Final = (
    *(2, 3, 15, 16),  # PR_GET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME
    *(21, 23, 39, 66),  # PR_GET_SECCOMP, PR_CAPBSET_READ, PR_GET_NO_NEW_PRIVS, PR_GET_MDWE
)

# What a zygote does and no worker: it makes namespaces and forks.
_ZYGOTE: Final = frozenset(
    """
    fork vfork sendmsg recvmsg pidfd_open unshare setns mount umount2 mount_setattr pivot_root sethostname setsid
    setgroups setresuid setresgid capset seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self
    """.split()  # noqa: SIM905 as the others
)


def zygote_rules(openings: Openings) -> Rules:
    """Return what a zygote may call: what its workers may, whatever the arguments, and what it makes them by."""
    worker = worker_rules(openings, pid=1, has_scratch=True, write_xor_execute=False)
    allowed = worker.allowed | worker.checked.keys() | _ZYGOTE
    return Rules(allowed, {}, worker.never - allowed)


def worker_rules(
    openings: Openings, *, pid: int, has_scratch: bool, write_xor_execute: bool, signals_inside: bool = False
) -> Rules:
    """Return what a worker may call.

    Args:
        pid: the worker's, as it sees it itself: the only process that it may send a signal.
        has_scratch: there is a place where files may be written.
        write_xor_execute: no memory is to be both, or to become executable.
        signals_inside: a layer below keeps its signals to what it started.
    """
    allowed = _ALWAYS | (_FILES if has_scratch else frozenset())
    checked: dict[str, Cases] = {
        "clone": [[Whole(0, _THREAD)]],
        "kill": [[Word(0, (pid,))]],
        "tgkill": [[Word(0, (pid,))]],
        "ioctl": [[Word(1, _IOCTLS)]],
        "fcntl": [[Word(1, _FCNTLS)]],
        "prctl": [[Word(0, _PRCTLS)]],
        "prlimit64": [[Word(0, (0,))]],
        # asyncio's own wake-up. A datagram socket could be aimed at another by sendto.
        "socketpair": [[Word(0, (1,)), Word(1, (_STREAM,), ~_SOCKET_FLAGS & 0xFFFFFFFF)]],
        "sendto": [[Whole(4, (0,))]],
    }
    if write_xor_execute:
        checked["mmap"] = [[Word(2, (0,), _PROT_WRITE)], [Word(2, (0,), _PROT_EXEC)]]
        checked["mprotect"] = checked["pkey_mprotect"] = [[Word(2, (0,), _PROT_EXEC)]]
    if not has_scratch:
        checked["open"] = [[Word(1, (0,), _WRITES)]]
        checked["openat"] = [[Word(2, (0,), _WRITES)]]
    if openings.network:
        allowed |= _NETWORK
        del checked["sendto"]
        checked["socket"] = [[Word(0, (2, 10)), Word(1, (_STREAM, _DATAGRAM), ~_SOCKET_FLAGS & 0xFFFFFFFF)]]
    if openings.subprocesses:
        allowed |= _PROCESSES
        if signals_inside:
            del checked["kill"], checked["tgkill"]
        checked["clone"] = [[Word(0, (0,), _NEW_NAMESPACES)]]
    # The kernel keeps process 1 of a namespace from killing itself; here it does, as any process may.
    suicide = {"kill": 1, "tgkill": 2} if pid == 1 else {}
    fatal = {name: [[Word(0, (1,)), Word(place, (SIGKILL,))]] for name, place in suicide.items()}
    return Rules(allowed, checked, (_NEVER | _FILES | _NETWORK | {"socket"}) - allowed - checked.keys(), fatal)
