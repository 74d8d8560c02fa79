"""Make logs.jsonl: the request logs of an imagined company that serves residential communities and travellers.

    python make_logs.py [--seed 0] [--output logs.jsonl]

Twenty *sites* send records. Before any record is made, every phrasing (prefix x verb x object x suffix, with {} for a
value) and every value (places, announcements, topics, ...) is dealt to exactly one site. So sites share the words for an
intent, but no phrasing and no value, and a split along sites tests requests that training has not seen. Each record names its
site as its `group`. The records are in the format of a request log: user, tool_name, arguments, and what goes with them.
"""
import argparse
import json
import random
from itertools import product
from pathlib import Path

import functions

SITES = 20
COMMUNITY = ["HandleTongzhiTonggao", "WeatherApi", "WaterMachineApi", "HealthReportSimple", "DirectLLMCommunityAiUser"]
TRAVEL = ["get_weather", "search_restaurants", "search_tourist_spots"]


def compose(*parts):
    """Every combination of one text from each part, joined."""
    return ["".join(choice) for choice in product(*parts)]


# --- Phrasings: prefix x verb x object x suffix -------------------------------------------------------------------------

BEFORE = ["", "请", "帮我", "请你", "请帮我", "给我", "我想", "我要", "你好，", "能不能", "可以", "快"]
AFTER = ["", "吧", "，谢谢", "，急用", "，好吗", "，等着用"]
LOOK = ["查一下", "看看", "查查", "查询", "说说", "看一下"]
FIND = ["找", "找找", "搜一下", "推荐", "查一下", "看看"]
PLEASE = ["", "Please ", "Hi, ", "Can you ", "Could you ", "Hello, ", "Now "]
LATER = ["", " please", " now", ", thanks", " for me"]

WEATHER = compose(BEFORE, LOOK, ["{}"], ["的天气", "今天的天气", "明天的天气", "的气温", "天气怎么样", "会不会下雨", "今天冷不冷", "热不热", "有没有风"], AFTER)
WEATHER_EN = compose(PLEASE, ["check the weather in {}", "tell me the weather in {}", "show the temperature in {}", "find out if it rains in {}", "see how warm it is in {}"], LATER)
WEATHER_PAIR = compose(BEFORE, LOOK, ["{}和{}", "{}跟{}", "{}、{}"], ["的天气", "今天的天气", "的气温", "的天气情况"], AFTER)
WEATHER_PAIR_EN = compose(PLEASE, ["check the weather in {} and {}", "tell me the weather in {} and {}", "compare the weather of {} and {}"], LATER)
WEATHER_OPEN = compose(BEFORE, LOOK, ["天气", "今天的天气", "明天的天气"], AFTER)

RESTAURANTS = {None: ["附近的餐厅", "附近的饭店", "好吃的饭店", "周边的餐厅", "有什么好吃的"],
               "rating": ["评分高的餐厅", "评分最高的饭店", "口碑好的餐厅", "口碑最好的饭店"],
               "distance": ["最近的餐厅", "离得近的饭店", "最近的饭店", "离得近的餐厅"],
               "price": ["便宜的餐厅", "价格低的饭店", "最便宜的饭店", "价格低的餐厅"]}
RESTAURANTS_EN = {None: ["restaurants in {}", "places to eat in {}"], "rating": ["top rated restaurants in {}", "the best rated food in {}"],
                  "distance": ["the nearest restaurants in {}", "the nearest food in {}"], "price": ["cheap restaurants in {}", "cheap food in {}"]}
SPOTS = compose(BEFORE, FIND, ["{}"], ["的景点", "好玩的地方", "有哪些景点", "的旅游景点", "值得去的地方"], AFTER)
SPOTS_EN = compose(PLEASE, ["find ", "show me ", "list "], ["sights in {}", "tourist spots in {}", "places to visit in {}"], LATER)

