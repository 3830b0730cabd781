//! JSON as we accept it: UTF-8 without a byte order mark, one value, and no object with the same key twice.
//!
//! `serde_json` keeps the last of two equal keys in silence; a request that says two things is refused instead.
//! Depth is bounded by `serde_json` (128 levels). Every JSON that somebody hands us is read through here.

use crate::spec_file::clean;
use serde::Deserialize;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

/// Why a text was refused, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct JsonError {
    /// What is wrong, with line and column where they are known.
    pub message: String,
    /// The place in bytes.
    pub offset: usize,
    /// Whether it is not JSON at all, rather than JSON of the wrong shape.
    pub is_syntax: bool,
}

/// Reads bytes as UTF-8 without a byte order mark.
///
/// # Errors
/// If they are not that, with the place of the first byte that is wrong.
pub fn text(bytes: &[u8]) -> Result<&str, JsonError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let offset = error.valid_up_to();
        JsonError { message: format!("not UTF-8: bad byte at {offset}"), offset, is_syntax: true }
    })?;
    if text.starts_with('\u{feff}') {
        let message = "it starts with a byte order mark; save it as UTF-8 without one".to_owned();
        return Err(JsonError { message, offset: 0, is_syntax: true });
    }
    Ok(text)
}

/// Reads one JSON value.
///
/// # Errors
/// If the text is not one JSON value, has an object with the same key twice, or does not fit `T`.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, JsonError> {
    check(text).map_err(|error| refused(text, &error, true))?;
    serde_json::from_str(text).map_err(|error| refused(text, &error, false))
}

/// Reads one JSON object. Serde would take an array for a struct, its fields in the order in which we happen to
/// declare them.
///
/// # Errors
/// As [`parse`], and if it is another kind of value.
pub fn parse_object<T: DeserializeOwned>(text: &str) -> Result<T, JsonError> {
    check(text).map_err(|error| refused(text, &error, true))?;
    let offset = text.len() - text.trim_start().len();
    if !text[offset..].starts_with('{') {
        let message = "expected an object, in braces".to_owned();
        return Err(JsonError { message, offset, is_syntax: false });
    }
    serde_json::from_str(text).map_err(|error| refused(text, &error, false))
}

/// Whether the text is one JSON value without doubled keys.
///
/// # Errors
/// As `serde_json` tells them.
pub fn check(text: &str) -> serde_json::Result<()> {
    let mut reader = serde_json::Deserializer::from_str(text);
    Strict.deserialize(&mut reader)?;
    reader.end()
}

fn refused(text: &str, error: &serde_json::Error, is_syntax: bool) -> JsonError {
    // serde_json counts columns in bytes, from 1.
    let line = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum::<usize>();
    let offset = (line + error.column().saturating_sub(1)).min(text.len());
    JsonError { message: brief(&error.to_string()), offset, is_syntax }
}

/// A message that may quote what somebody sent, with its middle left out when that is long.
pub fn brief(message: &str) -> String {
    const SHOWN_MAX: usize = 400;
    let count = message.chars().count();
    if count <= SHOWN_MAX {
        return clean(message);
    }
    let (head, tail) = (message.chars().take(SHOWN_MAX - 60), message.chars().skip(count - 60));
    clean(&head.chain(" ... ".chars()).chain(tail).collect::<String>())
}

/// Walks a value and keeps nothing of it but the keys of the objects that it is in.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// A key, borrowed where it has no escapes.
#[derive(PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Key<'a>(#[serde(borrow)] std::borrow::Cow<'a, str>);

impl<'de> Visitor<'de> for Strict {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Strict)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut keys = BTreeSet::new();
        while let Some(key) = entries.next_key::<Key<'de>>()? {
            entries.next_value_seed(Strict)?;
            if keys.contains(&key) {
                return Err(de::Error::custom(format_args!("the key {:?} is there twice", key.0)));
            }
            keys.insert(key);
        }
        Ok(())
    }
}

/// Where the value at `path` (keys, and numbers in arrays) stands in a text that [`check`] accepts; where the
/// path ends early, the place of what encloses it.
pub fn locate<S: AsRef<str>>(text: &str, path: &[S]) -> Range<usize> {
    let mut scanner = Scanner { text, at: 0 };
    let mut place = scanner.value_range();
    for key in path {
        scanner.at = place.start;
        match scanner.child(key.as_ref()) {
            Some(child) => place = child,
            None => break,
        }
    }
    place
}

