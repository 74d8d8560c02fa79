"""The rules of the house that a program can check: order of modules, light start, tidy notebooks, versions, the wheel."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from style import LIMITS, measure, public_names  # noqa: E402

FOLDERS = [  # each imports only from those before it
    "base",
    "tools",
    "data",
    "template",
    "train",
    "generate",
    "evaluate",
    "export",
    "serve",
    "parity",
    "config",
    "tiny",
    "cli",
]
HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "trl",
    "peft",
    "unsloth",
    "numpy",
    "pandas",
    "matplotlib",
    "openai",
    "mcp",
    "ipywidgets",
    "playwright",
    "xgrammar",
    "transformers_cfg",
)


def notebooks(repository):
    "Every notebook of the three shelves, as it is stored."
    return {
        str(path.relative_to(repository / "nbs")): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((repository / "nbs").rglob("*.ipynb"))
        if ".ipynb_checkpoints" not in path.parts
    }


def modules(repository):
    "Every module of the package: `folder.name` -> its syntax tree."
    package = repository / "toolcall_ft"
    paths = [
        path
        for path in package.rglob("*.py")
        if path.name not in ("__init__.py", "_modidx.py") and path.parent.name != "course"
    ]
    return {
        ".".join(path.relative_to(package).with_suffix("").parts): ast.parse(
            path.read_text(encoding="utf-8")
        )
        for path in sorted(paths)
    }


def imports(tree, name):
    "What a module imports, anywhere in it: our own as `folder.name`, others as they are."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("toolcall_ft.") for alias in node.names)
        if not isinstance(node, ast.ImportFrom):
            continue
        base = (node.module or "").removeprefix("toolcall_ft").lstrip(".")
        if node.level:
            parents = name.split(".")[: -node.level]
            base = ".".join([*parents, node.module or ""]).strip(".")
        yield base
        yield from (f"{base}.{alias.name}".strip(".") for alias in node.names)


def top_level(tree):
    "The statements that run when the module is imported."
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return ast.Module([node for node in tree.body if not isinstance(node, definitions)], [])


def own_imports(repository):
    "Our modules, and which of our modules each imports."
    trees = modules(repository)
    return {name: (set(imports(tree, name)) & set(trees)) - {name} for name, tree in trees.items()}


def test_a_folder_imports_only_from_those_before_it(repository):
    place = {folder: i for i, folder in enumerate(FOLDERS)}
    folder = lambda name: place[name.split(".")[0]]
    up = [
        (name, other)
        for name, others in own_imports(repository).items()
        for other in others
        if folder(other) > folder(name)
    ]
    assert up == []


def test_no_modules_import_each_other_in_a_circle(repository):
    TopologicalSorter(
        own_imports(repository)
    ).prepare()  # raises CycleError, which names the circle


def test_the_style_keeps_to_its_limits(repository):
    figures = measure(repository)
    over = {name: value for name, value in figures.items() if value > LIMITS[name]}
    assert over == {}, "python benchmarks/style.py prints them all"


def test_public_names_are_those_of_the_list_and_each_means_one_thing(repository):
    "A name is handed on by its folder, and by no other; `public_names.txt` is the list."
    listed = (repository / "tests" / "public_names.txt").read_text(encoding="utf-8").split()
    found = {}
    for name, tree in modules(repository).items():
        for public in public_names(tree, Path(f"{name}.py")):
            found.setdefault(public, []).append(name)
    assert sorted(found) == sorted(listed)
    assert {public: names for public, names in found.items() if len(names) > 1} == {}
    for public, (name,) in found.items():
        folder = importlib.import_module(f"toolcall_ft.{name.partition('.')[0]}")
        here = importlib.import_module(f"toolcall_ft.{name}")
        assert public == "main" or getattr(folder, public) is getattr(here, public), public


KNOWS_TAGS = (
    "tools.formats",
    "tools.wire",
    "data.",
    "parity.corpus",
    "parity.strings",
    "template.macros",
    "template.portable",
)


def test_only_the_tool_formats_know_tags(repository):
    "Data formats, test corpora and the portable template's own text aside."
    tags = re.compile(r"</?tool_call>|<\|im_(start|end)\|>|<\|(eot_id|python_tag)\|>")
    for name, tree in modules(repository).items():
        if not name.startswith(KNOWS_TAGS):
            texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
            assert not [text for text in map(str, texts) if tags.search(text)], name


def test_heavy_libraries_are_imported_late(repository):
    for name, tree in modules(repository).items():
        found = {each.split(".")[0] for each in imports(top_level(tree), name)}
        assert not found & set(HEAVY), name


EVERYTHING = "import pkgutil, toolcall_ft\nfor one in pkgutil.walk_packages(toolcall_ft.__path__, 'toolcall_ft.'): __import__(one.name)"
HELP = "from toolcall_ft.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass"


@pytest.mark.parametrize("code", ["import toolcall_ft", EVERYTHING, HELP])
def test_nothing_heavy_is_loaded_at_the_start(code):
    shown = (
        f"import sys; print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", f"{code}\n{shown}"], capture_output=True, text=True
    )
    assert finished.stderr.strip().splitlines()[-1] == "[]"


def test_the_package_shows_its_modules_and_imports_none():
    code = """import sys, toolcall_ft
