"""`vitrail demo`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..demo.server import serve
from ..demo.site import demo
from ..errors import UserError
from .parsing import Call, Parser, help_of, parser_of
from .printing import print_json, say, write_line

PORT = 8000


def parser() -> Parser:
    """Its options."""
    made = parser_of("demo")
    made.add_argument("weights", help=help_of(demo, "weights"))
    made.add_argument("--images", nargs="+", default=[], help=help_of(demo, "images"))
    made.add_function_arguments(demo, skip={"weights", "images", "note"})
    made.add_argument("--serve", type=bool, default=False, help="open a local server with the page until Ctrl-C")
    made.add_argument(
        "--port", type=int | None, default=None, help=f"of the server, on this machine only; 0 = any; None = {PORT}"
    )
    return made


def run(call: Call) -> int:
    """Write the page, print what it is made of, and serve it if wished for; returns the exit code.

    Raises:
        UserError: a port without a server, or one that cannot be used.
    """
    values = call.values
    serves, port = values.pop("serve"), values.pop("port")
    if port is not None and not serves:
        raise UserError(f"--port {port} has no effect without --serve.")
    if port is not None and not 0 <= port < 65_536:
        raise UserError(f"--port {port} is not allowed; give a number from 0 to 65535.")
    site = demo(**values, note=say)
    if call.as_json:
        print_json(dataclasses.asdict(site))
    else:
        head = f" under {site.head}" if site.head else ""
        write_line(
            f"{site.network}{head}, {site.classes} classes, in {site.output}: {len(site.files)} files, "
            f"{sum(site.files.values()) / 1e6:.1f} MB, of which the network has {site.files['network.onnx'] / 1e6:.1f}"
        )
        write_line(f"largest difference to PyTorch: {site.difference:.2g} of the largest output")
        write_line(f"example images: {site.examples}; onnxruntime-web {site.runtime}")
    if serves:
        serve(Path(site.output), site.files, PORT if port is None else port, say)
    return 0
