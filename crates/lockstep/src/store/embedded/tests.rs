use super::*;
use crate::store::conformance::{self, Bench, candidate};
use lockstep_core::log::{Crash, DiskError, MemDisk, Op};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

const TTL: Duration = Duration::from_secs(3);

struct DirBench {
    dir: tempfile::TempDir,
    open: Option<Embedded>,
}

impl DirBench {
    fn new() -> Self {
        DirBench { dir: tempfile::tempdir().unwrap(), open: None }
    }
}

impl Bench for DirBench {
    type Store = Embedded;

    async fn server(&mut self) -> Embedded {
        if self.open.is_none() {
            self.open = Some(Embedded::open(self.dir.path()).await.unwrap());
        }
        self.open.clone().unwrap()
    }

    async fn restart(&mut self) -> Embedded {
        if let Some(store) = self.open.take() {
            store.close().await;
        }
        self.server().await
    }

    /// A campaign alone deposes whoever reigned before: the lock has chosen.
    async fn depose(&mut self, _: &Embedded, _: Reign) {}
}

mod directory {
    use super::*;
    conformance::suite!(DirBench::new());
}

fn payloads(index: u64) -> Vec<Vec<u8>> {
    vec![format!("record {index}").into_bytes()]
}

async fn in_memory(disk: MemDisk) -> Embedded<MemDisk> {
    Embedded::new(Journal::start(move || Ok(Log::open(disk)?)).await.unwrap())
}

#[tokio::test]
async fn a_second_server_is_told_where_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let first = Embedded::open(dir.path()).await.unwrap();
    let error = Embedded::open(dir.path()).await.unwrap_err();
    assert!(matches!(error, Error::InUse { .. }));
    let text = error.to_string();
    assert!(
        text.contains(&dir.path().display().to_string()) && text.contains("stop that one first"),
        "{text}"
    );
    first.close().await;
    Embedded::open(dir.path()).await.unwrap();
}

#[tokio::test]
async fn after_closing_every_call_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).await.unwrap();
    let mut watch = store.watch(Index(1));
    store.clone().close().await;
    assert!(matches!(store.head().await, Err(Error::Closed)));
    assert!(matches!(watch.next().await, Err(Error::Closed)));
    assert!(matches!(store.campaign(&candidate("a"), TTL).await, Err(Error::Closed)));
}

#[tokio::test]
async fn a_failed_sync_stops_every_later_call() {
    let store = in_memory(MemDisk::new()).await;
    let reign = store.campaign(&candidate("a"), TTL).await.unwrap();
    assert_eq!(store.append(reign, Index(0), payloads(1)).await.unwrap(), Appended::Done(Index(1)));
    let mut watch = store.watch(Index(2));
    let fail = |log: &mut Log<MemDisk>| {
        log.disk_mut().fail(Op::Sync, 0, DiskError::Io("bad sector".to_owned()));
        Ok(())
    };
    store.journal.run(fail).await.unwrap();
    let (told, appended) = tokio::join!(watch.next(), store.append(reign, Index(1), payloads(2)));
    let failed = |error: &Error| {
        let Error::Failed(error) = error else { panic!("{error}") };
        std::error::Error::source(error).unwrap().to_string() == "bad sector"
    };
    assert!(failed(&appended.unwrap_err()) && failed(&told.unwrap_err()));
    // The disk would do the next one; it is not asked.
    assert!(failed(&store.append(reign, Index(1), payloads(2)).await.unwrap_err()));
    assert!(failed(&store.campaign(&candidate("a"), TTL).await.unwrap_err()));
    assert!(failed(&store.confirm(reign).await.unwrap_err()));
    assert!(failed(&store.head().await.unwrap_err()));
    assert!(failed(&store.read(Index(1)).await.unwrap_err()));
    assert!(failed(&store.load_snapshot().await.unwrap_err()));
    assert!(failed(&store.watch(Index(1)).next().await.unwrap_err()));
}

