//! Reasons: a line that a handler wrote, made fit to be stored, logged and shown on a terminal or a page.

use std::fmt::Write;

/// Longest reason, in characters. It is kept in a journal record and shown in one table row.
pub(super) const REASON_CHARS_MAX: usize = 1_000;

/// Last line of `output` that is not blank, made printable; `None` if there is none.
///
/// A carriage return ends a line too: progress bars overwrite theirs.
pub(super) fn last_line(output: &[u8]) -> Option<String> {
    let line = output.split(|byte| matches!(byte, b'\n' | b'\r')).rev().find(|line| {
        // Blank means nothing to read; an escape sequence on its own is still evidence.
        !line.iter().all(u8::is_ascii_whitespace)
    })?;
    // A character takes at most four bytes; what is beyond would be cut below anyway.
    let line = &line[..line.len().min(4 * (REASON_CHARS_MAX + 1))];
    Some(printable(String::from_utf8_lossy(line).trim()))
}

/// `text` with every character that could change how the rest is shown written as `\u{...}`, cut to
/// [`REASON_CHARS_MAX`] characters. A cut one ends in `…`.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::new();
    for char in text.chars().take(REASON_CHARS_MAX + 1) {
        if char == '\t' {
            shown.push(' ');
        } else if char.is_control() || is_invisible_format(char) {
            write!(shown, "{}", char.escape_unicode()).expect("a string takes any text");
        } else {
            shown.push(char);
        }
    }
    match shown.char_indices().nth(REASON_CHARS_MAX) {
        None => shown,
        Some(_) => shown.chars().take(REASON_CHARS_MAX - 1).chain(['…']).collect(),
    }
}

/// Marks that reorder, hide or break text without being control characters: bidirectional marks, zero-width
/// ones, line and paragraph separators, tags.
fn is_invisible_format(char: char) -> bool {
    matches!(char,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines() {
        let long = "é".repeat(REASON_CHARS_MAX + 1);
        let cut = format!("{}…", "é".repeat(REASON_CHARS_MAX - 1));
        let whole = "é".repeat(REASON_CHARS_MAX);
        let table: &[(&[u8], Option<&str>)] = &[
            (b"", None),
            (b" \n\t\r\n", None),
            (b"one\ntwo", Some("two")),
            (b"one\ntwo\n\n  \n", Some("two")),
            (b"10 %\r50 %\rfailed\r\n", Some("failed")),
            (b"  a\tb  \n", Some("a b")),
            (b"\x1b[2Jgone\0", Some("\\u{1b}[2Jgone\\u{0}")),
            ("a\u{202e}b\u{200b}c\u{2028}d".as_bytes(), Some("a\\u{202e}b\\u{200b}c\\u{2028}d")),
            (b"\xff\xfebad", Some("\u{fffd}\u{fffd}bad")),
            (b"<script>", Some("<script>")),
            (whole.as_bytes(), Some(&whole)),
            (long.as_bytes(), Some(&cut)),
        ];
        for (output, expected) in table {
            assert_eq!(last_line(output).as_deref(), *expected, "{:?}", String::from_utf8_lossy(output));
        }
        assert_eq!(printable(&"\0".repeat(2_000)).chars().count(), REASON_CHARS_MAX);
    }
}
