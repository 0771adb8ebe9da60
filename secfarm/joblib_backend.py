"""joblib on a kernel: `with joblib.parallel_config(backend="secfarm"):`, for functions that can travel.

joblib's other backends pickle a batch of calls; here each call of it is one task, its function sent as source or by
name like any other, and refused in plain words where that cannot be. To import this module registers the backend.
"""

from __future__ import annotations

import concurrent.futures
import threading
from typing import TYPE_CHECKING, Final

import joblib
from joblib.parallel import ParallelBackendBase

from secfarm.errors import SecfarmError
from secfarm.farm.current import check_kernel
from secfarm.farm.future import Future

if TYPE_CHECKING:
    from collections.abc import Callable

    from joblib.parallel import BatchedCalls

    from secfarm.farm.kernel import Kernel

    Sent = list[concurrent.futures.Future[object]]

_FEWEST: Final = 2  # joblib runs everything here, in the client, where it is told of one worker


class SecfarmBackend(ParallelBackendBase):  # type: ignore[misc]
    """What joblib calls the backend `secfarm`.

    `parallel_config(backend="secfarm", kernel=kernel)`; without `kernel` the current one. `n_jobs=-1`, the default, is
    the kernel's worker count. Any other number only says how many calls are sent ahead; where they run is the kernel's
    business. `n_jobs=1` is joblib's word for calling everything here.
    """

    default_n_jobs = -1
    supports_retrieve_callback = True  # and by that timeouts and generators

    def __init__(self, *, kernel: Kernel | None = None, nesting_level: int | None = None) -> None:
        super().__init__(nesting_level=nesting_level)
        self._kernel = kernel
        self._outstanding: set[concurrent.futures.Future[object]] = set()
        # joblib reads the user's iterator in its callbacks, for which the loop's thread must not wait.
        self._callbacks = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="secfarm-joblib")

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many calls run at a time, at least 2 unless 1 is asked for.

        Raises:
            ValueError: `n_jobs` is 0.
            NoKernelError: no kernel was given, and there is no current one.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs is not 0: that would be nobody")
        if n_jobs is None or n_jobs < 0:
            workers = (self._kernel or check_kernel()).worker_count
            return max(_FEWEST, workers + 1 + (n_jobs or -1))
        return n_jobs

    def submit(self, func: BatchedCalls, callback: Callable[[Sent], object]) -> Sent:
        """Send the calls of a batch; `callback` is called with what is returned here when all are done.

        What cannot be sent is a future that has failed: joblib calls this from its callbacks too, where nobody would
        see an error.
        """
        sent: Sent = []
        try:
            kernel = self._kernel or check_kernel()
            for function, args, kwargs in func.items:
                sent.append(kernel.submit(function, *args, **kwargs))
        except SecfarmError as error:
            refused: concurrent.futures.Future[object] = concurrent.futures.Future()
            refused.set_exception(error)
            sent.append(refused)
        left, lock = len(sent), threading.Lock()

        def one_is_done(future: concurrent.futures.Future[object]) -> None:
            nonlocal left
            self._outstanding.discard(future)
            with lock:
                left -= 1
                last = not left
            if last:
                self._callbacks.submit(callback, sent)

        self._outstanding.update(sent)
        for future in sent:
            future.add_done_callback(one_is_done)
        return sent

    def retrieve_result_callback(self, out: Sent) -> list[object]:
        """Return the results of a batch; the first error in order is raised."""
        return [future.result() for future in out]

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: ARG002, FBT001, FBT002 - joblib's signature
        """Take back what is not done, and kill what runs."""
        for future in list(self._outstanding):
            if isinstance(future, Future):
                future.cancel_soon()


def register() -> None:
    """Tell joblib of the backend. Twice is no error."""
    joblib.register_parallel_backend("secfarm", SecfarmBackend)


register()
