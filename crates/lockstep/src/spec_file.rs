//! `cluster.toml`, or the same as JSON: read whole, checked whole, and refused with the place and what to do.

use crate::json::{self, JsonError};
use lockstep_core::request::{Code, Rejection};
use lockstep_core::spec::{Spec, SpecError, SpecFile};
use miette::{Diagnostic, LabeledSpan, NamedSource, SourceSpan};
use std::fmt::Display;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The largest file, in bytes. Ten thousand groups fit; a disk image given by mistake does not.
pub const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// A file that could not be used.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum FileError {
    /// It could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// What it says is refused.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Refused(Box<Refused>),
}

/// A refusal of what a file says, with its place.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// What kind: a rejection code, or `state-invalid`.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: String,
    span: SourceSpan,
    source_code: NamedSource<String>,
}

impl Refused {
    /// A refusal of what stands at `span` in a file.
    pub fn new(file: &File, span: Range<usize>, problem: Problem) -> Self {
        let (name, text, span) = excerpt(file, span);
        let span = SourceSpan::from((span.start, span.end - span.start));
        let source_code = NamedSource::new(name, text).with_language(file.format.name());
        let Problem { code, message, help } = problem;
        Self { code, message: json::brief(&message), help: json::brief(&help), span, source_code }
    }
}

/// Lines of more bytes are cut around the place that is meant.
const LINE_SHOWN_MAX: usize = 300;

/// What is shown of a file: its text, or, when lines there are too long for a terminal, a piece of one.
fn excerpt(file: &File, span: Range<usize>) -> (String, String, Range<usize>) {
    let text = printable(&file.text);
    let floor = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let (start, end) = (floor(span.start), floor(span.end.max(span.start)));
    let line_of = |at: usize| text[..at].matches('\n').count();
    let first = line_of(start).saturating_sub(1);
    if text.lines().skip(first).take(line_of(end) + 2 - first).all(|line| line.len() <= LINE_SHOWN_MAX) {
        return (file.name.clone(), text, start..end);
    }
    let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
    let from = floor(start.saturating_sub(60).max(line_start));
    let to = floor((start + 60).min(line_end));
    let name = format!("{}, in line {}", file.name, line_of(start) + 1);
    (name, text[from..to].to_owned(), start - from..end.min(to).max(start) - from)
}

/// The text with as many bytes, but without characters that move the cursor or turn a line around.
fn printable(text: &str) -> String {
    let shown = |c: char| match (c, c.len_utf8()) {
        ('\n' | '\t', _) => c.to_string(),
        (c, len @ 1..=2) if c.is_control() => "?".repeat(len),
        (c, _) if is_unprintable(c) => "\u{fffd}".to_owned(),
        (c, _) => c.to_string(),
    };
    text.chars().map(shown).collect()
}

/// Whether a character moves the cursor or turns a line around.
fn is_unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text from elsewhere, fit for a terminal: what moves the cursor or turns the line around is shown escaped.
pub fn clean(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut clean, c| {
        if is_unprintable(c) {
            clean.extend(c.escape_default())
        } else {
            clean.push(c)
        }
        clean
    })
}

impl Diagnostic for Refused {
    fn code<'a>(&'a self) -> Option<Box<dyn Display + 'a>> {
        Some(Box::new(self.code))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn Display + 'a>> {
        Some(Box::new(&self.help))
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        Some(&self.source_code)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        // The start of the file is where nothing in particular is meant.
        let is_meant = self.span.offset() > 0 || !self.span.is_empty();
        let here = LabeledSpan::new_primary_with_span(Some("here".to_owned()), self.span);
        Some(Box::new(is_meant.then_some(here).into_iter()))
    }
}

/// What is wrong, before it is known where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What kind: a rejection code, or `state-invalid`.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: String,
}

impl Problem {
    /// A problem of that kind.
    pub fn new(code: &'static str, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { code, message: message.into(), help: help.into() }
    }
}

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// TOML.
    Toml,
    /// JSON.
    Json,
}

impl Format {
    /// By the file's name: JSON when it ends in `.json`, else TOML.
    pub fn of(path: &Path) -> Self {
        if path.extension().is_some_and(|extension| extension == "json") { Self::Json } else { Self::Toml }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Toml => "toml",
            Self::Json => "json",
        }
    }
}

