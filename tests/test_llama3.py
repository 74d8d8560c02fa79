"""Llama 3.x all the way: its real vocabulary and chat template, and a small random model of its architecture that has memorised a few answers."""

import json
import shutil

import pytest
from golden.families import llama3

from toolcall_ft.base.errors import UserError
from toolcall_ft.evaluate.results import evaluate, to_requests
from toolcall_ft.export.gguf import export_gguf
from toolcall_ft.generate.answers import transformers_predictor
from toolcall_ft.generate.engines import grammar_accepts
from toolcall_ft.generate.grammar import tool_grammar
from toolcall_ft.generate.model import load_model
from toolcall_ft.serve.client import ids_client, openai_client
from toolcall_ft.serve.llama import LlamaServer
from toolcall_ft.template.models import load_tokenizer
from toolcall_ft.template.portable import make_portable, own_template
from toolcall_ft.template.rows import encode_example, encode_prompt
from toolcall_ft.tools.check import check_call
from toolcall_ft.tools.clean import clean_tools
from toolcall_ft.tools.formats import LLAMA3, tool_format
from toolcall_ft.train.lora import train_lora
from toolcall_ft.train.memorise import memorise_answers


def book_room(room: str, seats: int):
    """Book a room.

    Args:
        room: its name
        seats: how many
    """


def find_person(name: str):
    """Find a person.

    Args:
        name: who
    """


TOOLS, _ = clean_tools([book_room, find_person])
CALLS = {
    "Book the Fjord for 4.": {"name": "book_room", "arguments": {"room": "Fjord", "seats": 4}},
    "Where is 李伟?": {"name": "find_person", "arguments": {"name": "李伟"}},  # 李伟: Li Wei
    'Find Ann "the }{" Lee.': {"name": "find_person", "arguments": {"name": 'Ann "the }{" Lee'}},
}


def turn(call):
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": call}],
    }


def example(question, call, *more):
    return {"messages": [{"role": "user", "content": question}, turn(call), *more], "tools": TOOLS}


EXAMPLES = [example(question, call) for question, call in CALLS.items()]
RESULT = {"role": "tool", "name": "find_person", "content": '{"desk": 12}'}
WORDS = {"role": "assistant", "content": "At desk 12."}
USER = {"role": "user", "content": "Thank you."}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(llama3())


@pytest.fixture(scope="module")
def memorised(tmp_path_factory):
    "A model that has learnt its answers by heart, as a folder."
    folder = tmp_path_factory.mktemp("llama3") / "model"
    request = {"messages": [{"role": "user", "content": "Hello"}], "tools": TOOLS}
    answers = [(request, "Good morning.")]
    for question, call in CALLS.items():
        asked = {"messages": [{"role": "user", "content": question}], "tools": TOOLS}
        answers.append((asked, LLAMA3.write([call])))
    learnt = memorise_answers(answers, folder, llama3(), steps=600, embeddings=False)
    assert learnt["wrong tokens"] == 0
    return folder


def test_the_format_is_read_off_the_template(tokenizer):
    assert tool_format(tokenizer) is LLAMA3


def test_only_the_answers_are_trained(tokenizer):
    "A call and its end, and the words after a result; the result is a turn of `ipython`."
    call = CALLS["Where is 李伟?"]
    row = encode_example(example("Where is 李伟?", call, RESULT, WORDS), tokenizer)
    trained = [token for token, label in zip(row["input_ids"], row["labels"]) if label != -100]
    assert tokenizer.decode(trained).split("<|eot_id|>")[:2] == [
        LLAMA3.write([call]),
        "At desk 12.",
    ]
    text = tokenizer.decode(row["input_ids"])
    assert "<|start_header_id|>ipython<|end_header_id|>" in text and text.count("desk") == 2


def test_the_prompt_is_the_beginning_of_the_row(tokenizer):
    for each in EXAMPLES:
        prompt = list(encode_prompt({**each, "messages": each["messages"][:1]}, tokenizer))
        assert encode_example(each, tokenizer)["input_ids"][: len(prompt)] == prompt


