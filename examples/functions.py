"""The eight tools of the demo as Python functions: pure, offline, and the same answer every time.

`toolcall-ft chat` runs them when the model calls them. A real service would ask a weather station or a database here.
"""
from typing import Literal
from zlib import crc32

NOTICES = []  # the notice board, in memory
SKIES = ["晴", "多云", "阴", "小雨", "大风"]


def _pick(text: str, choices: list, salt: str = ""):
    """The same choice for the same text, every time."""
    return choices[crc32(f"{text}{salt}".encode()) % len(choices)]


def HandleTongzhiTonggao(operation: Literal["ADD", "DELETE", "UPDATE", "LIST"], type: Literal["时讯消息", "通告"], content: str = "") -> dict:
    """管理时讯消息和通告

    Args:
        operation: 操作
        type: 消息类型
        content: 消息内容
    """
    mine = [notice for notice in NOTICES if notice["type"] == type]
    if operation == "LIST":
        return {"notices": [notice["content"] for notice in mine]} if mine else {"message": f"没有{type}"}
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


def WeatherApi(query_key: str) -> dict:
    """查询市、区县的天气

    Args:
        query_key: 地区
    """
    return get_weather(query_key)


def WaterMachineApi(operation: Literal["水壶取水", "水壶停水", "停止加热", "开始保温", "停止保温", "打开语音", "关闭语音"]) -> dict:
    """操作饮水机

    Args:
        operation: 操作指令
    """
    return {"message": f"已经{operation}"}


def HealthReportSimple(health_report_question: str) -> dict:
    """查询睡眠和健康数据

    Args:
        health_report_question: 用户的原问题
    """
    return {"sleep_hours": _pick(health_report_question, [6.5, 7, 7.5, 8]), "heart_rate": _pick(health_report_question, [58, 62, 66, 71], "heart")}


def DirectLLMCommunityAiUser(question: str) -> dict:
    """回答其他问题

    Args:
        question: 用户的原问题
    """
    return {"answer": f"这个问题交给通用大模型回答：{question}"}


def get_weather(city: str) -> dict:
    """查询城市天气

    Args:
        city: 城市
    """
    return {"weather": _pick(city, SKIES), "temperature": _pick(city, list(range(2, 34)), "degrees")}


def search_restaurants(location: str, sort_by: Literal["rating", "distance", "price"] = "rating") -> dict:
    """搜索餐厅

    Args:
        location: 地点
        sort_by: 排序方式
    """
    return {"restaurants": [_pick(location, ["老王面馆", "江南小厨", "好运来饭店", "海边餐厅"], sort_by), _pick(location, ["家常菜馆", "一品烤鱼", "春风茶楼"], sort_by)]}


def search_tourist_spots(location: str) -> dict:
    """搜索景点

    Args:
        location: 地点
    """
    return {"spots": [_pick(location, ["老城墙", "中心公园", "古塔", "湖边步道"]), _pick(location, ["博物馆", "花市", "观景台"])]}