/// A file's text and what it is called in errors.
#[derive(Debug, Clone)]
pub struct File {
    /// Its name, for people.
    pub name: String,
    /// How it is written.
    pub format: Format,
    /// Its text.
    pub text: String,
}

impl File {
    /// Reads a file of at most [`FILE_BYTES_MAX`]; `code` is the kind of refusal when it is no plain UTF-8.
    ///
    /// # Errors
    /// If it cannot be read, is larger, or is not UTF-8 without a byte order mark.
    pub fn read(path: &Path, code: &'static str) -> Result<Self, FileError> {
        let mut bytes = Vec::new();
        let read =
            std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
        read.map_err(|source| FileError::Read { path: path.to_owned(), source })?;
        let name = path.display().to_string();
        Self::from_bytes(&name, Format::of(path), &bytes, code).map_err(FileError::Refused)
    }

    /// The same for bytes that are there already.
    ///
    /// # Errors
    /// If there are too many, or they are not UTF-8 without a byte order mark.
    pub fn from_bytes(
        name: &str,
        format: Format,
        bytes: &[u8],
        code: &'static str,
    ) -> Result<Self, Box<Refused>> {
        let file = |text: String| Self { name: name.to_owned(), format, text };
        if bytes.len() as u64 > FILE_BYTES_MAX {
            let problem = Problem::new(
                Code::TooLarge.as_str(),
                format!("the file has more than {FILE_BYTES_MAX} bytes"),
                "split the cluster; or is it another file?",
            );
            return Err(Box::new(Refused::new(&file(String::new()), 0..0, problem)));
        }
        match json::text(bytes) {
            Ok(text) => Ok(file(text.to_owned())),
            Err(error) => {
                let shown = file(String::from_utf8_lossy(&bytes[..error.offset]).into_owned());
                let problem = Problem::new(code, error.message, "save the file as UTF-8 text");
                Err(Box::new(Refused::new(&shown, error.offset..error.offset, problem)))
            }
        }
    }

    /// Reads the text as a `T`.
    ///
    /// # Errors
    /// If it is not well formed or does not fit.
    pub fn parse<T: serde::de::DeserializeOwned>(
        &self,
        code: &'static str,
        help: &str,
    ) -> Result<T, Box<Refused>> {
        let (span, message, is_syntax) = match self.format {
            Format::Json => match json::parse_object(&self.text) {
                Ok(value) => return Ok(value),
                Err(JsonError { message, offset, is_syntax }) => {
                    (offset..offset + 1, without_place(&message).to_owned(), is_syntax)
                }
            },
            Format::Toml => match toml::from_str(&self.text) {
                Ok(value) => return Ok(value),
                Err(error) => {
                    let message = error.message().split('\n').collect::<Vec<_>>().join("; ");
                    (error.span().unwrap_or(0..0), message, DeTable::parse(&self.text).is_err())
                }
            },
        };
        let problem = if is_syntax {
            let help = match self.format {
                Format::Toml => "quote strings, and write each table and key once",
                Format::Json => "write one JSON object, and each key once",
            };
            Problem::new(code, format!("not valid {}: {message}", self.format.name().to_uppercase()), help)
        } else {
            Problem::new(code, plain(&message), help)
        };
        Err(Box::new(Refused::new(self, span, problem)))
    }

    /// Where the value at a path of keys stands; what encloses it when the path ends early.
    pub fn locate<S: AsRef<str>>(&self, path: &[S]) -> Range<usize> {
        match self.format {
            Format::Json => json::locate(&self.text, path),
            Format::Toml => locate_toml(&self.text, path),
        }
    }
}

/// A `serde_json` message without the line and column that the source's rendering shows better.
fn without_place(message: &str) -> &str {
    message.rsplit_once(" at line ").map_or(message, |(message, _)| message)
}

/// What serde says of untagged enums names our types and nothing that a user has written.
pub fn plain(message: &str) -> String {
    let kinds = [
        ("SettingValue", "a setting is true, false, a whole number of 64 bits, or text"),
        ("Selector", "a label is selected by a text such as \"db\" or \">100\", or by a list of texts"),
    ];
    let found = kinds.iter().find(|(kind, _)| {
        message.starts_with(&format!("data did not match any variant of untagged enum {kind}"))
    });
    match found {
        Some((kind, text)) => {
            let place = message.split_once(kind).map_or("", |(_, place)| place);
            format!("{text}{place}")
        }
        None => message.to_owned(),
    }
}

