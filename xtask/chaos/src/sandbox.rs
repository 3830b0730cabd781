//! Where all of it happens: namespaces of their own for processes, mounts and networks. They end with the run, however
//! it ends, and the kernel ends and removes whatever is in them: each process, each mount with its loop device, each
//! link. So nothing has to be cleaned up, and nothing outside can be hit by mistake.

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Becomes the sandbox. Returns only if that fails.
pub(crate) fn enter(args: &[OsString]) -> std::io::Error {
    let exe = match std::env::current_exe() {
        Ok(exe) => exe,
        Err(error) => return error,
    };
    Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(exe)
        .arg("init")
        .args(args)
        .exec()
}

/// The sandbox's first process: it starts the driver, buries what is left of others, and ends with the driver.
pub(crate) fn init(args: &[OsString]) -> ExitCode {
    let driver = std::env::current_exe().and_then(|exe| Command::new(exe).arg("drive").args(args).spawn());
    let driver = match driver {
        Ok(driver) => Pid::from_child(&driver),
        Err(error) => {
            eprintln!("chaos: cannot start the driver: {error}");
            return ExitCode::from(crate::CANNOT_RUN);
        }
    };
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == driver => {
                let code = status.exit_status().and_then(|code| u8::try_from(code).ok());
                return ExitCode::from(code.unwrap_or(crate::CANNOT_RUN));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                eprintln!("chaos: cannot wait for the driver: {error}");
                return ExitCode::from(crate::CANNOT_RUN);
            }
        }
    }
}
