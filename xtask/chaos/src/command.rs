//! Other programs, run to their end.

use std::io;
use std::process::Command;

/// Runs a command line of plain words; gives its standard output.
pub(crate) fn run(line: &str) -> io::Result<String> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    run_args(&words)
}

/// The same with arguments that have spaces in them.
pub(crate) fn run_args(words: &[&str]) -> io::Result<String> {
    let output = Command::new(words[0]).args(&words[1..]).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("`{}`: {}: {said}", words.join(" "), output.status)))
}
