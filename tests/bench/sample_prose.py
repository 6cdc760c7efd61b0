"""Random places of the prose of a checkout, to be read aloud: docstrings, comments, messages, notebook and doc text.

    python tests/bench/sample_prose.py --seed 1 --count 10 [--tree folder of another checkout]

It draws `count` places without replacement from each of three sources: the package's code, the notebooks, and the
Markdown files. Each place of a source is equally likely. The same seed draws the same places of the same tree, so a
reader can compare two versions of the project by drawing from a checkout of each.
"""

import argparse
import ast
import io
import json
import random
import re
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOG_METHODS = {"debug", "info", "warning", "error", "exception", "log"}
FEWEST_WORDS = 3  # shorter strings are names and keys, not prose


@dataclass(frozen=True)
class Place:
    """One piece of prose and its place."""

    where: str
    kind: str
    text: str


def docstrings(tree: ast.Module) -> dict[int, ast.expr]:
    """Identity of each docstring's node -> the node."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node) is not None]
    return {id(node.body[0].value): node.body[0].value for node in nodes}  # type: ignore[attr-defined]


def kind_of_call(call: ast.Call) -> str:
    """What a string among the arguments of a call is: "log line", "error" or ""."""
    name = ast.unparse(call.func)
    owner, _, method = name.rpartition(".")
    if method in LOG_METHODS and "log" in owner.lower():
        return "log line"
    return "error" if method.endswith(("Error", "Unavailable")) else ""


def strings(node: ast.AST, kind: str = "text") -> Iterator[tuple[ast.expr, str]]:
    """Every string and f-string below a node, with its kind."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.JoinedStr) or (isinstance(child, ast.Constant) and isinstance(child.value, str)):
            yield child, kind
        else:
            yield from strings(child, kind_of_call(child) or kind if isinstance(child, ast.Call) else kind)


def comments(source: str) -> Iterator[tuple[int, str]]:
    """(first line, text) of every comment; one after code with its line, successive lines of comments as one."""
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(source).readline) if is_comment(token)]
    blocks: list[tuple[int, list[str]]] = []
    for token in tokens:
        line, text = token.start[0], token.line.strip()
        follows = blocks and line == blocks[-1][0] + len(blocks[-1][1])
        if follows and text.startswith("#") and blocks[-1][1][-1].startswith("#"):
            blocks[-1][1].append(text)
        else:
            blocks.append((line, [text]))
    yield from ((line, "\n".join(texts)) for line, texts in blocks)


def is_comment(token: tokenize.TokenInfo) -> bool:
    return token.type == tokenize.COMMENT and not re.match(r"# (type|noqa|fmt|pragma)\b", token.string)


def in_code(source: str, where: str) -> Iterator[Place]:
    """The prose of a module, or of a notebook's code cell."""
    tree = ast.parse(source)
    documented = docstrings(tree)
    for node in documented.values():
        yield Place(f"{where}{node.lineno}", "docstring", str(ast.literal_eval(node)))
    for node, kind in strings(tree):
        text = ast.get_source_segment(source, node) or ""
        if id(node) not in documented and len(text.split()) >= FEWEST_WORDS:
            yield Place(f"{where}{node.lineno}", kind, text)
    for line, text in comments(source):
        yield Place(f"{where}{line}", "comment", text)


def in_notebook(path: Path, where: str) -> Iterator[Place]:
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"], start=1):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield from in_markdown(source, f"{where}, cell {number}, line ")
        elif cell["cell_type"] == "code":
            yield from in_code(re.sub(r"^\s*[%!].*", "", source, flags=re.M), f"{where}, cell {number}, line ")


def in_markdown(source: str, where: str) -> Iterator[Place]:
    """Each paragraph, list item or row of a table; no headings, code or rules of tables."""
    block: list[str] = []
    start, in_fence = 0, False
    for number, line in enumerate([*source.splitlines(), ""], start=1):
        fence = line.lstrip().startswith("```")
        in_fence ^= fence
        code = fence or in_fence or (line.startswith("    ") and not block)
        prose = line.strip() and not code and not re.match(r"#|<!--|\|[\s:|-]*$", line)
        if block and (not prose or re.match(r"\s*([-*]|\d+\.) |\|", line)):
            yield Place(f"{where}{start}", "paragraph", "\n".join(block))
            block = []
        if prose:
            start = start if block else number
            block.append(line)


def places(tree: Path) -> dict[str, list[Place]]:
    """Every place of each source of a checkout."""
    code = [place for path in sorted(tree.glob("rsna_nb/**/*.py")) for place in in_code(*read(path, tree))]
    notebooks = sorted(tree.glob("notebooks/*.ipynb"))
    documents = [*sorted(tree.glob("*.md")), *sorted(tree.glob("docs/*.md"))]
    return {
        "code": code,
        "notebooks": [place for path in notebooks for place in in_notebook(path, str(path.relative_to(tree)))],
        "docs": [place for path in documents for place in in_markdown(*read(path, tree))],
    }


def read(path: Path, tree: Path) -> tuple[str, str]:
    """A file's text, and how a place in it is named before its line's number."""
    return path.read_text(encoding="utf-8"), f"{path.relative_to(tree)}:"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10, help="places to draw from each source")
    parser.add_argument("--tree", type=Path, default=ROOT, help="folder of a checkout")
    arguments = parser.parse_args()
    draws = random.Random(arguments.seed)
    for source, found in places(arguments.tree).items():
        print(f"\n## {source}: {min(arguments.count, len(found))} of {len(found)} places, seed {arguments.seed}")
        for number, place in enumerate(draws.sample(found, min(arguments.count, len(found))), start=1):
            print(f"\n{number}. {place.where} ({place.kind})\n")
            print(textwrap.indent(textwrap.dedent(place.text).strip(), "    "))


if __name__ == "__main__":
    main()