NOTICE_VERBS = {"ADD": ["新增", "发布", "发一条", "添加", "新建"], "DELETE": ["删除", "删掉", "撤下", "去掉"], "UPDATE": ["修改", "更新", "改一下"]}
NOTICE_JOINS = {"ADD": ["：{}", "，内容是{}", "，内容：{}", "，写{}"], "DELETE": ["：{}", "，内容是{}", "，就是{}"], "UPDATE": ["，改成{}", "，内容改为{}", "，新内容是{}", "：{}"]}
NOTICE_LIST = ["查看{}", "列出{}", "看看有哪些{}", "列出所有{}", "看一下全部{}"]
NOTICE_TYPES = ["时讯消息", "通告"]

WATER = {"水壶取水": ["给水壶取水", "给水壶接水", "打一壶水", "水壶加水", "让水壶取水"], "水壶停水": ["让水壶停水", "水壶停水", "水壶别加水了", "水壶不要接水了", "停止给水壶加水"],
         "停止加热": ["停止加热", "别加热了", "不要加热了", "关掉加热", "不用烧水了"], "开始保温": ["开始保温", "打开保温", "把水保温", "保持水温", "开启保温"],
         "停止保温": ["停止保温", "关掉保温", "不要保温了", "别保温了", "取消保温"], "打开语音": ["打开语音", "开启语音", "把语音打开", "让饮水机说话", "打开声音"],
         "关闭语音": ["关闭语音", "关掉语音", "把语音关了", "让饮水机别说话", "关掉声音"]}

HEALTH = compose(["", "请问", "我想知道", "说说我", "看看我", "我"], ["{}"], ["怎么样", "正常吗", "好不好", "有没有异常", "是多少", "有变化吗", "报告", "的情况", "高不高", "的分析"], ["", "，谢谢", "，说一下", "，有点担心"])
ASK = compose(["", "请问", "我想问", "想知道", "你知道", "问一下"], ["怎么{}", "如何{}", "{}要注意什么", "{}难不难", "{}有什么好处", "{}要多久", "为什么要{}", "什么时候{}最好"], ["", "，谢谢", "，说一下", "，不太懂"])

# --- Values --------------------------------------------------------------------------------------------------------------

PLACES = """北京 上海 天津 重庆 广州 深圳 杭州 南京 苏州 成都 武汉 西安 长沙 青岛 大连 厦门 昆明 海口 三亚 南宁 桂林 贵阳 福州 济南
郑州 合肥 南昌 太原 石家庄 沈阳 长春 哈尔滨 兰州 西宁 银川 拉萨 无锡 宁波 温州 珠海 中山 洛阳 开封 大同 延安 丽江 大理 黄山""".split()
NAME_START, NAME_END = "云石金松青长清临龙马安永兴宁富丰德双白古", "山川河湖桥岭林原水田港城州源"
PLACES_EN = "Paris London Berlin Madrid Rome Vienna Oslo Dublin Lisbon Prague Tokyo Kyoto Sydney Boston Denver Austin Toronto Cairo Delhi Lima".split()
SYLLABLES = ["Mar", "Bel", "Tor", "Lan", "Wes", "Har", "Nor", "Gar", "Kel", "Dun"], ["den", "ville", "ton", "field", "ford", "wick", "port", "burg"]

WHEN = ["明天上午", "明天下午", "今晚八点", "今晚九点", "周一早上", "周二早上", "周三下午", "周四下午", "周五晚上", "周六上午", "周日晚上", "下周一", "月底", "国庆期间"]
WHERE = ["一号楼", "二号楼", "三号楼", "五号楼", "北门", "南门", "东门", "地下车库", "活动中心", "健身房", "图书室", "小广场", "办公楼", "幼儿园门口"]
WHAT = ["停水两小时", "停电检查", "清洗水箱", "更换电梯", "消毒", "更换门锁", "免费量血压", "放映电影", "举行歌唱比赛", "修理路灯", "关闭一天", "开放报名", "发放口罩", "召开业主大会", "种树", "检查消防"]
TAILS = ["", "，请互相转告", "，请提前准备", "，欢迎参加", "，请大家注意", "！"]

