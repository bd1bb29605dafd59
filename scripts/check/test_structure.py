"""Tests of structure.py, on small crates written into a temporary folder."""

import contextlib
import io
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import structure
from rust_modules import read_crate, tokens_of


class CrateCase(unittest.TestCase):
    def crate(self, **sources):
        """Writes `lib=...`, `a=...`, `folder__file=...` as `src/*.rs` and reads the crate."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        root = Path(folder.name) / "small"
        for name, text in sources.items():
            path = root / "src" / (name.replace("__", "/") + ".rs")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return read_crate(root)

    def edges(self, **sources):
        edges = structure.edges_of(self.crate(**sources))
        return {("/".join(file), "/".join(target)) for file, used in edges.items() for target in used}

    def circles(self, **sources):
        return structure.check_circles(self.crate(**sources))


class Edges(CrateCase):
    def test_use_names_the_defining_file(self):
        self.assertEqual(self.edges(lib="mod a; mod b;", a="use crate::b::B;", b="pub struct B;"), {("a", "b")})

    def test_a_reexport_counts_as_its_definition(self):
        lib = "mod a; mod b; pub use b::{B as C, Other};"
        self.assertEqual(self.edges(lib=lib, a="use crate::C;", b="pub struct B;"), {("a", "b")})

    def test_a_glob_reexport_counts_as_its_definition(self):
        lib = "mod a; mod b; mod c; pub use b::*; pub use c::*;"
        sources = {"a": "use crate::{C};", "b": "pub struct B;", "c": "pub fn C() {}"}
        self.assertEqual(self.edges(lib=lib, **sources), {("a", "c")})

    def test_declaring_and_reexporting_a_child_is_no_use(self):
        self.assertEqual(self.edges(lib="pub mod a; pub use crate::a::A; pub use a::B;", a="pub struct A; pub struct B;"), set())

    def test_a_reexported_name_in_code_is_a_use(self):
        self.assertEqual(self.edges(lib="mod a; pub use a::A; fn f(_: A) {}", a="pub struct A;"), {("", "a")})

    def test_an_item_of_the_parent_is_a_use_of_the_parent(self):
        edges = self.edges(lib="mod a;", a="mod b; pub struct A;", a__b="use super::A;")
        self.assertEqual(edges, {("a/b", "a")})

    def test_an_item_that_the_parent_imports_is_a_use_of_its_file(self):
        edges = self.edges(lib="mod a; mod c;", a="mod b; use crate::c::C;", a__b="use super::C;", c="pub struct C;")
        self.assertEqual(edges, {("a", "c"), ("a/b", "c")})

    def test_paths_in_code_are_uses(self):
        a = "use crate::c; fn f() -> crate::b::B { c::make(); std::mem::drop(1); Self::x() }"
        self.assertEqual(self.edges(lib="mod a; mod b; mod c;", a=a, b="", c="pub fn make() {}"), {("a", "b"), ("a", "c")})

    def test_super_in_an_inline_module_is_the_file_itself(self):
        self.assertEqual(self.edges(lib="mod a; mod b;", a="mod inner { use super::X; use super::super::b::B; } struct X;", b=""), {("a", "b")})

    def test_a_module_and_a_function_of_one_name_are_told_apart(self):
        lib = "mod a; mod start; pub use start::start;"
        self.assertEqual(self.edges(lib=lib, a="use crate::start;", start="pub fn start() {}"), {("a", "start")})

    def test_comments_strings_and_bounds_are_no_uses(self):
        a = """// use crate::b::B;
        /* crate::b /* nested */ crate::b */
        const TEXT: &str = "crate::b::B \\" crate::b"; const RAW: &str = r#"crate::b " crate::b"#; const QUOTE: char = '"';
        fn f<'a>(x: &'a str) -> impl Fn() + use<'a> { move || drop(x) }"""
        self.assertEqual(self.edges(lib="mod a; mod b;", a=a, b=""), set())

    def test_tests_are_left_out(self):
        a = """#[cfg(test)] use crate::b::B;
        #[cfg(test)] pub(crate) fn helper(x: [u8; 3]) -> Vec<crate::b::B> { crate::b::make() }
        struct S { #[cfg(test)] field: crate::b::B, other: u8 }
        #[cfg(test)] mod tests { use crate::b::B; mod inner { use crate::b::C; } }
        #[test] fn t() { crate::b::make(); }
        #[cfg(test)] #[path = "a_tests.rs"] mod more;
        fn after() { crate::c::C; }"""
        sources = {"a": a, "b": "", "c": "", "a_tests": "use crate::b::B;", "tests": "use crate::a::A;"}
        self.assertEqual(self.edges(lib="mod a; mod b; mod c; #[cfg(test)] mod tests;", **sources), {("a", "c")})


