"""secfarm: a task farm that verifies before it compiles.

The public names, loaded when first asked for (PEP 562): a worker process imports this package too, and must not
come to hold sockets, ciphers or an event loop by it. The contract is docs/concepts.md.
"""

from typing import TYPE_CHECKING, Final

from secfarm.errors import (
    AuthError,
    BadSignatureError,
    ConfigError,
    ConnectionLostError,
    ExpiredError,
    InvalidTaskError,
    KernelCreationError,
    KernelError,
    KeyFileError,
    MissingModulesError,
    NoKernelError,
    PolicyError,
    ProtocolError,
    PtreeError,
    PythonVersionError,
    RedefinedNodeError,
    ReplayedError,
    ResourceExceededError,
    RevokedKeyError,
    RewoundError,
    SecfarmError,
    TaskError,
    TaskExecutionError,
    TaskKilledError,
    TaskRefusedError,
    TaskTimeoutError,
    TrustFileError,
    UndefinedNodeError,
    UntrustedKeyError,
    ValueTransferError,
    VerifyError,
    WorkerLostError,
    WrongAudienceError,
)

if TYPE_CHECKING:
    from secfarm.daemon.process import start_server
    from secfarm.farm.channel import Channel, make_channel, receive_result, submit_task, try_receive_result
    from secfarm.farm.current import (
        broadcast_task,
        check_kernel,
        current_kernel,
        end_kernel,
        kernel_name,
        kernel_worker_count,
        set_kernel,
        use_kernel,
    )
    from secfarm.farm.deftask import Task, deftask, task_from_source
    from secfarm.farm.future import Future
    from secfarm.farm.kernel import Kernel, make_kernel
    from secfarm.farm.launcher import LocalServers, end_server, local_kernel, ping, start_local_servers
    from secfarm.sign.keys import PublicKey, SigningKey

    __version__: str

__all__ = [
    "AuthError",
    "BadSignatureError",
    "Channel",
    "ConfigError",
    "ConnectionLostError",
    "ExpiredError",
    "Future",
    "InvalidTaskError",
    "Kernel",
    "KernelCreationError",
    "KernelError",
    "KeyFileError",
    "LocalServers",
    "MissingModulesError",
    "NoKernelError",
    "PolicyError",
    "ProtocolError",
    "PtreeError",
    "PublicKey",
    "PythonVersionError",
    "RedefinedNodeError",
    "ReplayedError",
    "ResourceExceededError",
    "RevokedKeyError",
    "RewoundError",
    "SecfarmError",
    "SigningKey",
    "Task",
    "TaskError",
    "TaskExecutionError",
    "TaskKilledError",
    "TaskRefusedError",
    "TaskTimeoutError",
    "TrustFileError",
    "UndefinedNodeError",
    "UntrustedKeyError",
    "ValueTransferError",
    "VerifyError",
    "WorkerLostError",
    "WrongAudienceError",
    "broadcast_task",
    "check_kernel",
    "current_kernel",
    "deftask",
    "end_kernel",
    "end_server",
    "kernel_name",
    "kernel_worker_count",
    "local_kernel",
    "make_channel",
    "make_kernel",
    "ping",
    "receive_result",
    "set_kernel",
    "start_local_servers",
    "start_server",
    "submit_task",
    "task_from_source",
    "try_receive_result",
    "use_kernel",
]

# Module -> its public names. tests/test_repository.py holds this, the imports above and __all__ together.
_HOMES: Final = {
    "secfarm.daemon.process": ("start_server",),
    "secfarm.farm.channel": ("Channel", "make_channel", "receive_result", "submit_task", "try_receive_result"),
    "secfarm.farm.current": (
        "broadcast_task",
        "check_kernel",
        "current_kernel",
        "end_kernel",
        "kernel_name",
        "kernel_worker_count",
        "set_kernel",
        "use_kernel",
    ),
    "secfarm.farm.deftask": ("Task", "deftask", "task_from_source"),
    "secfarm.farm.future": ("Future",),
    "secfarm.farm.kernel": ("Kernel", "make_kernel"),
    "secfarm.farm.launcher": ("LocalServers", "end_server", "local_kernel", "ping", "start_local_servers"),
    "secfarm.sign.keys": ("PublicKey", "SigningKey"),
}

# A type checker sees the imports above instead; a __getattr__ would make every misspelt name an `object` to it.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Load a public name from its module and keep it."""
        import importlib

        if name == "__version__":
            from importlib.metadata import version

            value: object = version("secfarm")
        else:
            home = next((module for module, names in _HOMES.items() if name in names), None)
            if home is None:
                raise AttributeError(f"module 'secfarm' has no attribute {name!r}")
            value = getattr(importlib.import_module(home), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """Return what is public, loaded or not."""
        return sorted({*globals(), *__all__, "__version__"})