assert {"train", "cli", "tools"} <= set(dir(toolcall_ft)) and "_modidx" not in dir(toolcall_ft)
assert not [name for name in sys.modules if name.startswith("toolcall_ft.")]
assert toolcall_ft.base.dump_json([1]) == "[1]" and not hasattr(toolcall_ft, "nothing")
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.completer import provisionalcompleter
shell = InteractiveShell.instance(user_ns={"toolcall_ft": toolcall_ft})
with provisionalcompleter(): found = [one.text for one in shell.Completer.completions("toolcall_ft.", 12)]
assert {"train", "cli", "tools"} <= {text.lstrip(".") for text in found}, found"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_every_notebook_is_tidy(repository):
    for name, notebook in notebooks(repository).items():
        assert len(notebook["cells"]) <= 70, name
        assert set(notebook["metadata"]) <= {"kernelspec", "widgets"}, (
            name
        )  # nbdev_clean keeps these two
        first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "markdown")
        text = "".join(first["source"])
        following = "".join(
            "".join(cell["source"])
            for cell in notebook["cells"][:3]
            if cell["cell_type"] == "markdown"
        )
        assert text.startswith("# ") and re.search("^> ", following, re.MULTILINE), (
            f"{name}: a title and one sentence"
        )
        for cell in notebook["cells"]:
            assert cell["metadata"] == {} and cell.get("execution_count") is None, name


def test_every_notebook_keeps_its_outputs_and_none_is_an_error(repository):
    outputs = {}
    for name, notebook in notebooks(repository).items():
        outputs[name] = [
            output["output_type"]
            for cell in notebook["cells"]
            if cell["cell_type"] == "code"
            for output in cell["outputs"]
        ]
    assert not [name for name, kinds in outputs.items() if not kinds], (
        "run these and keep the outputs"
    )
    assert not [name for name, kinds in outputs.items() if "error" in kinds]


def kept_files(repository):
    "Names of all files that belong to the project: as git has them, or all that there are where an sdist was unpacked."
    if not (repository / ".git").exists():
        return [
            str(path.relative_to(repository))
            for path in repository.rglob("*")
            if path.is_file()
            and not {"__pycache__", ".pytest_cache", ".hypothesis"} & set(path.parts)
        ]
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    return listed.stdout.splitlines()