PERIODS = ["昨晚", "昨天", "前天", "最近三天", "最近几天", "这周", "上周", "这个月", "上个月", "今早", "上半夜", "周末", "五月", "去年"]
MEASURES = ["睡眠质量", "睡眠时长", "睡眠效率", "睡眠评分", "深度睡眠", "浅度睡眠", "心率", "平均心率", "呼吸率", "呼吸次数", "体动次数", "健康评分", "血压", "体温", "入睡时间", "步数"]
TOPICS = compose(["学", "教孩子", "自己", "在家"], ["写毛笔字", "下围棋", "画画", "打太极", "做面包", "种花", "养鱼", "做饺子", "拉小提琴", "弹钢琴", "练瑜伽", "拍照片", "做木工", "写小说", "唱京剧",
                 "修自行车", "做酸奶", "织毛衣", "种西红柿", "泡茶", "跳舞", "说英语", "编程序", "理财"])

# --- Plain answers: no tool of the travel set fits -----------------------------------------------------------------------

SMALL_TALK = [(compose(["你好", "您好", "早上好", "下午好", "晚上好", "大家好"], ["", "呀", "，在吗", "，忙吗", "，又见面了"]), ["你好，请问要查什么？", "您好，我可以查天气、餐厅和景点。"]),
              (compose(["谢谢", "多谢", "太感谢了", "辛苦了", "好的谢谢"], ["", "你", "，再见", "，很有用", "，帮大忙了", "，先这样"]), ["不客气。", "不用谢，再见。"]),
              (compose(["Thanks", "Thank you", "Hello", "Good morning", "Good bye", "Great"], ["", " so much", " my friend", " again", " and take care"]), ["You are welcome.", "Happy to help."]),
              (compose(BEFORE, ["讲个笑话", "写一首诗", "唱一首歌", "算一道数学题", "订一张机票", "翻译一句话", "放一段音乐", "写一封信", "寄一个快递", "叫一辆车"], AFTER), ["抱歉，这个我做不到。", "抱歉，我只能查天气、餐厅和景点。"])]


# --- Dealing -------------------------------------------------------------------------------------------------------------

def deal(rng, items, each):
    """Shuffle, and give `each` items to every site. Nothing is given twice."""
    items = rng.sample(sorted(set(items)), SITES * each)
    return [items[i * each:(i + 1) * each] for i in range(SITES)]


def deal_labelled(rng, phrasings, each):
    """Deal a table {label: phrasings} so that every site gets `each` of every label, as (phrasing, label)."""
    dealt = {label: deal(rng, items, each) for label, items in phrasings.items()}
    return [[(phrasing, label) for label in phrasings for phrasing in dealt[label][i]] for i in range(SITES)]


def made_up_places(rng):
    """Names of towns that are nobody's: two characters, and an ending for some of them."""
    return [name + rng.choice(["", "", "镇", "县", "市", "区", "村"]) for name in compose(NAME_START, NAME_END)]


def deal_values(rng):
    """The values of every site, a list of dicts."""
    contents = [text + rng.choice(TAILS) for text in compose(WHEN, WHERE, WHAT)]
    pools = {"places": deal(rng, PLACES, 2), "towns": deal(rng, made_up_places(rng), 12), "english": deal(rng, PLACES_EN + compose(*SYLLABLES), 4),
             "contents": deal(rng, contents, 25), "measures": deal(rng, [f"{p}的{m}" for p, m in product(PERIODS, MEASURES)], 8), "topics": deal(rng, TOPICS, 4)}
    sites = [{name: pool[i] for name, pool in pools.items()} for i in range(SITES)]
    for site in sites:
        site["places"] += site.pop("towns")
    return sites


