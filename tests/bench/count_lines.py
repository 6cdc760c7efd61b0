"""Lines of code of the package, step by step: without blank lines, comments and docstrings.

    python tests/bench/count_lines.py [folder of another version of rsna_nb]

Setting-help texts in config.py count as documentation too: the lines of its `description=` arguments are not counted.
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "rsna_nb"


def docstring_lines(tree: ast.Module) -> set[int]:
    """The numbers of the lines that docstrings take."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if isinstance(node, ast.keyword) and node.arg in ("description", "help"):
            lines |= set(range(node.value.lineno, (node.value.end_lineno or 0) + 1))
    return lines


def count(path: Path) -> tuple[int, int, int]:
    """(lines of code, lines of comments, all lines) of a module."""
    text = path.read_text()
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    code, comments = set(), set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in ignored:
            code |= set(range(token.start[0], token.end[0] + 1))
    code -= docstring_lines(ast.parse(text))
    return len(code), len(comments), len(text.splitlines())


def main(package: Path) -> None:
    totals: Counter[str] = Counter()
    steps: dict[str, Counter[str]] = {}
    for path in sorted(package.rglob("*.py")):
        step = path.relative_to(package).parts[0].removesuffix(".py")
        numbers = dict(zip(("code", "comments", "lines"), count(path), strict=True))
        steps.setdefault(step, Counter()).update(numbers)
        totals.update(numbers)
    print(f"{'step':<16}{'code':>7}{'comments':>10}{'all lines':>11}")
    for step, numbers in [*steps.items(), ("total", totals)]:
        print(f"{step:<16}{numbers['code']:>7}{numbers['comments']:>10}{numbers['lines']:>11}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE)