/// Steps over JSON that is known to be well formed.
struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl Scanner<'_> {
    fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }

    /// Steps over one value and tells where it stands.
    fn value_range(&mut self) -> Range<usize> {
        let mut depth = 0_usize;
        self.peek();
        let start = self.at;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => self.string(),
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth = depth.saturating_sub(1);
                    self.at += 1;
                }
                b',' | b':' => self.at += 1,
                _ => {
                    let rest = &self.text.as_bytes()[self.at..];
                    let ends = |byte: &u8| b",:{}[]\"".contains(byte) || byte.is_ascii_whitespace();
                    self.at += rest.iter().position(ends).unwrap_or(rest.len());
                }
            }
            if depth == 0 {
                break;
            }
        }
        start..self.at
    }

    fn string(&mut self) {
        self.at += 1;
        while let Some(&byte) = self.text.as_bytes().get(self.at) {
            match byte {
                b'\\' => self.at += 2,
                b'"' => {
                    self.at += 1;
                    return;
                }
                _ => self.at += 1,
            }
        }
    }

    /// The value under `key` of the object or array that begins here.
    fn child(&mut self, key: &str) -> Option<Range<usize>> {
        let open = self.peek()?;
        self.at += 1;
        for place in 0_usize.. {
            match self.peek()? {
                b'}' | b']' => return None,
                b',' => self.at += 1,
                _ => {}
            }
            self.peek()?;
            let is_wanted = if open == b'{' {
                let name = self.value_range();
                let name: String = serde_json::from_str(&self.text[name]).ok()?;
                self.peek()?;
                self.at += 1;
                name == key
            } else if open == b'[' {
                key.parse() == Ok(place)
            } else {
                return None;
            };
            let value = self.value_range();
            if is_wanted {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn one_value_and_no_key_twice() {
        for good in ["null", " {} ", r#"{"a":{"a":1},"b":[{"a":1},{"a":2}]}"#, "-0", "18446744073709551615"] {
            parse::<Value>(good).unwrap();
        }
        for (bad, message) in [
            ("", "EOF while parsing a value at line 1 column 0"),
            ("{} {}", "trailing characters at line 1 column 4"),
            ("NaN", "expected value at line 1 column 1"),
            (r#"{"a":1,"a":1}"#, "the key \"a\" is there twice at line 1 column 13"),
            (r#"{"a":1,"\u0061":1}"#, "the key \"a\" is there twice at line 1 column 18"),
            (r#"[[{"x":{"y":1,"y":2}}]]"#, "the key \"y\" is there twice at line 1 column 20"),
        ] {
            assert_eq!(parse::<Value>(bad).unwrap_err().message, message, "{bad}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse::<Value>(&deep).unwrap_err().message.starts_with("recursion limit"));
    }

    #[test]
    fn an_array_is_no_object() {
        #[derive(Debug, Deserialize)]
        struct Body {
            #[expect(dead_code, reason = "only its shape matters")]
            targets: Vec<String>,
        }
        parse_object::<Body>(r#" {"targets":[]}"#).unwrap();
        let error = parse_object::<Body>(r#" [["db=online"]]"#).unwrap_err();
        assert_eq!((error.offset, error.message.as_str()), (1, "expected an object, in braces"));
    }

    #[test]
    fn bytes_are_utf8_without_a_mark() {
        assert_eq!(text(b"{}").unwrap(), "{}");
        assert_eq!(text(b"{\xff}").unwrap_err().offset, 1);
        assert!(text(b"\xef\xbb\xbf{}").unwrap_err().message.contains("byte order mark"));
    }

    #[test]
    fn a_path_leads_to_its_value() {
        let text = r#" {"a" : [ {"b,]": "x\"}"} , {"b":-1.5e3 } ], "c": {} }"#;
        for (path, found) in [
            (&[][..], text.trim()),
            (&["a", "0", "b,]"][..], r#""x\"}""#),
            (&["a", "1", "b"][..], "-1.5e3"),
            (&["a", "1"][..], r#"{"b":-1.5e3 }"#),
            (&["a", "7", "b"][..], r#"[ {"b,]": "x\"}"} , {"b":-1.5e3 } ]"#),
            (&["c", "d"][..], "{}"),
            (&["a", "1", "b", "c"][..], "-1.5e3"),
        ] {
            assert_eq!(&text[locate(text, path)], found, "{path:?}");
        }
    }
}
