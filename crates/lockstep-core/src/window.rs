//! Maintenance windows: when planned transitions may move a group, by the wall clock, in UTC, week by week.

use crate::spec::list;
use crate::time::{WallTime, time_of_day};
use std::fmt;
use std::str::FromStr;

/// The most windows of one group: one for each hour of a week.
pub const WINDOWS_MAX: usize = 168;

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const MINUTE_MS: u64 = 60 * 1000;
const DAY_MIN: u64 = 24 * 60;
const DAY_MS: u64 = DAY_MIN * MINUTE_MS;
const WEEK_MS: u64 = 7 * DAY_MS;
/// 1970 began on a Thursday.
const FIRST_DAY: u64 = 3;

/// A window as it is written, such as `mon-fri 22:00-04:00`: the days on which it opens, and from when to when. One
/// that ends at an earlier time of day than it begins goes on into the next day.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Window {
    written: String,
    days: [bool; 7],
    /// When it opens, in minutes of the day.
    from: u64,
    /// For how long, in minutes: a day at most.
    len: u64,
}

impl Window {
    /// How long it has still to be closed, in milliseconds, on each of its days; 0 while it is open.
    fn closed_ms(&self, at: WallTime) -> impl Iterator<Item = u64> {
        let now = (at.0 + FIRST_DAY * DAY_MS) % WEEK_MS;
        let days = (0..).zip(self.days).filter(|(_, is_open)| *is_open);
        days.map(move |(day, _): (u64, bool)| {
            let opens = day * DAY_MS + self.from * MINUTE_MS;
            let for_ms = (now + WEEK_MS - opens) % WEEK_MS;
            if for_ms < self.len * MINUTE_MS { 0 } else { WEEK_MS - for_ms }
        })
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || "it is none of \"mon-fri 22:00-04:00\" and the like".to_owned();
        let (days, times) = text.split_once(' ').ok_or_else(shape)?;
        let mut open = [false; 7];
        for part in days.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (day(first)?, day(last)?);
            let count = (last + 7 - first) % 7 + 1;
            if first == last && part.contains('-') {
                return Err(format!("{part} leads from a day to itself"));
            }
            for at in (first..first + count).map(|at| at % 7) {
                if std::mem::replace(&mut open[at], true) {
                    return Err(format!("{} is named twice", DAYS[at]));
                }
            }
        }
        let (from, to) = times.split_once('-').ok_or_else(shape)?;
        let time = |text: &str| {
            let shown: String = text.chars().take(20).collect();
            time_of_day(text).ok_or_else(|| format!("{shown:?} is no time from 00:00 to 24:00"))
        };
        let (from, to) = (time(from)?, time(to)?);
        if from == DAY_MIN {
            return Err("it opens at 24:00, which is 00:00 of the next day".to_owned());
        }
        if from == to {
            return Err("it closes when it opens; a whole day is 00:00-24:00".to_owned());
        }
        let len = if to > from { to - from } else { to + DAY_MIN - from };
        Ok(Self { written: text.to_owned(), days: open, from, len })
    }
}

fn day(name: &str) -> Result<usize, String> {
    let shown: String = name.chars().take(20).collect();
    let place = DAYS.iter().position(|day| *day == name);
    place.ok_or_else(|| format!("{shown:?} is no day: they are {}", list(DAYS)))
}

/// The windows of a group: none, and it is always open.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Windows(Vec<Window>);

