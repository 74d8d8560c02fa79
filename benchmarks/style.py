"""The style figures of a package and its course, beside those of any other project.

    python benchmarks/style.py [FOLDER ...]

A FOLDER is a checkout; without one it is this project. Prints a Markdown table, a row a figure.
"""

import ast
import json
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
BRANCHES = (
    ast.If,
    ast.For,
    ast.While,
    ast.IfExp,
    ast.BoolOp,
    ast.ExceptHandler,
    ast.comprehension,
    ast.Match,
)
LIMITS = {  # figure: the most that this project allows itself
    "syntax nodes a body line, median of modules": 12,
    "body lines over 120 columns, %": 0,
    "functions with more than 10 branch points": 5,
    "statements that share a line": 0,
    "public names": 180,
    "code lines of the largest module": 450,
    "exported cells with more than one definition": 0,
    "lines of the longest exported definition": 40,
}
OUTSIDE = {
    "course",
    "tests",
    "benchmarks",
    "docs",
    "examples",
    "build",
    "nbs",
    "notebooks",
    "setup.py",
}


def package_files(root: Path) -> list:  # of paths
    "The modules of a checkout: all Python files but tests, examples and what a program wrote."
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        hidden = any(part.startswith(".") for part in parts)
        if not hidden and not OUTSIDE & set(parts) and path.name != "_modidx.py":
            found.append(path)
    return found


def functions(tree) -> list:  # of syntax nodes
    return [
        node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def body(function) -> list:  # of statements
    "The statements of a function without its docstring."
    first = function.body[0]
    docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return function.body[1:] if docstring and isinstance(first.value.value, str) else function.body


def body_lines(function, lines: list) -> list:  # of str
    statements = body(function)
    if not statements:
        return []
    return [
        line for line in lines[statements[0].lineno - 1 : statements[-1].end_lineno] if line.strip()
    ]


def branch_points(function) -> int:
    return sum(isinstance(node, BRANCHES) for part in body(function) for node in ast.walk(part))


def shared_lines(tree) -> int:
    "How many statements begin on a line on which another one begins."
    starts = [
        statement.lineno
        for node in ast.walk(tree)
        for statements in (getattr(node, name, None) for name in ("body", "orelse", "finalbody"))
        if isinstance(statements, list)
        for statement in statements
    ]
    return len(starts) - len(set(starts))


def public_names(tree, path: Path) -> list:  # of str
    "What `__all__` names; without one, all that has no underscore."
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value) if isinstance(node.value, ast.List) else []
    if path.name == "__init__.py":
        return []
    named = [node.name for node in tree.body if hasattr(node, "name")]
    return [name for name in named if not name.startswith("_")]


def module_figures(path: Path) -> dict:
    "The figures of one module."
    source = path.read_text(encoding="utf-8")
    lines, tree = source.split("\n"), ast.parse(source)
    texts = [body_lines(function, lines) for function in functions(tree)]
    nodes = [
        sum(1 for part in body(function) for _ in ast.walk(part)) for function in functions(tree)
    ]
    stripped = [line.strip() for line in lines]
    return {
        "nodes": sum(nodes),
        "lines": sum(map(len, texts)),
        "wide": sum(len(line) > 120 for text in texts for line in text),
        "branchy": sum(branch_points(function) > 10 for function in functions(tree)),
        "shared": shared_lines(tree),
        "public": len(public_names(tree, path)),
        "code": sum(bool(line) and not line.startswith("#") for line in stripped),
    }


def exported_cells(root: Path):
    "The syntax trees of all cells that nbdev exports."
    for path in sorted(root.rglob("*.ipynb")):
        if any(part.startswith((".", "_", "build")) for part in path.relative_to(root).parts):
            continue
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and source.lstrip().startswith("#| export"):
                yield [node for node in ast.parse(source).body if hasattr(node, "name")]


def measure(root: Path) -> dict:  # figure -> number
    "The style figures of a checkout."
    found = [module_figures(path) for path in package_files(root)]
    total = {key: sum(figures[key] for figures in found) for key in found[0]}
    cells = list(exported_cells(root))
    lengths = [node.end_lineno - node.lineno + 1 for cell in cells for node in cell]
    values = (
        round(median(each["nodes"] / each["lines"] for each in found if each["lines"]), 1),
        round(100 * total["wide"] / total["lines"], 1),
        total["branchy"],
        total["shared"],
        total["public"],
        max(figures["code"] for figures in found),
        sum(len(cell) > 1 for cell in cells),
        max(lengths, default=0),
    )
    return dict(zip(LIMITS, values))


def main() -> int:
    roots = [Path(word).resolve() for word in sys.argv[1:]] or [ROOT]
    figures = [measure(root) for root in roots]
    print(f"| | {' | '.join(root.name for root in roots)} | limit |")
    print("|---|" + "---:|" * (len(roots) + 1))
    for name, limit in LIMITS.items():
        print(f"| {name} | {' | '.join(str(each[name]) for each in figures)} | {limit} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