def test_what_make_test_leaves_out_is_there(repository):
    "A line of tests/slow.txt that names nothing would leave nothing out, and nobody would see it."
    lines = (repository / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert lines == sorted(lines)
    for line in lines:
        file, _, test = line.partition("::")
        text = (repository / file).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in text, line


def test_no_path_of_a_machine_is_written_anywhere(repository):
    for name in kept_files(repository):
        path = repository / name
        if (
            not path.is_file()
            or path.suffix in (".safetensors", ".png")
            or path.name == "test_house.py"
        ):
            continue
        found = re.search(
            r"(/root/(?!autodl-tmp)|/home/\w+/|/Users/\w+/|/tmp/w/|/work/(main|shared))",
            path.read_text(encoding="utf-8", errors="replace"),
        )
        assert not found, f"{name}: {found[0]}"


def read_settings(repository):
    parser = ConfigParser(delimiters=["="])
    parser.read(repository / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def test_constraints_cover_every_extra(repository):
    settings = read_settings(repository)
    wanted = {
        re.split(r"[<>=;\[]", word)[0]
        for key, value in settings.items()
        if key.endswith("requirements")
        for word in value.split()
    }
    lines = [
        line
        for line in (repository / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert all("==" in line for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert {name.lower().replace("_", "-") for name in wanted} | {
        "unsloth",
        "unsloth-zoo",
    } <= pinned


def test_what_is_installed_is_what_is_pinned(repository):
    from importlib.metadata import version

    pinned = dict(
        line.split("==")
        for line in (repository / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    for name in (
        "torch",
        "transformers",
        "trl",
        "peft",
        "datasets",
        "nbdev",
        "fastcore",
        "execnb",
        "transformers-cfg",
    ):
        assert version(name) == pinned[name], name


def test_what_is_installed_goes_together():
    "What `pip check` says of our own packages and all that they need."
    from toolcall_ft.base.errors import EXTRA_OF
    from toolcall_ft.cli.doctor import misfit_lines, misfits

    assert misfit_lines(misfits(["toolcall-ft", *EXTRA_OF])) == []


def test_light_install_brings_no_torch(repository):
    settings = read_settings(repository)
    assert not {"torch", "trl", "peft", "unsloth"} & {
        re.split("[<>=]", word)[0] for word in settings["requirements"].split()
    }


@pytest.fixture(scope="module")
def built(repository, tmp_path_factory):
    "A folder with a wheel and an sdist, built in a copy, since the build writes into its folder."
    folder = tmp_path_factory.mktemp("built")
    for name in kept_files(repository):
        if not (repository / name).is_file():
            continue
        (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "copy" / name).write_bytes((repository / name).read_bytes())
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--sdist",
            "--no-isolation",
            "--outdir",
            str(folder),
        ],
        cwd=folder / "copy",
        check=True,
        capture_output=True,
    )
    return folder


def test_the_sdist_holds_what_its_tests_need(repository, built, tmp_path):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = next(tmp_path.iterdir())
    missing = [
        name
        for name in kept_files(repository)
        if (repository / name).is_file()
        and not name.startswith(".")
        and not (unpacked / name).exists()
    ]
    assert missing == []
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    files = [f"tests/test_{name}.py" for name in ("tools", "mcp", "house")]
    chosen = "function or file or tools_of_a_server or tidy or public_names or readmes"
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", chosen],
        cwd=unpacked,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout[-2000:]


def test_the_wheel_holds_model_and_configuration(repository, built):
    held = set(zipfile.ZipFile(next(built.glob("*.whl"))).namelist())
    package = repository / "toolcall_ft"
    data = [
        path
        for folder in ("sample", "tiny_data", "tiny_qwen2")
        for path in (package / folder).iterdir()
        if path.is_file()
    ]
    for path in [
        *(
            package / name
            for name in ("config.yaml", "synthesise.yaml", "viewer.html", "hermes.gotmpl")
        ),
        *package.rglob("*.py"),
        *data,
    ]:
        assert str(path.relative_to(repository)) in held, path


def test_the_readmes_are_in_step(repository):
    finished = subprocess.run(
        [sys.executable, "benchmarks/write_readme.py", "--check"],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_the_reference_has_an_entry_for_each_public_name(repository):
    sys.path.insert(0, str(repository / "docs"))
    from make_site import FOLDERS as PAGES
    from make_site import api_notebook

    text = "\n".join(cell.source for folder in PAGES for cell in api_notebook(folder).cells)
    shown = set(re.findall(r"^### (\w+)$", text, re.MULTILINE))
    listed = (repository / "tests" / "public_names.txt").read_text(encoding="utf-8").split()
    assert shown >= set(listed)
