"""A small MCP server for the tests: `mcp_server.py stdio`, or `mcp_server.py http PORT` (streamable HTTP on 127.0.0.1)."""

import os
import sys
import time
from typing import Annotated, Literal

from mcp.server import MCPServer
from mcp_types import CallToolResult, ImageContent, TextContent
from pydantic import BaseModel, Field

server = MCPServer("shop")


class Address(BaseModel):
    street: str
    zip: Annotated[str, Field(pattern=r"^\d{5}$")]


@server.tool()
def price(item: Literal["tea", "rice"], count: Annotated[int, Field(ge=1, le=9)] = 1) -> dict:
    "The price of some items."
    return {"item": item, "total": {"tea": 3, "rice": 2}[item] * count}


@server.tool()
def ship(to: Address, note: str | None = None) -> str:
    "Ship the order to an address."
    return f"Shipped to {to.street}, {to.zip}: {note}"


@server.tool()
def items() -> list[str]:
    "All items."
    return ["tea", "rice"]


@server.tool()
def fail(why: str) -> str:
    "Fails."
    raise ValueError(f"no: {why}")


@server.tool()
def picture() -> CallToolResult:
    "A picture of the shop."
    return CallToolResult(
        content=[
            TextContent(type="text", text="Here:"),
            ImageContent(type="image", data="AAAA", mime_type="image/png"),
        ]
    )


@server.tool()
def sleep(seconds: float) -> str:
    "Sleeps."
    time.sleep(seconds)
    return "awake"


@server.tool()
def die() -> str:
    "Ends the server."
    os._exit(3)


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        server.run()
    else:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[2]))
