#!/usr/bin/env python3
"""Checks how the crates are built inside: no circle between files, no file too long, no task named outside `tasks`.

    scripts/check/structure.py [CRATE...]            check these crates, or all
    scripts/check/structure.py --tasks [CRATE...]    also check that only `tasks` names a task
    scripts/check/structure.py --report [CRATE...]   print sizes

A file uses another if a `use` declaration or a path in it names an item that the other defines, through however many
re-exports. Declaring or re-exporting a child module is no use of it. Tests are left out.
"""

import argparse
import re
import sys
from collections import deque
from pathlib import Path

from rust_modules import is_test_file, read_crate

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 800
LONG_LINES = 400
# Names of tasks that are no common words; further ones are their folders in `tasks`, see `task_names`.
RARE_NAMES = [r"\bmcd\b|mcd_|_mcd", "countdown"]


def edges_of(crate):
    """Maps each file to the files that it uses, with the line of the first use."""
    edges = {}
    for module, file in crate.files.items():
        used = edges.setdefault(module, {})

        def add(target, start, used=used, module=module, file=file):
            if target is not None and target != module:
                used.setdefault(target, file.line(start))

        for use in file.uses:
            if crate.is_module(use.module, use.path) and use.name != "*":
                continue  # an alias: what is reached through it counts
            target = crate.resolve(use.module, use.path)
            if use.reexport and target is not None and target[: len(module)] == module and use.name not in file.words:
                continue
            add(target, use.start)
        for inside, path, start in file.paths:
            add(crate.resolve(inside, path), start)
    return edges


def circles_of(edges):
    """One circle, the shortest, for each set of files that reach one another."""
    circles = []
    for component in _components(edges):
        if len(component) > 1:
            circles.append((sorted(component), _shortest_circle(component, edges)))
    return sorted(circles)


def _components(edges):
    """Strongly connected components, by Tarjan's algorithm."""
    index, low, on_stack, stack, found = {}, {}, set(), [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        on_stack.add(node)
        for target in edges.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in on_stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            component = set()
            while node not in component:
                component.add(stack.pop())
            on_stack.difference_update(component)
            found.append(component)

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return found


def _shortest_circle(component, edges):
    best = None
    for start in sorted(component):
        previous, queue = {start: None}, deque([start])
        while queue:
            node = queue.popleft()
            if start in edges[node]:
                path = [node]
                while previous[path[-1]] is not None:
                    path.append(previous[path[-1]])
                if best is None or len(path) < len(best):
                    best = path[::-1]
                break
            for target in edges[node]:
                if target in component and target not in previous:
                    previous[target] = node
                    queue.append(target)
    return best


def check_circles(crate):
    """Messages about files of a crate that use one another in a circle."""
    edges = edges_of(crate)
    messages = []
    for files, circle in circles_of(edges):
        steps = []
        for at, module in enumerate(circle):
            target = circle[(at + 1) % len(circle)]
            steps.append(f"{_name(crate, module)}:{edges[module][target]} uses {_name(crate, target)}")
        names = ", ".join(_name(crate, module) for module in files)
        message = f"{crate.name}: {len(files)} files use one another in a circle ({names}):\n    "
        messages.append(message + "\n    ".join(steps))
    return messages


def _name(crate, module):
    return str(crate.files[module].path.relative_to(crate.root / "src"))


def check_lengths(root):
    """Messages about source files of a crate that are too long."""
    long = [(path, lines) for path, lines in _lengths(root) if lines > MAX_LINES]
    return [f"{path.relative_to(root.parent)}: {lines} lines, more than {MAX_LINES}" for path, lines in long]


def _lengths(root):
    paths = sorted(path for folder in ("src", "tests", "cpp", "cuda") for path in (root / folder).rglob("*"))
    kinds = (".rs", ".cpp", ".cu", ".h", ".cuh")
    return [(path, path.read_text(encoding="utf-8").count("\n")) for path in paths if path.suffix in kinds]


def task_names():
    """A pattern for what names a task: its folder as a string, a path or the start of a type's name."""
    patterns = list(RARE_NAMES)
    for folder in sorted(path.name for path in (ROOT / "crates/tasks/src").glob("*") if path.is_dir()):
        camel = "".join(part.capitalize() for part in folder.split("_"))
        # `std::cmp::Reverse` names no task `reverse`: a type of a task has more to its name.
        patterns += [rf'"{folder}"', rf"\btasks::{folder}\b", rf"(?-i:\b{camel}[A-Z]\w*)"]
    return re.compile("|".join(patterns), re.IGNORECASE)


def check_tasks(crate):
    """Messages about lines that name a task, outside the tests of a crate."""
    names = task_names()
    messages = []
    for file in crate.files.values():
        for number, text in file.production_lines():
            if names.search(text):
                messages.append(f"{file.path.relative_to(crate.root.parent)}:{number}: names a task: {text.strip()}")
    return messages


def report(roots):
    """Lines per crate, files over 400 lines, and modules per folder."""
    print("lines of src, without files of tests alone:")
    total = 0
    for root in roots:
        lines = sum(lines for path, lines in _lengths(root) if "src" in path.parts and not is_test_file(path.relative_to(root)))
        total += lines
        print(f"  {root.name:<12} {lines:>6}")
    print(f"  {'all':<12} {total:>6}")
    print(f"files over {LONG_LINES} lines:")
    for root in roots:
        for path, lines in _lengths(root):
            if lines > LONG_LINES:
                print(f"  {lines:>5} {path.relative_to(root.parent)}")
    print("modules per folder:")
    for root in roots:
        for folder in sorted({path.parent for path, _ in _lengths(root) if "src" in path.parts and path.suffix == ".rs"}):
            count = sum(1 for path in folder.glob("*.rs") if path.name not in ("lib.rs", "main.rs", "mod.rs"))
            print(f"  {count:>5} {folder.relative_to(root.parent)}")


def main(arguments=None):
    """Runs the checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crates", nargs="*", metavar="CRATE", help="folders below crates/; all if none is given")
    parser.add_argument("--tasks", action="store_true", help="fail if a crate other than `tasks` names a task")
    parser.add_argument("--report", action="store_true", help="print sizes and check nothing")
    options = parser.parse_args(arguments)
    names = options.crates or sorted(path.parent.name for path in (ROOT / "crates").glob("*/Cargo.toml"))
    roots = [ROOT / "crates" / name for name in names]
    if options.report:
        report(roots)
        return 0
    messages = []
    for root in roots:
        crate = read_crate(root)
        if not crate.files:
            messages.append(f"{root.name}: no src/lib.rs and no src/main.rs")
        messages += check_circles(crate) + check_lengths(root)
        if options.tasks and root.name != "tasks":
            messages += check_tasks(crate)
    for message in messages:
        print(f"error: {message}", file=sys.stderr)
    if not messages:
        print(f"structure: {len(roots)} crates, no circles, no file over {MAX_LINES} lines")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
