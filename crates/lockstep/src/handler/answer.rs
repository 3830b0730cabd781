//! Answers: the one JSON object that a handler may print on stdout.
//!
//! Read strictly. A handler's answer moves members, so a key that is misspelt, doubled or of the wrong type
//! fails the call, with a reason that names it, rather than being skipped in silence.

use std::collections::BTreeSet;

use lockstep_core::id::{Capability, NAME_LEN_MAX, StateName};
use lockstep_core::message::{Expect, Findings};
use serde_json::{Map, Value};

use crate::json;

/// Longest `out` and longest `facts`, each in bytes of JSON. They travel in reports, are kept in the journal and
/// are handed to other handlers: room for a position or a handful of measurements, not for a log.
pub const FIELD_BYTES_MAX: usize = 16 * 1024;

/// Deepest nesting of arrays and objects in an answer, its own braces included. JSON parsers stop at 128 levels;
/// an answer is wrapped in messages and contexts on its way, and must still be readable there.
pub const DEPTH_MAX: usize = 32;

/// Most processes that one member may name. A guard signals each within a lease's last tenth.
pub const PIDS_MAX: usize = 1_024;

/// Why an answer was refused; the text is shown to the operator as the call's reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AnswerError(String);

/// Most capabilities that one member may provide, and most that it may consume. Each may relate its group to every other.
pub const CAPABILITIES_MAX: usize = 100;

/// Reads what a handler printed. Nothing but white space is an empty answer.
///
/// # Errors
/// If it is anything but one JSON object with the keys of [`Findings`], each at most once, of the right type
/// and within its limits.
pub fn parse(stdout: &[u8]) -> Result<Findings, AnswerError> {
    let text = std::str::from_utf8(stdout)
        .map_err(|error| refuse(format!("stdout is not UTF-8: bad byte at {}", error.valid_up_to())))?;
    if text.trim().is_empty() {
        return Ok(Findings::default());
    }
    json::check(text).map_err(|error| match error.to_string() {
        message if message.starts_with("trailing characters") => {
            refuse("stdout holds more than one JSON value; print one object, once")
        }
        message => refuse(format!("stdout is not a JSON object: {message}")),
    })?;
    let value = serde_json::from_str(text)
        .map_err(|error| refuse(format!("stdout is not a JSON object: {error}")))?;
    let Value::Object(fields) = value else {
        return Err(refuse(format!("stdout must hold a JSON object, not {}", kind(&value))));
    };

    let mut answer = Findings::default();
    for (key, value) in fields {
        match key.as_str() {
            "out" => answer.out = object("out", value)?,
            "score" => answer.score = Some(score(&value)?),
            "facts" => answer.facts = object("facts", value)?,
            "state" => answer.state = Some(state(value)?),
            "pids" => answer.pids = Some(pids(&value)?),
            "expect" => answer.expect = Some(expect(&value)?),
            "provides" => answer.provides = capabilities("provides", value)?,
            "consumes" => answer.consumes = capabilities("consumes", value)?,
            _ => {
                let known = "out, score, facts, state, pids, expect, provides and consumes";
                return Err(refuse(format!("unknown key {key:?} on stdout; known are {known}")));
            }
        }
    }
    Ok(answer)
}

fn object(key: &str, value: Value) -> Result<Map<String, Value>, AnswerError> {
    let Value::Object(fields) = value else {
        return Err(refuse(format!("{key:?} must be an object, not {}", kind(&value))));
    };
    // The object itself sits one level inside the answer.
    if fields.values().any(|field| depth_exceeds(field, DEPTH_MAX - 2)) {
        return Err(refuse(format!("{key:?} is nested deeper than {DEPTH_MAX} levels")));
    }
    let len = serde_json::to_vec(&fields).map_or(usize::MAX, |bytes| bytes.len());
    if len > FIELD_BYTES_MAX {
        return Err(refuse(format!("{key:?} has {len} bytes of JSON; at most {FIELD_BYTES_MAX} are kept")));
    }
    Ok(fields)
}

