"""Reads the module tree of a Rust crate and the paths by which its files use one another.

A reader for the code of this workspace, not a Rust parser: it sees `use` declarations and paths with `::`. Method calls,
macro bodies and trait resolution are invisible to it.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

_TOKEN = re.compile(
    r"""
      (?P<skip>   \s+ | //[^\n]* )
    | (?P<block>  /\* )
    | (?P<string> b?c?r(?P<hashes>\#*)".*?"(?P=hashes) | [bc]?"(?:\\.|[^"\\])*" )
    | (?P<char>   b?'(?:\\(?:x[0-9a-fA-F]{2}|u\{[^}]*\}|.)|[^'\\])' )
    | (?P<life>   '[A-Za-z_]\w* )
    | (?P<ident>  (?:r\#)?[A-Za-z_]\w* )
    | (?P<path>   :: )
    | (?P<number> \d[\w.]* )
    | (?P<punct>  . )
    """,
    re.VERBOSE | re.DOTALL,
)
_OPEN, _CLOSE = "([{", ")]}"
_BLOCK_ITEMS = {"fn", "mod", "impl", "struct", "enum", "trait", "union", "unsafe", "async", "extern", "macro_rules"}
_SEMICOLON_ITEMS = {"use", "const", "static", "type", "let"}
_DEFINING = {"fn", "struct", "enum", "trait", "union", "type", "const", "static"}


@dataclass(frozen=True)
class Token:
    kind: str
    text: str
    start: int


def tokens_of(source):
    """Tokens of Rust source, without white space and comments."""
    tokens, at = [], 0
    while at < len(source):
        match = _TOKEN.match(source, at)
        if match["block"]:
            at = _end_of_block_comment(source, at)
            continue
        kind = match.lastgroup if match.lastgroup != "hashes" else "string"
        if kind != "skip":
            tokens.append(Token(kind, match[0], at))
        at = match.end()
    return tokens


def _end_of_block_comment(source, at):
    depth = 0
    for match in re.compile(r"/\*|\*/").finditer(source, at):
        depth += 1 if match[0] == "/*" else -1
        if depth == 0:
            return match.end()
    return len(source)


@dataclass
class Use:
    """One name that a `use` declaration brings in: `path` is absolute or relative to `module`."""

    module: tuple
    name: str
    path: tuple
    reexport: bool
    start: int


@dataclass
class SourceFile:
    """One file of a crate: its module path, and what it says outside tests."""

    path: Path
    module: tuple
    source: str = ""
    children: dict = field(default_factory=dict)
    test_children: set = field(default_factory=set)
    uses: list = field(default_factory=list)
    paths: list = field(default_factory=list)
    defined: set = field(default_factory=set)
    words: set = field(default_factory=set)
    test_spans: list = field(default_factory=list)

    def line(self, start):
        """Number of the line at byte offset `start`, from 1."""
        return self.source.count("\n", 0, start) + 1

    def production_lines(self):
        """Pairs of line number and text, without the lines of tests."""
        text = list(self.source)
        for start, end in self.test_spans:
            for at in range(start, min(end, len(text))):
                if text[at] != "\n":
                    text[at] = " "
        return list(enumerate("".join(text).split("\n"), 1))


def is_test_file(path):
    """Whether a file holds tests alone, by its name or folder."""
    return path.name == "tests.rs" or path.name.endswith("_tests.rs") or "tests" in path.parts[:-1]


class _Reader:
    """Walks the tokens of one file and fills in a `SourceFile`."""

    def __init__(self, file):
        self.file = file
        self.tokens = tokens_of(file.source)
        self.at = 0

    def text(self, ahead=0):
        index = self.at + ahead
        return self.tokens[index].text if index < len(self.tokens) else ""

    def kind(self, ahead=0):
        index = self.at + ahead
        return self.tokens[index].kind if index < len(self.tokens) else ""

    def read(self):
        self.items(self.file.module, None)

    def items(self, module, until):
        """Reads tokens up to the closing `until`; nested blocks are read in place."""
        reexport, named_path = False, None
        while self.at < len(self.tokens):
            text = self.text()
            if text == until:
                self.at += 1
                return
            if text == "#" and (self.text(1) == "[" or (self.text(1) == "!" and self.text(2) == "[")):
                start = self.tokens[self.at].start
                attribute = self.attribute()
                if _is_test_attribute(attribute):
                    self.skip_item(start)
                elif attribute[:2] == ["path", "="]:
                    named_path = attribute[2].strip('"')
                continue
            if text == "pub":
                self.at += 1
                reexport = True
                if self.text() == "(":
                    self.skip_group()
                continue
            if text == "use" and self.text(1) != "<":  # `use<'a>` is a bound
                self.use(module, reexport)
            elif text == "mod" and self.kind(1) == "ident":
                self.module(module, named_path)
                named_path = None
            elif text in _OPEN and self.kind() == "punct":
                self.at += 1
                self.items(module, _CLOSE[_OPEN.index(text)])
            elif self.kind() == "ident":
                if text in _DEFINING and self.kind(1) == "ident":
                    self.file.defined.add(self.text(1))
                self.expression_path(module)
            else:
                self.at += 1
            reexport = False

    def attribute(self):
        """Token texts inside the brackets of an attribute."""
        self.at += 2 if self.text(1) == "!" else 1
        start = self.at
        self.skip_group()
        return [token.text for token in self.tokens[start + 1 : self.at - 1]]

    def skip_group(self):
        depth = 0
        while self.at < len(self.tokens):
            if self.kind() == "punct" and self.text() in _OPEN:
                depth += 1
            elif self.kind() == "punct" and self.text() in _CLOSE:
                depth -= 1
            self.at += 1
            if depth == 0:
                return

    def skip_item(self, start):
        """Passes over the item, field or statement that a test attribute marks, and remembers where it stands."""
        while self.text() == "#":
            self.attribute()
        while self.text() == "pub":
            self.at += 1
            if self.text() == "(":
                self.skip_group()
        first = self.text()
        constant_function = first == "const" and self.text(1) in {"fn", "unsafe", "async", "extern"}
        if first == "mod" and self.text(2) == ";":
            self.file.test_children.add(self.text(1))
        if first in _SEMICOLON_ITEMS and not constant_function:
            ends = ";"
        elif first in _BLOCK_ITEMS or constant_function or first == "{":
            ends = ";{"
        else:
            ends = ",;{"
        while self.at < len(self.tokens):
            text, punct = self.text(), self.kind() == "punct"
            if punct and text in _CLOSE:
                break
            if punct and text in _OPEN:
                self.skip_group()
                if text == "{" and "{" in ends:
                    break
            else:
                self.at += 1
                if punct and text in ends:
                    break
        last = self.tokens[self.at - 1]
        self.file.test_spans.append((start, last.start + len(last.text)))

    def module(self, module, named_path):
        name = self.text(1)
        self.at += 2
        if self.text() == "{":
            self.at += 1
            self.items((*module, name), "}")
        elif module == self.file.module:
            self.file.children[name] = named_path

    def use(self, module, reexport):
        start = self.tokens[self.at].start
        self.at += 1
        for path, name in self.use_tree(()):
            self.file.uses.append(Use(module, name, path, reexport, start))

    def use_tree(self, prefix):
        """Pairs of path and name that a tree of `use` brings in, up to `;`, `,` or the closing brace."""
        found, path, name = [], prefix, None
        while self.at < len(self.tokens):
            text = self.text()
            if text == "{":
                self.at += 1
                while self.text() not in ("}", ""):
                    found += self.use_tree(path)
                    if self.text() == ",":
                        self.at += 1
                self.at += 1
                return found
            if text == "*":
                self.at += 1
                return [(path, "*")]
            if text == "as":
                name = self.text(1)
                self.at += 2
            elif text in ",;}":
                break
            else:
                if self.kind() == "ident":
                    path = (*path, text)
                self.at += 1
        if path and path[-1] == "self" and len(path) > 1:
            path = path[:-1]
        return [(path, name or path[-1])] if path else []

    def expression_path(self, module):
        """Reads `a::b::c`, or one word."""
        start, path = self.tokens[self.at].start, [self.text()]
        preceded = self.at > 0 and self.tokens[self.at - 1].kind == "path"
        self.at += 1
        while self.kind() == "path" and self.kind(1) == "ident":
            path.append(self.text(1))
            self.at += 2
        self.file.words.add(path[0])
        if len(path) > 1 and not preceded:
            self.file.paths.append((module, tuple(path), start))


def _is_test_attribute(attribute):
    if attribute == ["test"]:
        return True
    return attribute[:2] == ["cfg", "("] and "test" in attribute and "not" not in attribute


@dataclass
class Crate:
    """Files of a crate by module path; files that hold tests alone are left out."""

    name: str
    root: Path
    files: dict

    def resolve(self, module, path, seen=()):
        """The module path of the file that defines what `path` names in `module`; `None` if it is of another crate."""
        if (module, path) in seen:
            return None
        seen = (*seen, (module, path))
        first = path[0]
        if first == "crate":
            return self._descend((), path[1:], seen)
        if first in ("self", "super"):
            while path and path[0] in ("self", "super"):
                module = module[:-1] if path[0] == "super" else module
                path = path[1:]
            return self._descend(module, path, seen)
        file = self.files[self.file_of(module)]
        if (*module, first) in self.files:
            if len(path) > 1 or not self._named(file, module, first):
                return self._descend(module, path, seen)
        for use in self._named(file, module, first):
            if use.path != (first,):
                return self.resolve(use.module, (*use.path, *path[1:]), seen)
        return None

    def file_of(self, module):
        """The innermost module with a file of its own that holds `module`."""
        while module not in self.files:
            module = module[:-1]
        return module

    def is_module(self, module, path):
        """Whether `path` names a module that has a file of its own, and not also an item that its parent re-exports."""
        target = self.resolve(module, path)
        if target is None or path[-1] in ("super", "self", "crate"):
            return target is not None
        if not target or path[-1] != target[-1]:
            return False
        parent = target[:-1]
        return not any(use.reexport for use in self._named(self.files[parent], parent, target[-1]))

    @staticmethod
    def _named(file, module, name):
        return [use for use in file.uses if use.name == name and use.module == module]

    def _descend(self, module, path, seen):
        while path and (*module, path[0]) in self.files:
            file = self.files[self.file_of(module)]
            if len(path) == 1 and any(use.reexport for use in self._named(file, module, path[0])):
                break
            module, path = (*module, path[0]), path[1:]
        owner = self.file_of(module)
        if not path or path[0] == "*":
            return owner
        file = self.files[owner]
        for use in self._named(file, module, path[0]):
            found = self.resolve(use.module, (*use.path, *path[1:]), seen)
            if found is not None:
                return found
        if path[0] not in file.defined:
            for use in self._named(file, module, "*"):
                found = self.resolve(use.module, use.path, seen)
                if found is not None and found != owner and path[0] in self.files[found].defined:
                    return found
        return owner


def read_crate(root):
    """Reads the crate in folder `root`, from `src/lib.rs` and `src/main.rs`."""
    crate = Crate(root.name, root, {})
    for entry in ("src/lib.rs", "src/main.rs"):
        if (root / entry).is_file():
            _read_module(crate, root / entry, ())
            break
    return crate


def _read_module(crate, path, module):
    file = SourceFile(path, module, path.read_text(encoding="utf-8"))
    _Reader(file).read()
    crate.files[module] = file
    inner = path.parent if path.stem in ("lib", "main", "mod") else path.parent / path.stem
    for name, named_path in file.children.items():
        places = [inner / f"{name}.rs", inner / name / "mod.rs"]
        if named_path:
            places.insert(0, path.parent / named_path)
        place = next((place for place in places if place.is_file()), None)
        if place is not None and not is_test_file(place.relative_to(crate.root)):
            _read_module(crate, place, (*module, name))
