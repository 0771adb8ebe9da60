"""The daemon that `farm/launcher.py` starts: a server in one process, whose keys are thrown away.

Its zygote is started before anything large is imported, so that the two start at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from secfarm.errors import SecfarmError
from secfarm.run.launch import Launched, launch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from secfarm.disk.config import ServerConfig
    from secfarm.wire.address import Address


def main(arguments: Sequence[str]) -> int:
    """Serve: configuration file, lifeline descriptor, descriptor for the answer.

    The answer is one JSON line: the addresses, or why there are none. With a fourth argument, `throw-away`, the
    configuration's folder is removed at the end, and the folder around it once that is empty: by then the owner may
    be gone.
    """
    path, lifeline, answer = arguments[0], int(arguments[1]), int(arguments[2])
    first = _First()

    def tell(message: dict[str, object]) -> None:
        with os.fdopen(answer, "w", encoding="utf-8") as pipe:
            pipe.write(json.dumps(message) + "\n")

    try:
        from secfarm.daemon.make import loop_factory
        from secfarm.disk.config import load_server_config

        serving = _serve(
            load_server_config(path, {}),
            first,
            lambda addresses: tell({"addresses": [str(address) for address in addresses]}),
            lifeline,
        )
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(serving)
    except SecfarmError as error:
        tell({"error": str(error)})
        return int(error.exit_status)
    finally:
        first.close()
        if arguments[3:] == ["throw-away"]:
            folder = Path(path).parent
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.parent.rmdir()
    return 0


class _First:
    """A zygote that is on its way, for whoever launches one first."""

    def __init__(self) -> None:
        self._launched: Launched | None = launch()

    def __call__(self) -> Launched:
        launched, self._launched = self._launched or launch(), None
        return launched

    def close(self) -> None:
        """End it, if nobody took it."""
        if self._launched is not None and self._launched.process is not None:
            self._launched.control.close()
            self._launched.process.wait()


async def _serve(
    config: ServerConfig,
    first: Callable[[], Launched],
    ready: Callable[[list[Address]], None],
    lifeline: int,
) -> None:
    from secfarm.daemon.make import make_server
    from secfarm.daemon.process import Ender

    server = make_server(config, None, None, launch=first)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, Ender(server))
    loop.add_reader(lifeline, server.stop)
    addresses = await server.start(config.listen, config.dial)
    gc.freeze()  # what lives as long as the process need not be looked at again by the collector
    ready(addresses)
    await server.finished.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