fn score(value: &Value) -> Result<i64, AnswerError> {
    value.as_i64().ok_or_else(|| {
        refuse(format!("\"score\" must be an integer of 64 bits with sign, not {}", kind_or_number(value)))
    })
}

fn state(value: Value) -> Result<StateName, AnswerError> {
    match value {
        Value::String(state) => StateName::new(&state).map_err(|_| {
            let rule = format!("1 to {NAME_LEN_MAX} of A-Z a-z 0-9 _ -, a letter or digit first");
            refuse(format!("\"state\" is not a valid name: {rule}"))
        }),
        other => Err(refuse(format!("\"state\" must be a string, not {}", kind(&other)))),
    }
}

fn pids(value: &Value) -> Result<BTreeSet<u32>, AnswerError> {
    let Value::Array(items) = value else {
        return Err(refuse(format!("\"pids\" must be an array of process ids, not {}", kind(value))));
    };
    if items.len() > PIDS_MAX {
        return Err(refuse(format!("\"pids\" has {} entries; at most {PIDS_MAX} are kept", items.len())));
    }
    let pid = |item: &Value| {
        // To kill(2), 0 is the caller's own group and a negative one a whole group or everything; 1 is init.
        let pid = item.as_i64().and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 1);
        pid.map(i32::unsigned_abs).ok_or_else(|| {
            refuse(format!("\"pids\" must hold process ids above 1, not {}", kind_or_number(item)))
        })
    };
    items.iter().map(pid).collect()
}

fn expect(value: &Value) -> Result<Expect, AnswerError> {
    match value {
        Value::String(text) if text == "gone" => Ok(Expect::Gone),
        Value::String(_) => Err(refuse("\"expect\" must be \"gone\"")),
        other => Err(refuse(format!("\"expect\" must be \"gone\", not {}", kind(other)))),
    }
}

fn capabilities(key: &str, value: Value) -> Result<BTreeSet<Capability>, AnswerError> {
    let Value::Array(items) = value else {
        return Err(refuse(format!("{key:?} must be an array of capabilities, not {}", kind(&value))));
    };
    if items.len() > CAPABILITIES_MAX {
        return Err(refuse(format!(
            "{key:?} has {} entries; at most {CAPABILITIES_MAX} are kept",
            items.len()
        )));
    }
    let capability = |item: Value| match item {
        Value::String(name) => Capability::new(&name).map_err(|_| {
            refuse(format!("{key:?} holds a name that is none: 1 to {NAME_LEN_MAX} of A-Z a-z 0-9 _ - ."))
        }),
        other => Err(refuse(format!("{key:?} must hold names, not {}", kind_or_number(&other)))),
    };
    items.into_iter().map(capability).collect()
}

/// Whether `value` has more than `levels` levels of arrays and objects.
fn depth_exceeds(value: &Value, levels: usize) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        _ if levels == 0 => true,
        Value::Array(items) => items.iter().any(|item| depth_exceeds(item, levels - 1)),
        Value::Object(fields) => fields.values().any(|field| depth_exceeds(field, levels - 1)),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn kind_or_number(value: &Value) -> String {
    match value {
        Value::Number(number) => number.to_string(),
        other => kind(other).to_owned(),
    }
}

