"""Reading a GGUF back: our `read_gguf` and llama.cpp's own reader, turn by turn on the same file.

python benchmarks/gguf_reader.py FILE.gguf     # any file; the size of its vocabulary decides
"""

import statistics
import sys
import time

from toolcall_ft.export.convert import open_gguf, read_gguf
from toolcall_ft.export.llamacpp import find_llama_cpp
from toolcall_ft.train.backend import machine_name


def seconds(read) -> float:
    "Processor time of one reading."
    start = time.process_time()
    read()
    return time.process_time() - start


def main(rounds: int = 3) -> None:
    path, llama = sys.argv[1], find_llama_cpp(["convert"])
    open_gguf(path, llama)  # puts the package gguf on the path, and the file into memory
    from gguf import GGUFReader

    def theirs():
        return {name: field.contents() for name, field in GGUFReader(path).fields.items()}

    fields = read_gguf(path, llama)["fields"]
    assert fields == theirs()
    pairs = [(seconds(lambda: read_gguf(path, llama)), seconds(theirs)) for _ in range(rounds)]
    ours, other = (statistics.median(column) for column in zip(*pairs))
    tokens = len(fields["tokenizer.ggml.tokens"])
    print(f"{machine_name()}; {tokens:,} tokens; processor seconds, median of {rounds}")
    print(f"read_gguf {ours:.1f} s, GGUFReader {other:.1f} s, {other / ours:.1f} times as long")


if __name__ == "__main__":
    main()
