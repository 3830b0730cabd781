//! A watchdog device: resets the machine when nobody has written to it for a while.
//!
//! It stands in for a guard that cannot act, so the time that it takes has to fit in before the lease's end. Setting
//! that time needs an ioctl, and with it `unsafe`; so it is set by who sets up the host, and read here.

use lockstep_core::time::Time;
use rustix::fs::OFlags;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A device that agent.toml names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchdogConfig {
    /// The device, such as `/dev/watchdog`.
    pub device: PathBuf,
    /// After how long without a sign it resets the machine, in ms, where the kernel does not say (`/sys/class/watchdog`).
    pub timeout_ms: Option<u64>,
}

/// The device, open: it bites unless it is fed.
#[derive(Debug)]
pub(super) struct Watchdog {
    device: File,
    timeout_ms: u64,
    /// When it is fed next.
    next: Time,
}

impl Watchdog {
    /// Arms the device for a lease of which `left_ms` are left.
    ///
    /// Errors: it cannot be opened, its time is not known, or does not fit into the lease twice; then a renewal that
    /// comes a little late would reset a healthy host.
    pub(super) fn arm(config: &WatchdogConfig, left_ms: u64, now: Time) -> io::Result<Self> {
        let said = said_timeout_ms(&config.device);
        let timeout_ms = said.or(config.timeout_ms).ok_or_else(|| {
            io::Error::other("the kernel does not tell its timeout: give watchdog_timeout_ms in agent.toml")
        })?;
        if !fits(timeout_ms, left_ms) {
            return Err(too_long(left_ms));
        }
        // A device that waits for something must not make the guard wait.
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).expect("a small flag");
        let device = File::options().write(true).custom_flags(flags).open(&config.device)?;
        let mut watchdog = Self { device, timeout_ms, next: now };
        watchdog.feed(now)?;
        Ok(watchdog)
    }

    /// By how much before the lease's end the guard has to act: the last sign is older than the timeout at the end.
    pub(super) fn early_ms(&self) -> u64 {
        early_ms(self.timeout_ms)
    }

    /// Whether it still fits into a lease of which `left_ms` are left.
    pub(super) fn fits(&self, left_ms: u64) -> bool {
        fits(self.timeout_ms, left_ms)
    }

    /// When it wants to be fed.
    pub(super) fn next(&self) -> Time {
        self.next
    }

    pub(super) fn feed(&mut self, now: Time) -> io::Result<()> {
        self.next = now.plus(self.timeout_ms / 4);
        self.device.write_all(b"1")
    }

    /// Stops it, where the driver can be stopped.
    pub(super) fn disarm(mut self) -> io::Result<()> {
        self.device.write_all(b"V")
    }
}

/// The timeout, and what the guard may take to do its work.
fn early_ms(timeout_ms: u64) -> u64 {
    timeout_ms.saturating_add(timeout_ms / 4)
}

fn fits(timeout_ms: u64, left_ms: u64) -> bool {
    early_ms(timeout_ms) <= left_ms / 2
}

/// The lease is shorter than such a device allows. One text while a lease has its length, whatever is left of it.
pub(super) fn too_long(left_ms: u64) -> io::Error {
    let seconds = left_ms.div_ceil(1000);
    io::Error::other(format!(
        "its timeout is too long for a lease of {seconds} s: set a shorter one, or a longer lease_ms"
    ))
}

/// What the kernel says of a device's timeout.
fn said_timeout_ms(device: &Path) -> Option<u64> {
    let name = device.file_name()?.to_str()?;
    let name = if name == "watchdog" { "watchdog0" } else { name };
    let text = fs::read_to_string(Path::new("/sys/class/watchdog").join(name).join("timeout")).ok()?;
    text.trim().parse::<u64>().ok().map(|seconds| seconds.saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_armed_only_where_it_fits_and_fed_until_it_is_disarmed() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("dog");
        fs::write(&device, "").unwrap();
        let config = |timeout_ms| WatchdogConfig { device: device.clone(), timeout_ms };
        for (timeout_ms, left_ms) in [(None, 60_000), (Some(1_000), 2_499), (Some(u64::MAX), u64::MAX)] {
            Watchdog::arm(&config(timeout_ms), left_ms, Time(0)).expect_err("it does not fit");
        }
        assert_eq!(fs::read(&device).unwrap(), b"", "it was let alone");
        let mut watchdog = Watchdog::arm(&config(Some(1_000)), 2_500, Time(7)).unwrap();
        assert_eq!((watchdog.early_ms(), watchdog.next()), (1_250, Time(257)));
        watchdog.feed(Time(300)).unwrap();
        assert_eq!(watchdog.next(), Time(550));
        watchdog.disarm().unwrap();
        assert_eq!(fs::read(&device).unwrap(), b"11V");
        fs::remove_file(&device).unwrap();
        Watchdog::arm(&config(Some(1_000)), 2_500, Time(7)).expect_err("there is none");
    }
}