#[tokio::test]
async fn a_full_disk_refuses_and_goes_on_once_there_is_room() {
    let mut disk = MemDisk::new();
    disk.set_capacity(Some(3 << 20));
    let store = in_memory(disk).await;
    let reign = store.campaign(&candidate("a"), TTL).await.unwrap();
    let mut head = Index(0);
    let error = loop {
        match store.append(reign, head, vec![vec![b'x'; 100_000]]).await {
            Ok(Appended::Done(index)) => head = index,
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::NoRoom(_)), "{error}");
    assert_eq!(store.head().await.unwrap(), head);
    let free = |log: &mut Log<MemDisk>| {
        log.disk_mut().set_capacity(None);
        Ok(())
    };
    store.journal.run(free).await.unwrap();
    let next = Index(head.0 + 1);
    assert_eq!(store.append(reign, head, vec![vec![b'x'; 100_000]]).await.unwrap(), Appended::Done(next));
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_power_cut() {
    let store = in_memory(MemDisk::new()).await;
    let reign = store.campaign(&candidate("a"), TTL).await.unwrap();
    for index in 1..=20 {
        assert_eq!(
            store.append(reign, Index(index - 1), payloads(index)).await.unwrap(),
            Appended::Done(Index(index))
        );
        let mut disk = store.journal.run(|log| Ok(log.disk().clone())).await.unwrap();
        disk.crash(Crash::PowerLost);
        let again = in_memory(disk).await;
        assert_eq!(again.head().await.unwrap(), Index(index));
        assert_eq!(again.read(Index(index)).await.unwrap()[0].payload, payloads(index)[0]);
        assert!(again.campaign(&candidate("a"), TTL).await.unwrap() > reign);
    }
}

#[tokio::test]
async fn compaction_frees_what_two_snapshots_cover() {
    let store = in_memory(MemDisk::new()).await;
    let reign = store.campaign(&candidate("a"), TTL).await.unwrap();
    for index in 1..=9 {
        store.append(reign, Index(index - 1), payloads(index)).await.unwrap();
    }
    for index in [4, 8] {
        store.save_snapshot(reign, Index(index), b"state".to_vec()).await.unwrap();
    }
    let mut behind = store.watch(Index(2));
    store.compact(reign, Index(9)).await.unwrap();
    assert!(matches!(store.read(Index(4)).await, Err(Error::Compacted { floor: Index(5) })));
    assert!(matches!(behind.next().await, Err(Error::Compacted { floor: Index(5) })));
    assert_eq!(store.read(Index(5)).await.unwrap().len(), 5);
}

#[tokio::test]
async fn a_restore_continues_above_all_that_was_given_out() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::restore(dir.path(), Index(1_000_000), Reign(3), b"state".to_vec()).await.unwrap();
    let store = Embedded::new(journal);
    let reign = store.campaign(&candidate("a"), TTL).await.unwrap();
    assert!(reign > Reign(1_000_000), "above reigns that began after the backup");
    let appended = store.append(reign, Index(1_000_000), payloads(1)).await.unwrap();
    assert_eq!(appended, Appended::Done(Index(1_000_001)));
    store.close().await;
    let error = Journal::restore(dir.path(), Index(2_000_000), Reign(3), Vec::new()).await.unwrap_err();
    assert!(matches!(error, Error::Refused(_)));
    let store = Embedded::open(dir.path()).await.unwrap();
    assert_eq!(store.load_snapshot().await.unwrap().unwrap().bytes, b"state");
    assert_eq!(store.head().await.unwrap(), Index(1_000_001));
}

#[tokio::test]
async fn a_journal_without_reigns_keeps_its_records() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).await.unwrap();
    assert_eq!(journal.append(vec![b"a".to_vec(), b"b".to_vec()]).await.unwrap(), Index(2));
    assert_eq!(journal.append(vec![b"c".to_vec()]).await.unwrap(), Index(3));
    journal.save_snapshot(Index(2), b"ab".to_vec()).await.unwrap();
    assert_eq!(journal.compact(Index(3)).await.unwrap(), Index(1));
    journal.close().await;
    let journal = Journal::open(dir.path()).await.unwrap();
    assert_eq!(journal.head().await.unwrap(), Index(3));
    assert_eq!(journal.read(Index(3)).await.unwrap()[0].payload, b"c");
    assert_eq!(journal.load_snapshot().await.unwrap().unwrap().bytes, b"ab");
}

#[tokio::test]
async fn a_torn_end_is_cut_and_a_flipped_bit_refused_with_its_place() {
    use std::os::unix::fs::FileExt as _;
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).await.unwrap();
    let reign = store.campaign(&candidate("a"), TTL).await.unwrap();
    for index in 1..=3 {
        store.append(reign, Index(index - 1), payloads(index)).await.unwrap();
    }
    store.close().await;
    let path = dir.path().join("log");
    let bytes = std::fs::read(&path).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64;

    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 11], end - 10).unwrap();
    let store = Embedded::open(dir.path()).await.unwrap();
    assert_eq!(store.head().await.unwrap(), Index(2));
    store.close().await;

    std::fs::write(&path, &bytes).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[bytes[80] ^ 4], 80).unwrap();
    let error = Embedded::open(dir.path()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with(&format!("{}: damaged at byte 64", path.display())), "{text}");
}

