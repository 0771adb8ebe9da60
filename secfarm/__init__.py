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
    from secfarm.farm.channel import (
        Channel,
        do_fast_receives,
        make_channel,
        receive_result,
        submit_task,
        try_receive_result,
    )
    from secfarm.farm.cognates import (
        pand,
        pdotimes,
        pfuncall,
        pmap,
        pmap_into,
        pmapc,
        pmapcan,
        pmapcar,
        pmapcon,
        pmapl,
        pmaplist,
        pmaplist_into,
        por,
    )
    from secfarm.farm.current import (
        broadcast_task,
        check_kernel,
        current_kernel,
        end_kernel,
        kernel_name,
        kernel_worker_count,
        kill_tasks,
        set_kernel,
        task_categories_running,
        task_category,
        task_priority,
        use_kernel,
    )
    from secfarm.farm.deftask import Task, deftask, task_from_source
    from secfarm.farm.future import Future
    from secfarm.farm.kernel import Kernel, make_kernel
    from secfarm.farm.launcher import LocalServers, end_server, local_kernel, ping, start_local_servers
    from secfarm.farm.promise import (
        Delay,
        Promise,
        chain,
        delay,
        force,
        fulfill,
        fulfilledp,
        future,
        plet,
        plet_if,
        promise,
        speculate,
    )
    from secfarm.farm.ptree import Ptree
    from secfarm.farm.receipts import verify_receipt
    from secfarm.farm.reductions import pmap_reduce, preduce, preduce_partial
    from secfarm.farm.remote import end_local_servers, end_remote_servers, start_remote_servers
    from secfarm.farm.search import (
        pcount,
        pcount_if,
        pcount_if_not,
        pevery,
        pfind,
        pfind_if,
        pfind_if_not,
        pnotany,
        pnotevery,
        premove,
        premove_if,
        premove_if_not,
        psome,
    )
    from secfarm.farm.sorting import psort
    from secfarm.farm.timeout import Timeout, cancel_timeout, submit_timeout
    from secfarm.sign.keys import PublicKey, SigningKey
    from secfarm.task.progress import progress
    from secfarm.trust.receipt import Receipt

    __version__: str

__all__ = [
    "AuthError",
    "BadSignatureError",
    "Channel",
    "ConfigError",
    "ConnectionLostError",
    "Delay",
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
    "Promise",
    "ProtocolError",
    "Ptree",
    "PtreeError",
    "PublicKey",
    "PythonVersionError",
    "Receipt",
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
    "Timeout",
    "TrustFileError",
    "UndefinedNodeError",
    "UntrustedKeyError",
    "ValueTransferError",
    "VerifyError",
    "WorkerLostError",
    "WrongAudienceError",
    "broadcast_task",
    "cancel_timeout",
    "chain",
    "check_kernel",
    "current_kernel",
    "deftask",
    "delay",
    "do_fast_receives",
    "end_kernel",
    "end_local_servers",
    "end_remote_servers",
    "end_server",
    "force",
    "fulfill",
    "fulfilledp",
    "future",
    "kernel_name",
    "kernel_worker_count",
    "kill_tasks",
    "local_kernel",
    "make_channel",
    "make_kernel",
    "pand",
    "pcount",
    "pcount_if",
    "pcount_if_not",
    "pdotimes",
    "pevery",
    "pfind",
    "pfind_if",
    "pfind_if_not",
    "pfuncall",
    "ping",
    "plet",
    "plet_if",
    "pmap",
    "pmap_into",
    "pmap_reduce",
    "pmapc",
    "pmapcan",
    "pmapcar",
    "pmapcon",
    "pmapl",
    "pmaplist",
    "pmaplist_into",
    "pnotany",
    "pnotevery",
    "por",
    "preduce",
    "preduce_partial",
    "premove",
    "premove_if",
    "premove_if_not",
    "progress",
    "promise",
    "psome",
    "psort",
    "receive_result",
    "set_kernel",
    "speculate",
    "start_local_servers",
    "start_remote_servers",
    "start_server",
    "submit_task",
    "submit_timeout",
    "task_categories_running",
    "task_category",
    "task_from_source",
    "task_priority",
    "try_receive_result",
    "use_kernel",
    "verify_receipt",
]

# Module -> its public names. tests/test_repository.py holds this, the imports above and __all__ together.
_HOMES: Final = {
    "secfarm.daemon.process": ("start_server",),
    "secfarm.farm.channel": (
        "Channel",
        "do_fast_receives",
        "make_channel",
        "receive_result",
        "submit_task",
        "try_receive_result",
    ),
    "secfarm.farm.current": (
        "broadcast_task",
        "check_kernel",
        "current_kernel",
        "end_kernel",
        "kernel_name",
        "kernel_worker_count",
        "kill_tasks",
        "set_kernel",
        "task_categories_running",
        "task_category",
        "task_priority",
        "use_kernel",
    ),
    "secfarm.farm.deftask": ("Task", "deftask", "task_from_source"),
    "secfarm.farm.future": ("Future",),
    "secfarm.farm.kernel": ("Kernel", "make_kernel"),
    "secfarm.farm.launcher": ("LocalServers", "end_server", "local_kernel", "ping", "start_local_servers"),
    "secfarm.farm.cognates": (
        "pand",
        "pdotimes",
        "pfuncall",
        "pmap",
        "pmap_into",
        "pmapc",
        "pmapcan",
        "pmapcar",
        "pmapcon",
        "pmapl",
        "pmaplist",
        "pmaplist_into",
        "por",
    ),
    "secfarm.farm.promise": (
        "Delay",
        "Promise",
        "chain",
        "delay",
        "force",
        "fulfill",
        "fulfilledp",
        "future",
        "plet",
        "plet_if",
        "promise",
        "speculate",
    ),
    "secfarm.farm.ptree": ("Ptree",),
    "secfarm.farm.receipts": ("verify_receipt",),
    "secfarm.farm.reductions": ("pmap_reduce", "preduce", "preduce_partial"),
    "secfarm.farm.remote": ("end_local_servers", "end_remote_servers", "start_remote_servers"),
    "secfarm.farm.search": (
        "pcount",
        "pcount_if",
        "pcount_if_not",
        "pevery",
        "pfind",
        "pfind_if",
        "pfind_if_not",
        "pnotany",
        "pnotevery",
        "premove",
        "premove_if",
        "premove_if_not",
        "psome",
    ),
    "secfarm.farm.sorting": ("psort",),
    "secfarm.farm.timeout": ("Timeout", "cancel_timeout", "submit_timeout"),
    "secfarm.sign.keys": ("PublicKey", "SigningKey"),
    "secfarm.task.progress": ("progress",),
    "secfarm.trust.receipt": ("Receipt",),
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
