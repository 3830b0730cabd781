//! `--watch`: what a command shows, again whenever something has changed. Events say when; what is shown is read anew.
//!
//! On a terminal a table is drawn in place; everything else is printed as one document after another.

use super::client::{Client, ClientError};
use super::output::{Colour, Form, clean, note, painted, stream};
use super::stream::Events;
use super::{Exit, Failure};
use rustix::termios::tcgetwinsize;
use serde::Serialize;
use serde_json::Value;
use std::io::IsTerminal;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// How long changes are gathered after one has been shown: nobody reads faster, and a thousand events are one change.
const GATHER: Duration = Duration::from_millis(100);
/// It is read again after so long if no event has come: who is refused, or a server that has gone, is in none.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The pause before asking again, when no server answers.
const PAUSE: Duration = Duration::from_millis(250);

/// Something that is read at a revision.
pub trait AtRevision: Serialize {
    /// Up to which it is true.
    fn revision(&self) -> u64;
}

/// Shows what is read; with `watch` again and again, until interrupted.
pub async fn show<T: AtRevision>(
    client: &Client,
    watch: bool,
    form: Form,
    read: impl AsyncFn(&Client) -> Result<T, ClientError>,
    table: impl Fn(&T) -> String,
) -> Result<Exit, Failure> {
    let mut value = read(client).await?;
    if !watch {
        form.print(&value, || table(&value))?;
        return Ok(Exit::Done);
    }
    let mut shown = Shown { form, last: None };
    let mut events = Events::since(client, Some(value.revision()), true);
    loop {
        if !shown.show(&value, &table)? {
            return Ok(Exit::Done);
        }
        match changed(&mut events, value.revision(), Instant::now()).await {
            Ok(()) => {}
            // What has happened since is gone; how things stand is not.
            Err(ClientError::Refused(problem)) if problem.kept_since.is_some() => {
                value = again(client, &read).await?;
                events = Events::since(client, Some(value.revision()), true);
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        value = again(client, &read).await?;
    }
}

/// Waits until something has happened that is not shown yet, and then for what else happens soon; not for long.
async fn changed(events: &mut Events<'_>, revision: u64, read_at: Instant) -> Result<(), ClientError> {
    while let Ok(event) = timeout_at(read_at + LOOK_AGAIN, events.next()).await {
        if is_news(event?, revision) {
            break;
        }
    }
    while let Ok(event) = timeout_at(read_at + GATHER, events.next()).await {
        event?;
    }
    Ok(())
}

/// What is provisional is in no revision.
fn is_news(event: Option<String>, revision: u64) -> bool {
    let event = event.and_then(|event| serde_json::from_str::<Value>(&event).ok());
    event.is_none_or(|event| event["revision"].as_u64().is_none_or(|of_event| of_event > revision))
}

/// Reads until a server answers.
async fn again<T>(
    client: &Client,
    read: &impl AsyncFn(&Client) -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let mut is_told = false;
    loop {
        match read(client).await {
            Err(error @ (ClientError::Away(_) | ClientError::NotActive(_))) => {
                if !is_told {
                    let lacks = format!("no server {}:", error.lacks());
                    note(&format!("{} {}", painted(&lacks, Colour::Yellow), clean(error.why())));
                    is_told = true;
                }
                tokio::time::sleep(PAUSE).await;
            }
            read => return read,
        }
    }
}

/// What has been shown last.
struct Shown {
    form: Form,
    last: Option<Value>,
}

impl Shown {
    /// Shows it if it differs; tells whether anybody looks on.
    fn show<T: AtRevision>(&mut self, value: &T, table: &impl Fn(&T) -> String) -> Result<bool, Failure> {
        let mut content = serde_json::to_value(value).expect("what we print is plain data");
        // Revisions change with everything, of which most is shown elsewhere.
        if let Some(fields) = content.as_object_mut() {
            fields.remove("revision");
        }
        if self.last.as_ref() == Some(&content) {
            return Ok(true);
        }
        let is_first = self.last.replace(content).is_none();
        let screen = (self.form == Form::Table && std::io::stdout().is_terminal())
            .then(|| tcgetwinsize(std::io::stdout()).map_or((24, 80), |size| (size.ws_row, size.ws_col)));
        match screen {
            Some((rows, columns)) => stream(&drawn(&table(value), is_first, rows.into(), columns.into())),
            None => {
                let between = match self.form {
                    Form::Yaml => "---\n",
                    Form::Table if !is_first => "\n",
                    Form::Table | Form::Json => "",
                };
                stream(&format!("{between}{}", self.form.text(value, || table(value))))
            }
        }
    }
}

/// A table over what was drawn before, cut to the screen: what scrolls cannot be drawn over.
fn drawn(table: &str, is_first: bool, rows: usize, columns: usize) -> String {
    let (rows, columns) = (rows.max(3), columns.max(20));
    let lines: Vec<&str> = table.lines().collect();
    // The last row stays empty, for the cursor.
    let room = rows - 1;
    let kept = if lines.len() > room { room - 1 } else { lines.len() };
    let mut text = if is_first { "\x1b[2J\x1b[H" } else { "\x1b[H" }.to_owned();
    for line in &lines[..kept] {
        text.extend(line.chars().take(columns - 1));
        text.push_str("\x1b[K\n");
    }
    if kept < lines.len() {
        text.push_str(&format!("and {} more lines\x1b[K\n", lines.len() - kept));
    }
    text.push_str("\x1b[J");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_drawn_in_place_and_fits() {
        let first = drawn("A\nB\n", true, 24, 80);
        assert_eq!(first, "\x1b[2J\x1b[HA\x1b[K\nB\x1b[K\n\x1b[J");
        let next = drawn("A\n", false, 24, 80);
        assert_eq!(next, "\x1b[HA\x1b[K\n\x1b[J");
        let long: String = (0..10).map(|line| format!("{line}{}\n", "x".repeat(100))).collect();
        let cut = drawn(&long, false, 5, 20);
        let x = "x".repeat(18);
        assert_eq!(cut, format!("\x1b[H0{x}\x1b[K\n1{x}\x1b[K\n2{x}\x1b[K\nand 7 more lines\x1b[K\n\x1b[J"));
        assert_eq!(drawn(&long, false, 11, 200).lines().count(), 11, "ten lines and the cursor's");
    }

    #[test]
    fn what_has_been_read_already_is_no_news() {
        let event = |text: &str| Some(text.to_owned());
        assert!(!is_news(event(r#"{"revision":7}"#), 7));
        assert!(is_news(event(r#"{"revision":8}"#), 7));
        assert!(is_news(event(r#"{"revision":null,"provisional":true}"#), 7));
    }
}