fn locate_toml<S: AsRef<str>>(text: &str, path: &[S]) -> Range<usize> {
    let Ok(document) = DeTable::parse(text) else { return 0..0 };
    let mut place = 0..0;
    let mut table = Some(document.get_ref());
    let mut array: Option<&[Spanned<DeValue<'_>>]> = None;
    for key in path {
        let key = key.as_ref();
        let value = if let Some(table) = table {
            table.iter().find(|(name, _)| name.get_ref() == key).map(|(name, value)| {
                // A table's own span is its header's or its braces'; the key is what the user looks for.
                let span = if value.get_ref().is_table() { name.span() } else { value.span() };
                (span, value)
            })
        } else {
            let item = key.parse::<usize>().ok().and_then(|place| array?.get(place));
            item.map(|value| (value.span(), value))
        };
        let Some((span, value)) = value else { break };
        place = span;
        table = value.get_ref().as_table();
        array = value.get_ref().as_array().map(|array| &array[..]);
    }
    place
}

/// Help for a spec of the wrong shape.
const SPEC_HELP: &str = "`cluster`, [groups.NAME], [[relations]] and [lifecycles.NAME] make a spec; \
                         see the page of spec-invalid";

/// Reads and checks the spec at `path`.
///
/// # Errors
/// If it cannot be read or is refused.
pub fn load(path: &Path) -> Result<(SpecFile, Spec), FileError> {
    let file = File::read(path, Code::SpecInvalid.as_str())?;
    parse(&file).map_err(FileError::Refused)
}

/// Reads and checks a spec.
///
/// # Errors
/// If it is refused.
pub fn parse(file: &File) -> Result<(SpecFile, Spec), Box<Refused>> {
    let written: SpecFile = file.parse(Code::SpecInvalid.as_str(), SPEC_HELP)?;
    let spec = check(file, &written)?;
    Ok((written, spec))
}

fn check(file: &File, written: &SpecFile) -> Result<Spec, Box<Refused>> {
    written.check().map_err(|error| {
        let span = file.locate(&error.path);
        let message = error.to_string();
        let Rejection { code, help, .. } = rejection(error);
        let problem = Problem::new(code.as_str(), message, help);
        Box::new(Refused::new(file, span, problem))
    })
}

/// A spec's error as a rejection.
pub fn rejection(error: SpecError) -> Rejection {
    let code = if error.is_cycle { Code::Cycle } else { Code::SpecInvalid };
    Rejection::new(code, error.to_string(), error.help)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(format: Format, text: &str) -> File {
        File { name: "cluster".to_owned(), format, text: text.to_owned() }
    }

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = "cluster = 'c'\n[groups.db]\nselect = { role = ['a', 'b'] }\nsettings = { n = 1 }\n";
        let json = r#"{"cluster":"c","groups":{"db":{"select":{"role":["a","b"]},"settings":{"n":1}}}}"#;
        assert_eq!(parse(&file(Format::Toml, toml)).unwrap().0, parse(&file(Format::Json, json)).unwrap().0);
    }

    #[test]
    fn a_path_leads_to_its_place() {
        let toml = "cluster = 'c'\n[groups.db]\nretries = 7\n[[relations]]\nfrom = 'x'\nto = 'y'\n";
        let toml = file(Format::Toml, toml);
        for (path, found) in [
            (&["groups", "db", "retries"][..], "7"),
            (&["groups", "db"], "db"),
            (&["groups", "db", "hold_ms"], "db"),
            (&["relations", "0", "to"], "'y'"),
        ] {
            assert_eq!(&toml.text[toml.locate(path)], found, "{path:?}");
        }
    }

    #[test]
    fn depth_ends_in_an_error_and_not_in_the_stack() {
        for (format, text) in [
            (Format::Toml, format!("a = {}", "[".repeat(1_000_000))),
            (Format::Toml, format!("{}a = 1", "a.".repeat(100_000))),
            (Format::Json, format!("{{\"groups\":{}", "{\"a\":".repeat(1_000_000))),
        ] {
            parse(&file(format, &text)).unwrap_err();
        }
    }
}
