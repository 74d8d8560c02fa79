"""The four tools of the course as Python functions: offline, and the same answer every time.

`toolcall-ft chat` and lesson 10 run them when the model calls them. A real service would ask a database here.
"""

from typing import Literal
from zlib import crc32

NOTICES = []  # the notice board, in memory
SKIES = ["晴", "多云", "阴", "小雨", "大风"]


def HandleTongzhiTonggao(
    operation: Literal["ADD", "DELETE", "UPDATE", "LIST"],
    type: Literal["时讯消息", "通告"],
    content: str = "",
) -> dict:
    """管理时讯消息和通告

    Args:
        operation: 操作
        type: 消息类型
        content: 消息内容
    """
    mine = [notice for notice in NOTICES if notice["type"] == type]
    if operation == "LIST":
        return {"notices": [notice["content"] for notice in mine]}
    if operation == "ADD":
        NOTICES.append({"type": type, "content": content})
        return {"message": f"{type}已发布"}
    if operation == "UPDATE":
        if mine:
            mine[-1]["content"] = content
        return {"message": f"{type}已更新" if mine else f"没有{type}"}
    found = [notice for notice in mine if content and content in notice["content"]]
    NOTICES[:] = [notice for notice in NOTICES if notice not in found]
    return {"message": f"{type}已删除" if found else f"没有这条{type}"}


def get_weather(city: str) -> dict:
    """查询城市天气

    Args:
        city: 城市
    """
    place = crc32(city.encode())
    return {"weather": SKIES[place % len(SKIES)], "temperature": place % 32 + 2}


def WaterMachineApi(
    operation: Literal[
        "水壶取水", "水壶停水", "停止加热", "开始保温", "停止保温", "打开语音", "关闭语音"
    ],
) -> dict:
    """操作饮水机

    Args:
        operation: 操作指令
    """
    return {"message": f"已经{operation}"}


def get_vector_sum(a: list[int], b: list[int]) -> list[int]:
    """Get the sum of two vectors

    Args:
        a: First vector
        b: Second vector
    """
    if len(a) != len(b):
        raise ValueError(f"the vectors have {len(a)} and {len(b)} elements")
    return [x + y for x, y in zip(a, b)]
