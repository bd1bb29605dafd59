//! The template engine, set up as `transformers` sets up its own, with bounds.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};

use super::json::tojson;
use super::python;

/// Name of the template in messages.
const NAME: &str = "chat_template";

/// Engine instructions per rendering. A long conversation takes thousands; a million takes a fraction of a second.
const MAX_STEPS: u64 = 1_000_000;

/// Longest text that a template may write.
const MAX_OUTPUT_BYTES: usize = 16 << 20;

/// An environment that holds the template `source`.
pub(super) fn compile(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .keep_trailing_newline(false)
        .build()?;
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(python::method);
    environment.set_fuel(Some(MAX_STEPS));
    environment.add_filter("tojson", tojson);
    environment.add_filter("trim", python::trim);
    environment.add_test("sequence", python::is_sequence);
    environment.add_test("iterable", python::is_iterable);
    environment.add_function("raise_exception", raise_exception);
    environment.add_template_owned(NAME, without_generation_tags(&with_newlines(source)))?;
    Ok(environment)
}

/// Runs the template; the error says why it could not.
pub(super) fn render(environment: &Environment<'_>, scope: Value) -> Result<String, String> {
    let template = environment
        .get_template(NAME)
        .map_err(|error| describe(&error))?;
    let mut output = BoundedText::default();
    // The engine panics where an empty text is sliced backwards, and may elsewhere. Rendering changes nothing but the output.
    let run = || template.render_captured_to(scope, &mut output).map(drop);
    let result = catch_unwind(AssertUnwindSafe(run))
        .map_err(|_| "the template engine cannot run it: it panicked".to_owned())?;
    if output.is_cut {
        return Err(format!("it writes more than {MAX_OUTPUT_BYTES} bytes"));
    }
    result.map_err(|error| describe(&error))?;
    String::from_utf8(output.bytes).map_err(|_| "it writes what is not UTF-8".to_owned())
}

/// The engine's error with its causes, on one line.
pub(super) fn describe(error: &Error) -> String {
    let text = error.to_string();
    let mut text = match error.kind() {
        ErrorKind::OutOfFuel => format!("it takes more than {MAX_STEPS} steps"),
        ErrorKind::UnknownFunction if text.contains("strftime_now") => format!(
            "{text}; a prompt that depends on the day is not the same in training and in use"
        ),
        _ => text,
    };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text.replace('\n', " ")
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the engine passes arguments by value"
)]
fn raise_exception(message: Value) -> Result<Value, Error> {
    Err(Error::new(
        ErrorKind::InvalidOperation,
        format!("the template raises: {message}"),
    ))
}

/// Line ends as the reference reads them: `\r\n` and `\r` are `\n`, inside string literals too.
fn with_newlines(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// Turns `{% generation %}` and `{% endgeneration %}`, which mark what an assistant wrote and print nothing, into tags
/// that this engine knows.
fn without_generation_tags(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open + 2);
        result.push_str(before);
        rest = tag;
        let Some(close) = tag.find("%}") else { break };
        let inside = &tag[..close];
        let word = inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let known = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        result.push_str(&inside.replacen(word, known, 1));
        rest = &tag[close..];
    }
    result.push_str(rest);
    result
}

/// Text up to [`MAX_OUTPUT_BYTES`]; what goes beyond is an error.
#[derive(Default)]
struct BoundedText {
    bytes: Vec<u8>,
    is_cut: bool,
}

impl Write for BoundedText {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MAX_OUTPUT_BYTES - self.bytes.len() {
            self.is_cut = true;
            return Err(io::Error::other("the text is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_generation_tags_are_replaced() {
        assert_eq!(
            without_generation_tags(
                "{%- generation -%}a{% endgeneration %}{% if generation %}{% generations %}{%generation"
            ),
            "{%- if true -%}a{% endif %}{% if generation %}{% generations %}{%generation"
        );
    }
}
