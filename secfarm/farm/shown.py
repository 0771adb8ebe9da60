"""How kernels, channels and futures look in a notebook. Whatever a peer or a user wrote is text there, never markup."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from secfarm.farm.link import Link


def html_table(title: str, heads: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    """Return a table as HTML, with everything in it escaped."""
    head = "".join(f"<th>{_cell(name)}</th>" for name in heads) if any(heads) else ""
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return f"<table><caption>{_cell(title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def servers_html(title: str, links: Iterable[Link]) -> str:
    """Return a table of servers, each once, as they were when last heard of."""
    rows = [
        (str(link.address), link.server_name, link.python_version, 0 if link.seat is None else link.seat.workers)
        for link in dict.fromkeys(links)
    ]
    return html_table(title, ("address", "server", "Python", "workers"), rows)


def _cell(value: object) -> str:
    text = str(value)
    visible = text if text.isprintable() else ascii(text)[1:-1]  # what would turn the direction of text, or hide it
    return html.escape(visible)
