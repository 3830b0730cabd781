//! Disks that are full, that fail, or that lose what was not synced.

use super::{Mend, Striker, bitten};
use crate::command::run_args;
use crate::http;
use crate::workload;
use crate::world::World;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::io::{self, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

impl Striker {
    /// A sync fails, once. Whoever is told so may never say again that anything is safe: it has to end.
    pub(super) fn sync_fails(&mut self, world: &mut World, name: &str) -> io::Result<Mend> {
        let tracer = Tracer::attach(world, name, "error=EIO:when=1")?;
        let was = world.pid(name);
        let (history, name) = (self.history.clone(), name.to_owned());
        Ok(Box::new(move |world| {
            let Some(injected) = tracer.injected() else {
                tracer.detach();
                return Ok(bitten(false));
            };
            if was.is_some()
                && world.is_up(&name)
                && world.pid(&name) == was
                && injected.elapsed() > Duration::from_secs(3)
            {
                history.lock().broken.push((22, format!("{name} runs on after a sync that failed")));
            }
            tracer.detach();
            Ok(bitten(true))
        }))
    }
}

/// Fills a disk up to the last byte.
fn fill(path: &std::path::Path) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    let mut block = vec![7; 1 << 20];
    loop {
        match file.write(&block) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::StorageFull && block.len() > 1 => {
                let half = block.len() / 2;
                block.truncate(half);
            }
            Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

pub(super) fn fill_server(world: &mut World) -> io::Result<Mend> {
    let disk = world.dir.join("server-disk");
    let filler = disk.join("filler");
    fill(&filler)?;
    let before = world.log_len("server");
    // The log has room in store: what operators declare over and over uses it up.
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let writing = std::thread::spawn(move || {
        let mut spec = workload::spec();
        let (mut refused, mut number) = (0, 0);
        while !flag.load(Ordering::Relaxed) {
            // Another one each time, or nothing would be written.
            number += 1;
            spec["groups"]["pool"]["hold_ms"] = Value::from(8000 + number % 100);
            match http::ask("PUT", "/v1/spec", Some(&spec)) {
                Some((503, _)) => refused += 1,
                Some(_) => {}
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        refused
    });
    Ok(Box::new(move |world| {
        stop.store(true, Ordering::Relaxed);
        fs::remove_file(&filler)?;
        // Or a power cut that follows brings it back, and the disk stays full.
        fs::File::open(&disk)?.sync_all()?;
        let refused = writing.join().map_err(|_| io::Error::other("a writer panicked"))?;
        let said = world.said_since("server", before);
        Ok(bitten(refused > 0 || said.contains("no space is left") || said.contains("no room")))
    }))
}

pub(super) fn fill_agent(world: &mut World, host: &str) -> io::Result<Mend> {
    let filler = world.agent_disk(host).join("filler");
    fill(&filler)?;
    let before = world.log_len(host);
    // Its log has room in store; a new start has to write a new one.
    world.kill(host);
    world.want(host, true);
    let host = host.to_owned();
    Ok(Box::new(move |world| {
        fs::remove_file(&filler)?;
        let said = world.said_since(&host, before);
        Ok(bitten(said.to_lowercase().contains("no space") || said.contains("no room")))
    }))
}

/// A tracer at a process, which spoils one of its syncs.
struct Tracer {
    child: Child,
    output: std::path::PathBuf,
}

impl Tracer {
    fn attach(world: &World, name: &str, what: &str) -> io::Result<Self> {
        let output = world.dir.join(format!("{name}.strace"));
        fs::write(&output, "")?;
        let pid = world.pid(name).map_or(0, |pid| pid.as_raw_nonzero().get());
        let inject = format!("inject=fsync,fdatasync:{what}");
        let child = Command::new("strace")
            .args(["-f", "-qq", "-e", "trace=fsync,fdatasync", "-e", &inject, "-p", &pid.to_string(), "-o"])
            .arg(&output)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child, output })
    }

    /// When it spoiled one.
    fn injected(&self) -> Option<Instant> {
        let said = fs::read_to_string(&self.output).unwrap_or_default();
        let written = fs::metadata(&self.output).and_then(|data| data.modified()).ok()?;
        let ago = written.elapsed().unwrap_or_default();
        (said.contains("INJECTED") || said.contains("killed by"))
            .then(|| Instant::now().checked_sub(ago))
            .flatten()
    }

    fn detach(mut self) {
        // Ended by a signal that it can take, it lets its process go on.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

pub(super) fn kill_in_sync(world: &mut World, name: &str, nth: u64) -> io::Result<Mend> {
    let tracer = Tracer::attach(world, name, &format!("signal=KILL:when={nth}"))?;
    let (was, name) = (world.pid(name), name.to_owned());
    Ok(Box::new(move |world| {
        let is_dead = was.is_some() && (!world.is_up(&name) || world.pid(&name) != was);
        let was_killed = tracer.injected().is_some() && is_dead;
        tracer.detach();
        Ok(bitten(was_killed))
    }))
}

/// The file system is shut down under the running server: what it has not synced is gone.
pub(super) fn power_cut(world: &mut World) -> io::Result<Mend> {
    // EXT4_IOC_SHUTDOWN, without flushing its journal.
    const CUT: &str =
        "import fcntl,os,struct,sys; fcntl.ioctl(os.open(sys.argv[1], 0), 0x8004587D, struct.pack('I', 2))";
    let disk = world.dir.join("server-disk");
    run_args(&["python3", "-c", CUT, &disk.to_string_lossy()])?;
    let is_gone = fs::write(disk.join("probe"), "").is_err();
    world.want("server", false);
    Ok(Box::new(move |world| {
        world.kill("server");
        unmount(&disk)?;
        world.mount_server_disk()?;
        world.start("server")?;
        Ok(bitten(is_gone))
    }))
}

/// Who had files open there may still be in the middle of its end.
fn unmount(disk: &std::path::Path) -> io::Result<()> {
    let began = Instant::now();
    loop {
        match run_args(&["umount", &disk.to_string_lossy()]) {
            Err(_) if began.elapsed() < Duration::from_secs(3) => {
                std::thread::sleep(Duration::from_millis(50))
            }
            unmounted => return unmounted.map(drop),
        }
    }
}