impl Windows {
    /// Those that are written so; else which of them is wrong, and how.
    pub fn parse(written: &[String]) -> Result<Self, (usize, String)> {
        let parsed = written.iter().enumerate();
        let windows = parsed.map(|(place, window)| window.parse().map_err(|problem| (place, problem)));
        windows.collect::<Result<_, _>>().map(Self)
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Window> {
        self.0.iter()
    }

    /// When the first of them opens after `at`; none while one is open, or when there are none.
    pub fn closed_until(&self, at: WallTime) -> Option<WallTime> {
        let closed_ms = self.0.iter().flat_map(|window| window.closed_ms(at)).min();
        closed_ms.filter(|ms| *ms > 0).map(|ms| at.plus(ms))
    }
}

impl fmt::Display for Windows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&list(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(written: &[&str]) -> Windows {
        let written: Vec<String> = written.iter().map(|&window| window.to_owned()).collect();
        Windows::parse(&written).unwrap()
    }

    #[test]
    fn a_group_is_open_in_its_windows_and_closed_until_the_next() {
        let nights = ["mon-fri 22:00-04:00"];
        let ends = ["sat,sun 00:00-24:00"];
        // 2026-11-23 is a Monday.
        for (written, at, opens) in [
            (&nights[..], "23T21:59:59.999", Some("23T22:00:00.000")),
            (&nights, "23T22:00:00.000", None),
            (&nights, "23T23:59:59.999", None),
            (&nights, "24T00:00:00.000", None),
            (&nights, "24T03:59:59.999", None),
            (&nights, "24T04:00:00.000", Some("24T22:00:00.000")),
            // Friday's window goes on into Saturday; Sunday has none.
            (&nights, "28T03:59:00.000", None),
            (&nights, "28T04:00:00.000", Some("30T22:00:00.000")),
            (&nights, "29T23:00:00.000", Some("30T22:00:00.000")),
            (&ends, "27T23:59:59.999", Some("28T00:00:00.000")),
            (&ends, "28T00:00:00.000", None),
            (&ends, "29T00:00:00.000", None),
            (&ends, "29T23:59:59.999", None),
            (&ends, "23T00:00:00.000", Some("28T00:00:00.000")),
            // Of several the first to open counts, and any one is enough.
            (&["mon 12:00-13:00", "tue 02:00-03:00"], "23T13:00:00.000", Some("24T02:00:00.000")),
            (&["mon 12:00-13:00", "mon 12:30-14:00"], "23T13:30:00.000", None),
            // From Sunday's evening into Monday, and a range of days over the end of the week.
            (&["sun 23:00-01:00"], "23T00:30:00.000", None),
            (&["sat-mon 10:00-11:00"], "23T10:30:00.000", None),
            (&["sat-mon 10:00-11:00"], "23T11:00:00.000", Some("28T10:00:00.000")),
            // The only one has just closed: a week later it opens again.
            (&["wed 10:00-10:01"], "25T10:01:00.000", Some("32T10:00:00.000")),
            (&["mon-sun 00:00-24:00"], "25T10:01:00.000", None),
            (&["mon-sun 12:00-11:59"], "25T11:59:59.999", Some("25T12:00:00.000")),
            (&[], "25T10:01:00.000", None),
        ] {
            let moment = |text: &str| {
                let text = match text.strip_prefix("32") {
                    Some(rest) => format!("2026-12-02{rest}Z"),
                    None => format!("2026-11-{text}Z"),
                };
                text.parse::<WallTime>().unwrap()
            };
            let closed = windows(written).closed_until(moment(at));
            assert_eq!(closed, opens.map(moment), "{written:?} at {at}");
        }
    }

    #[test]
    fn a_window_is_refused_with_what_is_wrong_with_it() {
        for (written, wanted) in [
            ("", "it is none of \"mon-fri 22:00-04:00\" and the like"),
            ("22:00-04:00", "it is none of \"mon-fri 22:00-04:00\" and the like"),
            ("mon 22:00", "it is none of \"mon-fri 22:00-04:00\" and the like"),
            ("mon  22:00-23:00", "\" 22:00\" is no time from 00:00 to 24:00"),
            ("Mon 22:00-23:00", "\"Mon\" is no day: they are mon, tue, wed, thu, fri, sat and sun"),
            ("mon- 22:00-23:00", "\"\" is no day: they are mon, tue, wed, thu, fri, sat and sun"),
            ("mon, 22:00-23:00", "\"\" is no day: they are mon, tue, wed, thu, fri, sat and sun"),
            ("mon-fri,fri 22:00-23:00", "fri is named twice"),
            ("sun-tue,mon 22:00-23:00", "mon is named twice"),
            ("mon-mon 22:00-23:00", "mon-mon leads from a day to itself"),
            ("mon 2:00-23:00", "\"2:00\" is no time from 00:00 to 24:00"),
            ("mon 22:60-23:00", "\"22:60\" is no time from 00:00 to 24:00"),
            ("mon 22:00-24:01", "\"24:01\" is no time from 00:00 to 24:00"),
            ("mon +2:00-23:00", "\"+2:00\" is no time from 00:00 to 24:00"),
            ("mon 22:00-23:00 ", "\"23:00 \" is no time from 00:00 to 24:00"),
            ("mon 24:00-23:00", "it opens at 24:00, which is 00:00 of the next day"),
            ("mon 22:00-22:00", "it closes when it opens; a whole day is 00:00-24:00"),
        ] {
            assert_eq!(written.parse::<Window>().unwrap_err(), wanted, "{written}");
        }
    }
}
