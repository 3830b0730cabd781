//! Every code that users can meet has a page in `docs/errors/`, and every page is of such a code.

use lockstep::api::problem::HttpCode;
use lockstep_core::request::Code;
use std::collections::BTreeSet;
use std::path::Path;

const ABORTS: [&str; 8] = [
    "vote-no",
    "vote-missing",
    "plan-stale",
    "preempted",
    "operator",
    "new-reign",
    "hold-too-short",
    "restored",
];

#[test]
fn each_code_has_a_page_and_each_page_a_code() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors");
    let mut codes: BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    codes.extend(ABORTS);
    codes.extend(HttpCode::ALL.map(HttpCode::as_str));
    codes.insert(lockstep::cli::offline::STATE_INVALID);
    for code in &codes {
        let page = std::fs::read_to_string(directory.join(format!("{code}.md")));
        let page = page.unwrap_or_else(|error| panic!("no page of {code}: {error}"));
        let parts: Vec<&str> = page.lines().filter(|line| line.starts_with('#')).collect();
        let title = format!("# {code}");
        assert_eq!(parts, [title.as_str(), "## What happened", "## As printed", "## What to do"], "{code}");
    }
    for page in std::fs::read_dir(directory).unwrap() {
        let name = page.unwrap().file_name().into_string().unwrap();
        let code = name.strip_suffix(".md").unwrap();
        assert!(codes.contains(code), "{name} is of no code");
    }
}