class Circles(CrateCase):
    def test_two_files(self):
        (message,) = self.circles(lib="mod a; mod b;", a="\nuse crate::b::B;", b="use crate::a::A;")
        self.assertIn("2 files use one another in a circle (a.rs, b.rs)", message)
        self.assertIn("a.rs:2 uses b.rs", message)
        self.assertIn("b.rs:1 uses a.rs", message)

    def test_parent_and_child(self):
        (message,) = self.circles(lib="mod a;", a="mod b; use b::B; pub struct A;", a__b="use super::A; pub struct B;")
        self.assertIn("(a.rs, a/b.rs)", message)

    def test_the_shortest_way_round_is_named(self):
        sources = {"a": "use crate::b::B;", "b": "use crate::c::C;", "c": "use crate::a::A; use crate::b::B;"}
        (message,) = self.circles(lib="mod a; mod b; mod c;", **sources)
        self.assertIn("3 files", message)
        self.assertNotIn("a.rs:1 uses", message)

    def test_a_line_is_no_circle(self):
        sources = {"a": "use crate::b::B;", "b": "use crate::c::C;", "c": "pub struct C;"}
        self.assertEqual(self.circles(lib="mod a; mod b; mod c; pub use a::A;", **sources), [])


class Names(CrateCase):
    def test_a_task_outside_tests_is_reported(self):
        a = "fn mcd() {}\nstruct McdTask;\nfn x() {}\n#[cfg(test)]\nmod tests { fn mcd() {} }\n// countdown\nstruct Medium;\n"
        messages = structure.check_tasks(self.crate(lib="mod a;", a=a))
        self.assertEqual([message.split(":")[1] for message in messages], ["1", "2", "6"])


class Command(CrateCase):
    def run_in(self, root, *arguments):
        out, err = io.StringIO(), io.StringIO()
        with mock.patch.object(structure, "ROOT", root), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = structure.main(list(arguments))
        return status, out.getvalue(), err.getvalue()

    def workspace(self, text):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        source = Path(folder.name) / "crates/one/src/lib.rs"
        source.parent.mkdir(parents=True)
        source.write_text(text, encoding="utf-8")
        (source.parents[1] / "Cargo.toml").write_text("", encoding="utf-8")
        return Path(folder.name)

    def test_a_long_file_fails(self):
        status, _, err = self.run_in(self.workspace("\n" * 801))
        self.assertEqual(status, 1)
        self.assertIn("one/src/lib.rs: 801 lines, more than 800", err)

    def test_a_clean_crate_passes(self):
        status, out, _ = self.run_in(self.workspace("struct Mcd;\n"))
        self.assertEqual((status, out[:20]), (0, "structure: 1 crates,"))

    def test_task_names_fail_only_if_asked_for(self):
        self.assertEqual(self.run_in(self.workspace("struct Mcd;\n"), "--tasks")[0], 1)

    def test_a_folder_of_tasks_is_a_name(self):
        text = 'use std::cmp::Reverse;\nlet a = "reverse";\nstruct ReverseTask;\nv.reverse();\n'
        root = self.workspace(text)
        (root / "crates/tasks/src/reverse").mkdir(parents=True)
        status, _, err = self.run_in(root, "--tasks", "one")
        self.assertEqual(status, 1)
        self.assertEqual([line.split(":")[2] for line in err.splitlines() if "names a task" in line], ["2", "3"])

    def test_a_crate_that_is_not_there_fails(self):
        status, _, err = self.run_in(self.workspace(""), "two")
        self.assertEqual(status, 1)
        self.assertIn("two: no src/lib.rs", err)

    def test_the_report_lists_sizes(self):
        status, out, _ = self.run_in(self.workspace("\n" * 500), "--report")
        self.assertEqual(status, 0)
        self.assertIn("500 one/src/lib.rs", out)


class Tokens(unittest.TestCase):
    def test_lifetimes_and_characters(self):
        kinds = [(token.kind, token.text) for token in tokens_of("'a 'b' '\\n' b'x' r\"y\" r#type 'static")]
        self.assertEqual([kind for kind, _ in kinds], ["life", "char", "char", "char", "string", "ident", "life"])


if __name__ == "__main__":
    unittest.main()