def deal_phrasings(rng):
    """The phrasings of every site, a list of dicts; those of the two weather tools are dealt together, since they share words."""
    weather, weather_en = deal(rng, WEATHER, 12), deal(rng, WEATHER_EN, 3)
    notice = {(op, kind): compose(BEFORE, NOTICE_VERBS[op], [kind], NOTICE_JOINS[op]) for op in NOTICE_VERBS for kind in NOTICE_TYPES}
    listing = {("LIST", kind): [p.format(kind) for p in compose(BEFORE, NOTICE_LIST, AFTER)] for kind in NOTICE_TYPES}
    opening = {kind: compose(BEFORE, NOTICE_VERBS["ADD"], [kind], AFTER) for kind in NOTICE_TYPES}
    food = {sort: compose(BEFORE, FIND, ["{}"], words, AFTER) for sort, words in RESTAURANTS.items()}
    food_en = {sort: compose(PLEASE, ["find ", "show me ", "list "], words, LATER) for sort, words in RESTAURANTS_EN.items()}
    pools = {"weather": [w[:6] for w in weather], "city": [w[6:] for w in weather], "city_en": weather_en, "pair": deal(rng, WEATHER_PAIR, 2),
             "pair_en": deal(rng, WEATHER_PAIR_EN, 1), "weather_open": deal(rng, WEATHER_OPEN, 3), "notice": deal_labelled(rng, notice, 3),
             "listing": deal_labelled(rng, listing, 1), "opening": deal_labelled(rng, opening, 2), "food": deal_labelled(rng, food, 2),
             "food_en": deal_labelled(rng, food_en, 1), "spots": deal(rng, SPOTS, 5), "spots_en": deal(rng, SPOTS_EN, 2),
             "water": deal_labelled(rng, {op: compose(BEFORE, words, AFTER) for op, words in WATER.items()}, 2),
             "health": deal(rng, HEALTH, 5), "ask": deal(rng, ASK, 5), "talk": deal_labelled(rng, {i: texts for i, (texts, _) in enumerate(SMALL_TALK)}, 1)}
    return [{name: pool[i] for name, pool in pools.items()} for i in range(SITES)]


# --- Records -------------------------------------------------------------------------------------------------------------

def record(user, tool_name, **arguments):
    return {"user": user, "tool_name": tool_name, "arguments": arguments}


def ask_back(first, question, reply):
    """The earlier turns of a record: somebody left something out and was asked for it."""
    return {**reply, "history": [{"role": "user", "content": first}, {"role": "assistant", "content": question}]}


def run_tool(rng, made, contents):
    """What the tool says to the call of a record; the notice board holds two notices, and every other time the one that is meant."""
    meant = [made["arguments"]["content"]] if "content" in made["arguments"] and rng.random() < .5 else []
    functions.NOTICES[:] = [{"type": made["arguments"].get("type"), "content": content} for content in meant + rng.sample(contents, rng.randint(0, 2))]
    return getattr(functions, made["tool_name"])(**made["arguments"])


def say(result):
    """A result as a sentence."""
    if "weather" in result:
        return f"{result['weather']}，{result['temperature']}度。"
    if "sleep_hours" in result:
        return f"睡眠{result['sleep_hours']}小时，心率{result['heart_rate']}。"
    value = next(iter(result.values()))
    return f"{'、'.join(value) if isinstance(value, list) else value}。"


def with_answer(rng, made, contents):
    """The same record with what the tool said and a final text that rests on it."""
    result = run_tool(rng, made, contents)
    return {**made, "result": result, "answer": say(result)}


def as_history(made):
    """The messages of a record that was asked, called and answered."""
    call = {"type": "function", "function": {"name": made["tool_name"], "arguments": made["arguments"]}}
    result = {"role": "tool", "name": made["tool_name"], "content": json.dumps(made["result"], ensure_ascii=False)}
    return [{"role": "user", "content": made["user"]}, {"role": "assistant", "content": "", "tool_calls": [call]}, result, {"role": "assistant", "content": made["answer"]}]


def with_conversations(rng, made, contents, answered, longer):
    """The records, `answered` of them with a result and an answer, and `longer` more in which one of them is asked after another was answered."""
    simple = [r for r in made if "tool_name" in r and "history" not in r]
    chosen = rng.sample(simple, answered)
    pairs = [rng.sample(simple, 2) for _ in range(longer)]
    return [*(r for r in made if r not in chosen), *(with_answer(rng, r, contents) for r in chosen),
            *({**second, "history": as_history(with_answer(rng, first, contents))} for first, second in pairs)]