const CHILD_DIR: &str = "LOCKSTEP_STORE_TEST_DIR";

/// Runs one of the functions below in a process of its own.
fn child(name: &str) -> [String; 3] {
    ["--exact".to_owned(), format!("store::embedded::tests::{name}"), "--nocapture".to_owned()]
}

/// Not a test of its own: it fills the small disk that the next one mounts.
#[tokio::test]
async fn child_that_fills_its_disk() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let dir = Path::new(&dir);
    // Leaves 4 MiB for the log. Opening it again takes as much free room as it has grown to.
    const BALLAST: usize = 12 << 20;
    std::fs::write(dir.join("ballast"), vec![1; BALLAST]).unwrap();
    let data = dir.join("data");
    let store = Embedded::open(&data).await.unwrap();
    let reign = store.campaign(&candidate("child"), TTL).await.unwrap();
    let mut head = Index(0);
    let error = loop {
        match store.append(reign, head, vec![vec![b'x'; 50_000]]).await {
            Ok(appended) => assert_eq!(appended, Appended::Done(Index(head.0 + 1))),
            Err(error) => break error,
        }
        head = Index(head.0 + 1);
    };
    assert!(matches!(error, Error::NoRoom(_)), "{error}");
    std::fs::remove_file(dir.join("ballast")).unwrap();
    let next = Index(head.0 + 1);
    assert_eq!(store.append(reign, head, vec![vec![b'x'; 50_000]]).await.unwrap(), Appended::Done(next));
    store.close().await;
    std::fs::write(dir.join("ballast"), vec![1; BALLAST - (2 << 20)]).unwrap();
    let error = Embedded::open(&data).await.unwrap_err();
    assert!(matches!(error, Error::NoRoom(_)), "{error}");
    std::fs::remove_file(dir.join("ballast")).unwrap();
    assert_eq!(Embedded::open(&data).await.unwrap().head().await.unwrap(), next);
    println!("\nwent on after a full disk");
}

/// A file system of 16 MiB in a mount namespace of its own; where the system does not give us one, there is nothing
/// to test on.
#[test]
fn a_full_file_system_refuses_and_goes_on_once_there_is_room() {
    const NO_MOUNT: i32 = 77;
    let dir = tempfile::tempdir().unwrap();
    let script = format!(r#"mount -t tmpfs -o size=16m tmpfs "$0" || exit {NO_MOUNT}; exec "$@""#);
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .args(child("child_that_fills_its_disk"))
        .env(CHILD_DIR, dir.path())
        .output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains("went on after a full disk"), "{text}");
        }
        Ok(output) if output.status.code() == Some(101) => {
            panic!("{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(_) | Err(_) => eprintln!("skipped: no mount namespace here"),
    }
}

/// Not a test of its own: the process that is killed below.
#[tokio::test]
async fn child_that_appends_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let store = Embedded::open(Path::new(&dir)).await.unwrap();
    let reign = store.campaign(&candidate("child"), TTL).await.unwrap();
    let mut head = store.head().await.unwrap();
    loop {
        let answer = store.append(reign, head, payloads(head.0 + 1)).await.unwrap();
        let Appended::Done(index) = answer else { panic!("{answer:?}") };
        println!("\nacknowledged {index}");
        head = index;
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 1..=3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(child("child_that_appends_until_it_is_killed"))
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let indices = lines.filter_map(|line| line.unwrap().strip_prefix("acknowledged ")?.parse().ok());
        for (seen, index) in indices.enumerate() {
            acknowledged = index;
            if seen == 40 {
                let error = Embedded::open(dir.path()).await.unwrap_err().to_string();
                assert!(error.contains(&format!("process {}", child.id())), "{error}");
                // What it says before it dies is read to the end.
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(acknowledged >= 40 * round, "the child was to write enough");
        let store = Embedded::open(dir.path()).await.unwrap();
        let head = store.head().await.unwrap();
        assert!(head.0 == acknowledged || head.0 == acknowledged + 1, "{head} after {acknowledged}");
        let entries = store.read(Index(1)).await.unwrap();
        assert_eq!(entries.len() as u64, head.0);
        for (entry, index) in entries.iter().zip(1..) {
            assert_eq!((entry.index, &entry.payload), (Index(index), &payloads(index)[0]));
        }
        store.close().await;
    }
}
