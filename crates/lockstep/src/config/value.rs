//! Values of a TOML file as they should be, or what is wrong with them and where.

use std::ops::{Range, RangeInclusive};
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

/// An error before it knows its file.
pub(super) struct Problem {
    pub(super) span: Range<usize>,
    pub(super) message: String,
    pub(super) label: String,
    pub(super) help: String,
}

pub(super) type Checked<T> = Result<T, Problem>;

pub(super) fn problem(
    span: Range<usize>,
    message: impl Into<String>,
    label: impl Into<String>,
    help: impl Into<String>,
) -> Problem {
    Problem { span, message: message.into(), label: label.into(), help: help.into() }
}

pub(super) fn millis(value: &Spanned<DeValue<'_>>, key: &str, range: &RangeInclusive<u64>) -> Checked<u64> {
    let DeValue::Integer(number) = value.get_ref() else {
        return Err(wrong_type(value, key, "a whole number of milliseconds"));
    };
    let ms = u64::from_str_radix(number.as_str(), number.radix()).ok();
    ms.filter(|ms| range.contains(ms)).ok_or_else(|| {
        let help = format!("{} to {}, in milliseconds", range.start(), range.end());
        problem(value.span(), format!("`{key}` is out of range"), "this number", help)
    })
}

pub(super) fn flag(value: &Spanned<DeValue<'_>>, key: &str) -> Checked<bool> {
    value.get_ref().as_bool().ok_or_else(|| wrong_type(value, key, "true or false"))
}

pub(super) fn refuse_nul(span: Range<usize>, text: &str) -> Checked<()> {
    if text.contains('\0') {
        let help = "no program can be given one; remove it";
        return Err(problem(span, "a NUL character", "in this text", help));
    }
    Ok(())
}

pub(super) fn unknown_key(key: &Spanned<impl AsRef<str>>, known: impl Into<String>) -> Problem {
    problem(key.span(), "unknown key", "not known here", known)
}

pub(super) fn wrong_type(value: &Spanned<DeValue<'_>>, what: &str, wanted: &str) -> Problem {
    other_type(value, format!("`{what}` has the wrong type"), format!("it takes {wanted}"))
}

fn other_type(value: &Spanned<DeValue<'_>>, message: String, help: impl Into<String>) -> Problem {
    problem(value.span(), message, format!("{} here", value.get_ref().type_str()), help)
}

pub(super) fn table<'a, 'i>(value: &'a Spanned<DeValue<'i>>, what: &str) -> Checked<&'a DeTable<'i>> {
    value.get_ref().as_table().ok_or_else(|| {
        let help = "write a table: [name] on its own line, or { key = value }";
        other_type(value, format!("{what} must be a table"), help)
    })
}

pub(super) fn array<'a, 'i>(
    value: &'a Spanned<DeValue<'i>>,
    what: &str,
    help: &str,
) -> Checked<&'a DeArray<'i>> {
    let array = value.get_ref().as_array();
    array.ok_or_else(|| other_type(value, format!("`{what}` must be an array"), help))
}

pub(super) fn string<'a>(value: &'a Spanned<DeValue<'_>>, what: &str) -> Checked<&'a str> {
    let text = value.get_ref().as_str();
    text.ok_or_else(|| other_type(value, format!("{what} must be a string"), "put it in quotes"))
}