def community_records(rng, site):
    """What the residents of one site ask."""
    pick = lambda name: rng.choice(site[name])
    contents, fill = iter(site["contents"]), lambda phrasing, value: (phrasing.replace("{}", value), value)
    for phrasing, (operation, kind) in site["notice"]:
        user, content = fill(phrasing, next(contents))
        yield record(user, "HandleTongzhiTonggao", operation=operation, type=kind, content=content)
    for phrasing, (operation, kind) in site["listing"]:
        yield record(phrasing, "HandleTongzhiTonggao", operation=operation, type=kind)
    for first, kind in site["opening"]:
        content, question = next(contents), rng.choice([f"请问{kind}的内容是什么？", f"好的，请提供{kind}的内容。"])
        yield ask_back(first, question, record(content, "HandleTongzhiTonggao", operation="ADD", type=kind, content=content))
    first, kind = pick("opening")
    yield {"user": first, "answer": f"请问{kind}的内容是什么？"}
    for place in rng.sample(site["places"], 7):
        user, place = fill(pick("weather"), place)
        yield record(user, "WeatherApi", query_key=place)
    for first, place in zip(site["weather_open"], rng.sample(site["places"], 3)):
        yield ask_back(first, rng.choice(["请问查哪个地区？", "好的，您要查哪里？"]), record(place, "WeatherApi", query_key=place))
    for phrasing, operation in site["water"]:
        yield record(phrasing, "WaterMachineApi", operation=operation)
    for measure in site["measures"]:
        user, _ = fill(pick("health"), measure)
        yield record(user, "HealthReportSimple", health_report_question=user)
    for topic, phrasing in rng.sample(list(product(site["topics"], site["ask"])), 8):
        user, _ = fill(phrasing, topic)
        yield record(user, "DirectLLMCommunityAiUser", question=user)


def travel_records(rng, site):
    """What travellers who are staying at one site ask, in Chinese and English."""
    place, english = lambda: rng.choice(site["places"]), lambda: rng.choice(site["english"])
    for phrasing in site["city"]:
        value = place()
        yield record(phrasing.replace("{}", value), "get_weather", city=value)
    for phrasing in site["city_en"]:
        value = english()
        yield record(phrasing.replace("{}", value), "get_weather", city=value)
    for phrasing, pool in [*((p, "places") for p in site["pair"] * 2), (site["pair_en"][0], "english")]:
        pair = rng.sample(site[pool], 2)
        yield {"user": phrasing.format(*pair), "calls": [{"tool_name": "get_weather", "arguments": {"city": city}} for city in pair]}
    for name, value in [("food", place), ("food_en", english)]:
        for phrasing, sort in site[name]:
            location = value()
            yield record(phrasing.replace("{}", location), "search_restaurants", location=location, **({"sort_by": sort} if sort else {}))
    for name, value in [("spots", place), ("spots_en", english)]:
        for phrasing in site[name]:
            location = value()
            yield record(phrasing.replace("{}", location), "search_tourist_spots", location=location)
    for text, kind in site["talk"]:
        yield {"user": text, "answer": rng.choice(SMALL_TALK[kind][1])}


def make_logs(seed=0):
    """All records, in random order: the same for the same seed."""
    rng = random.Random(seed)
    records = []
    for i, (phrasings, values) in enumerate(zip(deal_phrasings(rng), deal_values(rng))):
        site = {**phrasings, **values}
        for tools, made, answered, longer in ((COMMUNITY, community_records(rng, site), 5, 6), (TRAVEL, travel_records(rng, site), 4, 4)):
            made = list({(r["user"], str(r.get("history"))): r for r in made}.values())
            made = with_conversations(rng, made, site["contents"], answered, longer)
            records += [{**r, "tools": tools, "group": f"site-{i + 1:02d}"} for r in made]
    rng.shuffle(records)
    return records


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default=str(Path(__file__).with_name("logs.jsonl")))
    options = parser.parse_args()
    logs = make_logs(options.seed)
    Path(options.output).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in logs), encoding="utf-8")
    print(f"{len(logs)} records in {options.output}")