def test_two_calls_in_a_turn_are_one_sentence(tokenizer):
    two = {**turn(CALLS["Where is 李伟?"])}
    two["tool_calls"] = two["tool_calls"] * 2
    with pytest.raises(UserError):
        encode_example(
            {"messages": [{"role": "user", "content": "?"}, two], "tools": TOOLS}, tokenizer
        )
    with pytest.raises(UserError, match="one call a turn"):
        LLAMA3.write(list(CALLS.values()))


@pytest.mark.parametrize("call", CALLS.values(), ids=lambda call: call["name"])
def test_calls_are_read_back_and_half_a_call_is_none(call):
    text = LLAMA3.write([call])
    for stop in ("", *LLAMA3.stops):
        assert LLAMA3.parse(text + stop) == ("", [call], [])
    assert LLAMA3.parse("<|python_tag|>" + text) == ("", [call], [])
    for end in range(1, len(text)):
        content, calls, errors = LLAMA3.parse(text[:end])
        assert (content, calls) == ("", []) and errors
    assert LLAMA3.parse(text + " and more")[2] == ["text after the call: 'and more'"]
    assert LLAMA3.parse("It is {not} a call.") == ("It is {not} a call.", [], [])


def test_the_grammar_has_calls_of_this_format_and_words():
    grammar = tool_grammar(TOOLS, form=LLAMA3)
    for call in CALLS.values():
        assert grammar_accepts(grammar, LLAMA3.write([call]))
        assert not grammar_accepts(grammar, LLAMA3.write([call]) * 2), "one call a turn"
    assert grammar_accepts(grammar, "Hello {there}")
    wrong = {"name": "book_room", "arguments": {"room": "Fjord"}}
    assert check_call(wrong, TOOLS) and not grammar_accepts(grammar, LLAMA3.write([wrong]))
    assert not grammar_accepts(grammar, '{"name": "book_room", "arguments": {}}')


def test_lora_trains_on_a_cpu(tmp_path):
    report = train_lora(
        EXAMPLES * 4,
        EXAMPLES,
        str(llama3()),
        tmp_path,
        backend="peft",
        epochs=2,
        batch_size=4,
    )
    assert report["validation_loss"] < report["validation_loss_before"]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("constrained", [False, True])
def test_it_answers_in_transformers(memorised, constrained):
    predictor = transformers_predictor(*load_model(memorised), constrained=constrained)
    report = evaluate(EXAMPLES, predictor)
    assert report["exact"] == 1 and report["n"] == len(EXAMPLES)


def test_every_prompt_says_the_same_day(tokenizer):
    "Its template asks for the date; with today's, a prompt would not be that of training tomorrow."
    assert "strftime_now(" in (llama3() / "chat_template.jinja").read_text(encoding="utf-8")
    assert "strftime_now(" not in tokenizer.chat_template
    prompt = tokenizer.decode(encode_prompt(EXAMPLES[0], tokenizer))
    assert "Today Date: 26 Jul 2024" in prompt


def test_llama_server_fills_tool_calls(memorised, tmp_path):
    "Its template, made portable, writes the prompts of training, also behind earlier answers."
    folder = shutil.copytree(memorised, tmp_path / "model")
    own = load_tokenizer(str(folder)).chat_template
    make_portable(folder, TOOLS)
    tokenizer = load_tokenizer(str(folder))
    assert own_template(tokenizer.chat_template) == own
    gguf = export_gguf(folder, tmp_path, ["F16"])["F16"]
    requests = [request for request, _ in to_requests(EXAMPLES)]
    later = example("Where is 李伟?", CALLS["Where is 李伟?"], RESULT, WORDS, USER)
    with LlamaServer(gguf) as server:
        for answer, call in zip(openai_client(server.url)(requests), CALLS.values()):
            assert (answer["calls"], answer["content"], answer["errors"]) == ([call], "", [])
        for answer, call in zip(ids_client(server.url, tokenizer)(requests), CALLS.values()):
            assert (answer["calls"], answer["errors"]) == ([call], [])
        for request in [*requests, later]:
            assert server.prompt_ids(request) == list(encode_prompt(request, tokenizer)), (
                json.dumps(request, ensure_ascii=False)
            )
