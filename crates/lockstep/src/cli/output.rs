//! What goes to standard output and standard error, and how it looks.
//!
//! Data goes to standard output in one of three forms; everything else to standard error. Nothing that came from
//! a host reaches a terminal unescaped.

use super::Failure;
pub use crate::spec_file::clean;
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{ErrorKind, IsTerminal, Write};

/// In which form data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Form {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
    /// For both
    Yaml,
}

impl Form {
    /// Prints a value; `table` draws it for people.
    pub fn print<T: Serialize>(self, value: &T, table: impl FnOnce() -> String) -> Result<(), Failure> {
        data(&self.text(value, table))
    }

    /// A value in this form; `table` draws it for people.
    pub fn text<T: Serialize>(self, value: &T, table: impl FnOnce() -> String) -> String {
        match self {
            Self::Table => table(),
            Self::Json => serde_json::to_string_pretty(value).expect("what we print is plain data"),
            Self::Yaml => yaml(&serde_json::to_value(value).expect("what we print is plain data")),
        }
    }
}

/// Writes to standard output, with a line feed at the end. Whoever closed the other end has read enough.
pub fn data(text: &str) -> Result<(), Failure> {
    stream(text).map(|_| ())
}

/// Writes to standard output like [`data`]; tells whether anybody reads on.
pub fn stream(text: &str) -> Result<bool, Failure> {
    let mut out = std::io::stdout().lock();
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    let written = out.write_all(text.as_bytes()).and_then(|()| out.write_all(end.as_bytes()));
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::error(format!("cannot write to standard output: {error}")))
        }
        Ok(()) => Ok(true),
        Err(_) => Ok(false),
    }
}

/// Writes a line to standard error. When that cannot be done there is nobody to tell.
pub fn note(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Whether standard error may be coloured: it is a terminal and `NO_COLOR` is not set.
pub fn has_colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A word in a colour, on a terminal that may have it.
pub fn painted(text: &str, colour: Colour) -> String {
    let code = match colour {
        Colour::Green => 32,
        Colour::Yellow => 33,
        Colour::Red => 31,
    };
    if has_colour() { format!("\x1b[1;{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// The colours we use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// As asked.
    Green,
    /// Not as asked, and safe.
    Yellow,
    /// Somebody has to act.
    Red,
}

/// Columns, as wide as their widest cell, without lines.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect()).collect();
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.len()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            write!(line, "{cell:<width$}  ").expect("a String takes all");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    line(&mut head.iter().copied());
    for row in &rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

/// YAML of plain data. Texts that could be read as something else are quoted the way JSON quotes, which YAML reads
/// the same. (The maintained crates that write YAML want a newer compiler than we ask for, or translated C.)
pub fn yaml(value: &Value) -> String {
    let mut text = String::new();
    write_yaml(value, 0, &mut text);
    text.trim_start_matches('\n').to_owned() + "\n"
}

fn write_yaml(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                write!(text, "\n{:indent$}-", "").expect("a String takes all");
                let mut inner = String::new();
                write_yaml(item, indent + 2, &mut inner);
                // The first line of a block goes behind its dash.
                let inner = inner.strip_prefix('\n').map(str::trim_start).map(|block| format!(" {block}"));
                match inner {
                    Some(block) => text.push_str(&block),
                    None => write_yaml(item, indent + 2, text),
                }
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                write!(text, "\n{:indent$}{}:", "", scalar(key)).expect("a String takes all");
                write_yaml(value, indent + 2, text);
            }
        }
        Value::String(string) => write!(text, " {}", scalar(string)).expect("a String takes all"),
        other => write!(text, " {other}").expect("a String takes all"),
    }
}

fn scalar(text: &str) -> String {
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./@".contains(&byte));
    let words = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"];
    if is_plain && !words.contains(&text.to_ascii_lowercase().as_str()) {
        return text.to_owned();
    }
    let quoted = serde_json::to_string(text).expect("a text is plain data");
    // JSON's own escapes do not cover marks that turn the line around.
    let escaped = |c: char| {
        if clean(&c.to_string()).len() > c.len_utf8() {
            format!("\\u{:04x}", u32::from(c))
        } else {
            c.to_string()
        }
    };
    quoted.chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn yaml_quotes_what_it_must() {
        let value = json!({
            "revision": 3, "none": null, "no": "off", "empty": [], "nothing": {},
            "items": [{"name": "pg-a", "labels": {"role": "db", "n": "1"}}, "a: b", ["x", ["y\n"]], "\u{202e}"],
        });
        expect![[r#"
            empty: []
            items:
              - labels:
                  "n": "1"
                  role: db
                name: pg-a
              - "a: b"
              - - x
                - - "y\n"
              - "\u202e"
            "no": "off"
            none: null
            nothing: {}
            revision: 3
        "#]]
        .assert_eq(&yaml(&value));
    }

    #[test]
    fn a_table_is_as_wide_as_its_cells_and_escapes_what_moves_the_cursor() {
        let rows = [vec!["db".into(), "a\x1b[2Jb".into()], vec!["long-name".into(), String::new()]];
        expect![[r"
            GROUP      WHY
            db         a\u{1b}[2Jb
            long-name
        "]]
        .assert_eq(&table(&["GROUP", "WHY"], &rows));
    }
}
