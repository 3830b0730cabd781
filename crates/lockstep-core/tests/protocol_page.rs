//! `docs/protocol.md` is the specification of the agent protocol. It is right as long as its examples are read by the
//! real types, and nothing of `message.rs` is missing from it.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use lockstep_core::message::{Expect, Order, PROTOCOL, Phase, Report};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const PAGE: &str = include_str!("../../../docs/protocol.md");
const SOURCE: &str = include_str!("../src/message.rs");

/// The examples that begin so.
fn examples(beginning: &str) -> Vec<&'static str> {
    PAGE.lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(beginning))
        .collect()
}

/// Whether all that is in `part` is in `whole` too, in the same places.
fn is_in(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => {
            part.iter().all(|(key, value)| whole.get(key).is_some_and(|other| is_in(value, other)))
        }
        (Value::Array(part), Value::Array(whole)) => {
            part.len() == whole.len() && part.iter().zip(whole).all(|(part, whole)| is_in(part, whole))
        }
        (part, whole) => part == whole,
    }
}

/// Reads each example, sees that nothing in it is passed over, and tells the kinds that have one.
fn read_all<T: Serialize + DeserializeOwned>(tag: &str) -> BTreeSet<String> {
    let read = |line: &&str| {
        let value: T = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let (given, known) = (serde_json::from_str(line).unwrap(), json!(value));
        assert!(is_in(&given, &known), "{line}\nhas what nobody reads; it is read as\n{known}");
        given[tag].as_str().unwrap().to_owned()
    };
    examples(&format!("{{\"{tag}\"")).iter().map(read).collect()
}

/// The names in `message.rs`: of fields, and of what its enums are made of. As text, since nothing else knows them all.
fn names() -> BTreeSet<String> {
    let (mut names, mut in_enum) = (BTreeSet::new(), false);
    // Constants and functions are not said.
    for line in SOURCE.lines() {
        let text = line.trim();
        let name: String = text
            .trim_start_matches("pub ")
            .chars()
            .take_while(|char| char.is_alphanumeric() || *char == '_')
            .collect();
        let rest = &text.trim_start_matches("pub ")[name.len()..];
        let is_field = rest.starts_with(": ")
            && text.ends_with(',')
            && (line.starts_with("    pub ") || line.starts_with("        ") && in_enum);
        let is_variant = in_enum && line.starts_with("    ") && !line.starts_with("     ");
        let is_variant = is_variant && name.starts_with(char::is_uppercase);
        match () {
            () if line.starts_with("pub enum ") => in_enum = true,
            () if line.starts_with('}') => in_enum = false,
            () if is_field => _ = names.insert(name),
            () if is_variant => _ = names.insert(kebab(&name)),
            () => {}
        }
    }
    names
}

fn kebab(name: &str) -> String {
    let mut text = String::new();
    for char in name.chars() {
        if char.is_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.extend(char.to_lowercase());
    }
    text
}

#[test]
fn the_examples_are_messages() {
    assert_eq!(read_all::<Order>("order"), Order::KINDS.map(str::to_owned).into());
    let reports = ["done", "goodbye", "guarded", "hello", "hold-ended", "noticed", "renew", "state"];
    assert_eq!(read_all::<Report>("report"), reports.map(str::to_owned).into());
}

#[test]
fn nothing_is_missing_from_the_page() {
    let names = names();
    for known in ["lease_ms", "hold-ended", "goodbye", "goal", "within_ms", "degraded", "observer", "gone"] {
        assert!(names.contains(known), "{known} should be found in message.rs: {names:?}");
    }
    let said: BTreeSet<&str> = PAGE.split('`').skip(1).step_by(2).collect();
    let missing: Vec<_> = names.iter().filter(|name| !said.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "docs/protocol.md says nothing of {missing:?}");
    for phase in Phase::ALL {
        assert!(PAGE.contains(&format!("| `{phase}` |")), "{phase} has a row");
    }
    assert!(
        said.contains(json!(Expect::Gone).as_str().unwrap()) && said.contains(PROTOCOL.to_string().as_str())
    );
}
