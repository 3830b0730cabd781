//! Time as core sees it: passed in, never asked for.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Milliseconds of a clock that only goes forward, with an origin of its owner's choice. Deadlines are
/// reckoned in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(pub u64);

impl Time {
    /// This moment and `ms` milliseconds more.
    #[must_use]
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` until this moment; 0 when it is not earlier.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A pause that is doubled each time, from the first to the last of these: the one after so many before it.
pub(crate) fn pause_ms((first, last): (u64, u64), before: u32) -> u64 {
    first.saturating_mul(1 << before.min(63)).min(last)
}

/// Milliseconds since 1970 by the wall clock. For people and the record: it may jump, so nothing that must hold rests
/// on it. Only what people mean by their own clocks follows it: when a window is open, and when a freeze ends. It is
/// written as RFC 3339 has it, in UTC, with milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WallTime(pub u64);

const MINUTE_MS: u64 = 60 * 1000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;

impl WallTime {
    /// The last moment that RFC 3339 can write: the end of the year 9999.
    pub const LAST: Self = Self(253_402_300_799_999);

    /// This moment and `ms` milliseconds more.
    #[must_use]
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` until this moment; 0 when it is not earlier.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// `2026-01-31T09:05:07.045Z`.
impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.min(Self::LAST.0);
        let (year, month, day) = date(ms / DAY_MS);
        let (second, ms) = (ms % DAY_MS / 1000, ms % 1000);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
    }
}

impl FromStr for WallTime {
    type Err = &'static str;

    /// A date, a time and an offset: `2026-01-31T09:05:07Z`, `2026-01-31T10:05:07.045+01:00`. What is finer than a
    /// millisecond is cut off, and a leap second is none.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const HELP: &str = "write a date, a time and an offset, such as 2026-01-31T09:05:00Z";
        if !text.is_ascii() || text.len() < 20 {
            return Err(HELP);
        }
        let (moment, rest) = text.split_at(19);
        let shape = |c: char| if c.is_ascii_digit() { '0' } else { c };
        if moment.chars().map(shape).ne("0000-00-00T00:00:00".chars()) {
            return Err(HELP);
        }
        let number = |at: usize, len: usize| moment[at..at + len].parse::<u64>().map_err(|_| HELP);
        let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
        let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
        let (fraction, offset) = match rest.strip_prefix('.') {
            Some(rest) => rest.split_at(rest.bytes().take_while(u8::is_ascii_digit).count()),
            None => ("0", rest),
        };
        let ms: u64 = format!("{fraction:0<3}")[..3].parse().map_err(|_| HELP)?;
        let days = days(year, month, day).ok_or("there is no such day")?;
        if hour > 23 || minute > 59 || second > 59 || fraction.is_empty() {
            return Err("there is no such time of day");
        }
        let here = days * DAY_MS + hour * HOUR_MS + minute * MINUTE_MS + second * 1000 + ms;
        let utc = if offset == "Z" {
            Some(here)
        } else {
            let (sign, offset) = offset.split_at_checked(1).ok_or(HELP)?;
            let ahead = time_of_day(offset).filter(|ahead| *ahead < 24 * 60).ok_or(HELP)? * MINUTE_MS;
            match sign {
                "+" => here.checked_sub(ahead),
                "-" => Some(here + ahead),
                _ => return Err(HELP),
            }
        };
        utc.filter(|utc| *utc <= Self::LAST.0).map(Self).ok_or("it is before 1970 or after 9999")
    }
}

/// `HH:MM` in minutes, from `00:00` to `24:00`.
pub(crate) fn time_of_day(text: &str) -> Option<u64> {
    let (hour, minute) = text.split_once(':')?;
    let two = |digits: &str| {
        let is_two = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_two.then(|| digits.parse::<u64>().ok()).flatten()
    };
    let (hour, minute) = (two(hour)?, two(minute)?);
    (minute < 60 && hour * 60 + minute <= 24 * 60).then_some(hour * 60 + minute)
}

/// The day's date in the Gregorian calendar; `days` since 1970-01-01. After Howard Hinnant's "chrono-compatible
/// low-level date algorithms": years that begin in March, so that the leap day comes last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day)
}

/// The day's number since 1970-01-01, if there is such a day: the inverse of [`date`].
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 1970 {
        return None;
    }
    let (year_from_march, month_from_march) =
        if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year_of_era) = (year_from_march / 400, year_from_march % 400);
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = (era * 146_097 + day_of_era).checked_sub(719_468)?;
    // The 31st of a shorter month is a day of the next one.
    (date(days) == (year, month, day)).then_some(days)
}

/// The two clocks, read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Now {
    /// What deadlines are reckoned in.
    pub time: Time,
    /// What the record shows.
    pub wall: WallTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_doubled_up_to_the_last() {
        let pauses = |before: [u32; 4]| before.map(|before| pause_ms((500, 30_000), before));
        assert_eq!(pauses([0, 1, 5, 6]), [500, 1000, 16_000, 30_000]);
        assert_eq!(pauses([16, 62, 64, u32::MAX]), [30_000; 4]);
    }

    #[test]
    fn times_are_written_as_people_and_machines_read_them() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_001, "2000-02-29T00:00:00.001Z"),
            (1_735_689_599_999, "2024-12-31T23:59:59.999Z"),
            (1_767_225_600_000, "2026-01-01T00:00:00.000Z"),
            (WallTime::LAST.0, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(WallTime(ms).to_string(), text);
            assert_eq!(text.parse(), Ok(WallTime(ms)), "{text}");
        }
        assert_eq!(WallTime(u64::MAX), WallTime(u64::MAX).plus(1));
        assert_eq!(WallTime(u64::MAX).to_string(), WallTime::LAST.to_string());
        // Each day there is, for a few hundred years.
        for day in (0..200_000).map(|day| WallTime(day * DAY_MS + 3)) {
            assert_eq!(day.to_string().parse(), Ok(day));
        }
    }

    #[test]
    fn times_are_read_with_their_offset() {
        for (text, utc) in [
            ("2026-01-31T09:05:07Z", "2026-01-31T09:05:07.000Z"),
            ("2026-01-31T09:05:07.5Z", "2026-01-31T09:05:07.500Z"),
            ("2026-01-31T09:05:07.123456789Z", "2026-01-31T09:05:07.123Z"),
            ("2026-01-31T00:05:07+01:30", "2026-01-30T22:35:07.000Z"),
            ("2026-02-28T23:30:00-00:30", "2026-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(text.parse::<WallTime>().map(|at| at.to_string()).as_deref(), Ok(utc), "{text}");
        }
        for bad in [
            "",
            "2026-01-31",
            "2026-01-31T09:05:07",
            "2026-01-31 09:05:07Z",
            "2026-01-31T09:05Z",
            "2026-02-30T00:00:00Z",
            "2025-02-29T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T23:60:00Z",
            "2026-01-01T23:59:60Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00+1:00",
            "2026-01-01T00:00:00+24:00",
            "2026-01-01T00:00:00*01:00",
            "2026-01-01T00:00:00+",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59-00:01",
            "+026-01-01T00:00:00Z",
            "2026-01-01T00:00:00z",
            "2026-01-01T00:00:00\u{2003}Z",
        ] {
            assert!(bad.parse::<WallTime>().is_err(), "{bad}");
        }
    }
}