fn refuse(reason: impl Into<String>) -> AnswerError {
    AnswerError(reason.into())
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect as Text, expect};

    use super::*;

    #[test]
    fn good_answers() {
        for empty in ["", " \r\n\t\n", "{}", "{}\n"] {
            assert_eq!(parse(empty.as_bytes()), Ok(Findings::default()), "{empty:?}");
        }
        let full =
            br#"{"out":{"lsn":"0/3A0"},"score":-9223372036854775808,"facts":{"lag":{"ms":[1,2.5,null]}},
            "state":"standby","pids":[4242,17,17],"expect":"gone","provides":["sql","sql-15.4"],"consumes":["disk"]}"#;
        let answer = parse(full).unwrap();
        assert_eq!(answer.out["lsn"], "0/3A0");
        assert_eq!(answer.score, Some(i64::MIN));
        assert_eq!(answer.facts["lag"], serde_json::json!({"ms": [1, 2.5, null]}));
        assert_eq!(answer.state.unwrap().as_str(), "standby");
        assert_eq!(answer.pids, Some(BTreeSet::from([17, 4242])));
        assert_eq!(answer.expect, Some(Expect::Gone));
        let names = |set: BTreeSet<Capability>| set.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(answer.provides), ["sql", "sql-15.4"]);
        assert_eq!(names(answer.consumes), ["disk"]);
        assert_eq!(parse(br#"{"pids":[]}"#).unwrap().pids, Some(BTreeSet::new()));
    }

    #[test]
    fn the_largest_and_the_deepest_answer_fit() {
        let fill = FIELD_BYTES_MAX - r#"{"a":""}"#.len();
        let largest = format!(r#"{{"out":{{"a":"{}"}}}}"#, "x".repeat(fill));
        assert!(parse(largest.as_bytes()).is_ok());
        assert!(parse(largest.replace("xx", "xxx").as_bytes()).is_err());

        let nested = |levels: usize| {
            let inner = levels - 2;
            format!(r#"{{"out":{{"a":{}1{}}}}}"#, "[".repeat(inner), "]".repeat(inner))
        };
        assert!(parse(nested(DEPTH_MAX).as_bytes()).is_ok());
        assert!(parse(nested(DEPTH_MAX + 1).as_bytes()).is_err());
    }

    #[test]
    fn bad_answers() {
        let deep = format!(r#"{{"out":{{"a":{}"#, "[".repeat(10_000));
        let big = format!(r#"{{"facts":{{"a":"{}"}}}}"#, "x".repeat(FIELD_BYTES_MAX));
        let many = format!(r#"{{"pids":[{}2]}}"#, "2,".repeat(PIDS_MAX));
        let long_state = format!(r#"{{"state":"{}"}}"#, "s".repeat(100_000));
        let table: Vec<(&[u8], Text)> = vec![
            (b"ok", expect!["stdout is not a JSON object: expected value at line 1 column 1"]),
            (b"null", expect!["stdout must hold a JSON object, not null"]),
            (b"[]", expect!["stdout must hold a JSON object, not an array"]),
            (b"12", expect!["stdout must hold a JSON object, not a number"]),
            (b"\"yes\"", expect!["stdout must hold a JSON object, not a string"]),
            (b"{", expect!["stdout is not a JSON object: EOF while parsing an object at line 1 column 1"]),
            (b"{} {}", expect!["stdout holds more than one JSON value; print one object, once"]),
            (
                b"{}\n{\"score\":1}\n",
                expect!["stdout holds more than one JSON value; print one object, once"],
            ),
            (b"{} done", expect!["stdout holds more than one JSON value; print one object, once"]),
            (b"done {}", expect!["stdout is not a JSON object: expected value at line 1 column 1"]),
            (b"\xff{}", expect!["stdout is not UTF-8: bad byte at 0"]),
            (b"{\"out\":{\"a\":\"\xc3\x28\"}}", expect!["stdout is not UTF-8: bad byte at 13"]),
            (
                b"{\"stat\":\"online\"}",
                expect![[
                    r#"unknown key "stat" on stdout; known are out, score, facts, state, pids, expect, provides and consumes"#
                ]],
            ),
            (
                b"{\"a\\u0000\\u202eb\":1}",
                expect![[
                    r#"unknown key "a\0\u{202e}b" on stdout; known are out, score, facts, state, pids, expect, provides and consumes"#
                ]],
            ),
            (
                b"{\"score\":1,\"score\":2}",
                expect![[
                    r#"stdout is not a JSON object: the key "score" is there twice at line 1 column 21"#
                ]],
            ),
            (
                b"{\"out\":{\"a\":{\"b\":1,\"b\":1}}}",
                expect![[r#"stdout is not a JSON object: the key "b" is there twice at line 1 column 25"#]],
            ),
            (b"{\"out\":[]}", expect![[r#""out" must be an object, not an array"#]]),
            (b"{\"out\":null}", expect![[r#""out" must be an object, not null"#]]),
            (b"{\"facts\":\"a\"}", expect![[r#""facts" must be an object, not a string"#]]),
            (
                b"{\"provides\":\"sql\"}",
                expect![[r#""provides" must be an array of capabilities, not a string"#]],
            ),
            (b"{\"consumes\":[1]}", expect![[r#""consumes" must hold names, not 1"#]]),
            (
                b"{\"provides\":[\"a b\"]}",
                expect![[r#""provides" holds a name that is none: 1 to 63 of A-Z a-z 0-9 _ - ."#]],
            ),
            (b"{\"score\":NaN}", expect!["stdout is not a JSON object: expected value at line 1 column 10"]),
            (b"{\"score\":null}", expect![[r#""score" must be an integer of 64 bits with sign, not null"#]]),
            (
                b"{\"score\":\"12\"}",
                expect![[r#""score" must be an integer of 64 bits with sign, not a string"#]],
            ),
            (b"{\"score\":1.5}", expect![[r#""score" must be an integer of 64 bits with sign, not 1.5"#]]),
            (b"{\"score\":-0}", expect![[r#""score" must be an integer of 64 bits with sign, not -0.0"#]]),
            (
                b"{\"score\":9223372036854775808}",
                expect![[r#""score" must be an integer of 64 bits with sign, not 9223372036854775808"#]],
            ),
            (
                b"{\"score\":18446744073709551616}",
                expect![[r#""score" must be an integer of 64 bits with sign, not 1.8446744073709552e+19"#]],
            ),
            (
                b"{\"score\":1e999}",
                expect!["stdout is not a JSON object: number out of range at line 1 column 14"],
            ),
            (
                b"{\"state\":\"\"}",
                expect![[
                    r#""state" is not a valid name: 1 to 63 of A-Z a-z 0-9 _ -, a letter or digit first"#
                ]],
            ),
            (
                b"{\"state\":\"../a\"}",
                expect![[
                    r#""state" is not a valid name: 1 to 63 of A-Z a-z 0-9 _ -, a letter or digit first"#
                ]],
            ),
            (b"{\"state\":7}", expect![[r#""state" must be a string, not a number"#]]),
            (
                long_state.as_bytes(),
                expect![[
                    r#""state" is not a valid name: 1 to 63 of A-Z a-z 0-9 _ -, a letter or digit first"#
                ]],
            ),
            (b"{\"pids\":4242}", expect![[r#""pids" must be an array of process ids, not a number"#]]),
            (b"{\"pids\":[0]}", expect![[r#""pids" must hold process ids above 1, not 0"#]]),
            (b"{\"pids\":[1]}", expect![[r#""pids" must hold process ids above 1, not 1"#]]),
            (b"{\"pids\":[-1]}", expect![[r#""pids" must hold process ids above 1, not -1"#]]),
            (
                b"{\"pids\":[4294967298]}",
                expect![[r#""pids" must hold process ids above 1, not 4294967298"#]],
            ),
            (b"{\"pids\":[\"7\"]}", expect![[r#""pids" must hold process ids above 1, not a string"#]]),
            (many.as_bytes(), expect![[r#""pids" has 1025 entries; at most 1024 are kept"#]]),
            (b"{\"expect\":\"back\"}", expect![[r#""expect" must be "gone""#]]),
            (b"{\"expect\":true}", expect![[r#""expect" must be "gone", not a boolean"#]]),
            (
                deep.as_bytes(),
                expect!["stdout is not a JSON object: recursion limit exceeded at line 1 column 138"],
            ),
            (big.as_bytes(), expect![[r#""facts" has 16392 bytes of JSON; at most 16384 are kept"#]]),
        ];
        for (stdout, expected) in table {
            expected.assert_eq(&parse(stdout).expect_err("a bad answer").to_string());
        }
    }
}
