use super::*;
use crate::store::conformance::{candidate, read_all};
use crate::store::etcd::tests::process::Members;
use crate::store::{Appended, Entry};

/// Three reigns, a snapshot in the second, and entries after it, a large one among them.
async fn write(store: &impl Store) -> Reign {
    let mut head = Index(0);
    let mut last = Reign(0);
    for round in 0..3_u8 {
        let reign = store.campaign(&candidate("a"), TTL).await.unwrap();
        assert!(reign > last);
        last = reign;
        for size in [0, 10, 700_000, 3 << 20] {
            let batch = vec![vec![round; size], format!("{round} {size}").into_bytes()];
            let Appended::Done(index) = store.append(reign, head, batch).await.unwrap() else { panic!() };
            head = index;
        }
        if round == 1 {
            store.save_snapshot(reign, Index(10), vec![b's'; 2 << 20]).await.unwrap();
        }
    }
    last
}

/// What follows the snapshot.
async fn entries(store: &impl Store) -> Vec<Entry> {
    read_all(store, Index(11)).await
}

#[tokio::test]
async fn a_journal_goes_to_etcd_and_back() {
    let members = Members::start(1, &[]).await;
    let dir = tempfile::tempdir().unwrap();
    let (first, back) = (dir.path().join("first"), dir.path().join("back"));
    let options = EtcdOptions::default();
    let source = Embedded::open(&first).await.unwrap();
    let last = write(&source).await;
    let (before, snapshot) = (entries(&source).await, source.load_snapshot().await.unwrap().unwrap());
    let (from, to) = (first.display().to_string(), members.address("moved"));
    let in_use = migrate(&from, &to, &options).await.unwrap_err();
    assert!(matches!(in_use, Error::InUse { .. }), "{in_use}");
    source.close().await;

    let there = migrate(&from, &to, &options).await.unwrap();
    assert_eq!((there.head, there.reign, there.snapshot), (Index(24), last, Some(Index(10))));
    assert_eq!((there.entries, &there.source_sha256), (14, &there.target_sha256));
    let taken = format!("its journal was migrated to {to}");
    let error = Embedded::open(&first).await.unwrap_err().to_string();
    assert!(error.contains(&taken), "{error}");
    let error = migrate(&from, &to, &options).await.unwrap_err().to_string();
    assert!(error.contains(&taken), "{error}");

    let moved = members.open("moved").await.unwrap();
    assert_eq!(entries(&moved).await, before, "indices, reigns and payloads");
    let loaded = moved.load_snapshot().await.unwrap().unwrap();
    assert_eq!((loaded.index, loaded.reign), (snapshot.index, snapshot.reign));
    assert!(loaded.bytes == snapshot.bytes);
    assert!(matches!(moved.read(Index(10)).await, Err(Error::Compacted { floor: Index(11) })));
    assert_eq!(moved.leader().await.unwrap(), None);
    let reign = moved.campaign(&candidate("b"), TTL).await.unwrap();
    assert!(reign > last && reign > Reign(24), "above all that were given");
    assert_eq!(
        moved.append(reign, Index(24), vec![b"more".to_vec()]).await.unwrap(),
        Appended::Done(Index(25))
    );

    let back_text = back.display().to_string();
    let error = migrate(&to, &back_text, &options).await.unwrap_err().to_string();
    assert!(error.contains("the server b at http://b.example:7340 reigns"), "{error}");
    assert_eq!(moved.resign(reign).await.unwrap(), Fenced::Held);
    let home = migrate(&to, &back_text, &options).await.unwrap();
    assert_eq!((home.head, home.entries, &home.source_sha256), (Index(25), 15, &home.target_sha256));
    assert!(home.reign > reign);
    let taken = format!("its journal was migrated to {back_text}");
    let error = members.open("moved").await.unwrap_err().to_string();
    assert!(error.contains(&taken), "{error}");
    let error = moved.campaign(&candidate("b"), TTL).await.unwrap_err().to_string();
    assert!(error.contains(&taken), "{error}");
    let error = migrate(&to, &back_text, &options).await.unwrap_err().to_string();
    assert!(error.contains(&taken), "{error}");
    let store = Embedded::open(&back).await.unwrap();
    let after = entries(&store).await;
    assert_eq!(
        (&after[..14], after[14].reign, after[14].payload.as_slice()),
        (&before[..], reign, &b"more"[..])
    );
    let next = store.campaign(&candidate("c"), TTL).await.unwrap();
    assert!(next > home.reign);
    assert_eq!(store.append(next, Index(25), vec![b"on".to_vec()]).await.unwrap(), Appended::Done(Index(26)));
    store.close().await;
}

#[tokio::test]
async fn reigns_go_on_above_the_last_one_also_where_that_is_above_the_head() {
    let members = Members::start(1, &[]).await;
    let dir = tempfile::tempdir().unwrap();
    let [first, back] = ["first", "back"].map(|name| dir.path().join(name));
    let source = Embedded::open(&first).await.unwrap();
    let mut reign = Reign(0);
    for _ in 0..100 {
        reign = source.campaign(&candidate("a"), TTL).await.unwrap();
    }
    source.append(reign, Index(0), vec![b"one".to_vec()]).await.unwrap();
    source.close().await;
    let (options, there) = (EtcdOptions::default(), members.address("reigns"));
    let copied = migrate(&first.display().to_string(), &there, &options).await.unwrap();
    assert_eq!((copied.reign, copied.head, copied.snapshot), (reign, Index(1), None));
    let copied = migrate(&there, &back.display().to_string(), &options).await.unwrap();
    assert_eq!(copied.reign, Reign(reign.0 + 1), "the one of the migration");
    let store = Embedded::open(&back).await.unwrap();
    assert!(store.campaign(&candidate("a"), TTL).await.unwrap() > copied.reign);
    assert_eq!(read_all(&store, Index(1)).await[0].reign, reign);
    store.close().await;
}

#[tokio::test]
async fn what_broke_off_cannot_be_used() {
    let members = Members::start(1, &[]).await;
    let options = EtcdOptions::default();
    let address = members.address("half");
    let snapshot = Snapshot { index: Index(5), reign: Reign(2), bytes: b"state".to_vec() };
    let mut import = Import::begin(&address, &options, Reign(9), Some(&snapshot)).await.unwrap();
    import.append(Reign(2), vec![b"6".to_vec()]).await.unwrap();
    let waiting = members.open("half").await.unwrap_err().to_string();
    assert!(waiting.contains("a migration into it has not finished"), "{waiting}");
    drop(import);
    let error = members.open("half").await.unwrap_err().to_string();
    assert!(error.contains("delete the keys under the prefix"), "{error}");

    // A directory is not there before it is whole.
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let source = Embedded::open(&from).await.unwrap();
    write(&source).await;
    let snapshot = source.load_snapshot().await.unwrap();
    let begun = Directory::begin(&to, &source, Reign(1), snapshot.as_ref()).await.unwrap();
    drop(begun);
    source.close().await;
    assert!(!to.exists());
    let error = migrate(&from.display().to_string(), &to.display().to_string(), &options).await.unwrap_err();
    assert!(error.to_string().contains("to.migrating"), "{error}");
    let error = Embedded::open(&dir.path().join("to.migrating")).await.unwrap_err();
    assert!(error.to_string().contains("a migration into it has not finished"), "{error}");
    let error = migrate(&from.display().to_string(), &address, &options).await.unwrap_err().to_string();
    assert!(error.contains("there are keys already"), "{error}");

    for (from, to) in
        [(members.address("nothing"), "to"), (dir.path().join("none").display().to_string(), "to")]
    {
        let to = dir.path().join(to).display().to_string();
        let error = migrate(&from, &to, &options).await.unwrap_err().to_string();
        assert!(error.contains("there is no journal"), "{error}");
    }
}

#[test]
fn what_is_read_back_is_compared() {
    let read = |bytes: &[u8], entries| {
        let mut read = Read::begin(None);
        put(&mut read.sum, Index(1), bytes);
        (read.head, read.entries) = (Index(1), entries);
        read
    };
    let to = "there";
    assert!(compare(to, Reign(1), None, read(b"a", 1), &read(b"a", 1)).is_ok());
    let error = compare(to, Reign(1), None, read(b"a", 1), &read(b"b", 1)).unwrap_err().to_string();
    assert!(error.contains("what was read back has SHA-256"), "{error}");
    assert!(compare(to, Reign(1), None, read(b"a", 1), &read(b"a", 2)).is_err());
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Drops,
    Alters,
    Adds,
}

/// Something that stores other entries than it is given.
struct Faulty<T> {
    target: T,
    fault: Option<Fault>,
}

impl<T: Target> Target for Faulty<T> {
    async fn append(&mut self, reign: Reign, mut payloads: Vec<Vec<u8>>) -> Result<(), Error> {
        match self.fault.take() {
            Some(Fault::Drops) => drop(payloads.pop()),
            Some(Fault::Alters) => payloads[0][0] ^= 1,
            Some(Fault::Adds) => payloads.push(b"more".to_vec()),
            None => {}
        }
        self.target.append(reign, payloads).await
    }

    async fn read_back(&mut self) -> Result<Read, Error> {
        self.target.read_back().await
    }

    async fn finish(self) -> Result<(), Error> {
        self.target.finish().await
    }
}

#[tokio::test]
async fn a_copy_that_reads_otherwise_than_what_was_copied_is_refused() {
    let members = Members::start(1, &[]).await;
    let (dir, options) = (tempfile::tempdir().unwrap(), EtcdOptions::default());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let from = path("from");
    let source = Embedded::open(Path::new(&from)).await.unwrap();
    let reign = source.campaign(&candidate("a"), TTL).await.unwrap();
    let batch = ["first", "second", "third"].map(|text| text.as_bytes().to_vec());
    source.append(reign, Index(0), batch.to_vec()).await.unwrap();
    for fault in [Fault::Drops, Fault::Alters, Fault::Adds] {
        let name = format!("{fault:?}");
        let (directory, etcd, fault) = (path(&name), members.address(&name), Some(fault));
        let target = Directory::begin(Path::new(&directory), &source, reign, None).await.unwrap();
        let to_directory = copy_into(Faulty { target, fault }, &source, reign, None, &directory).await;
        let target = Import::begin(&etcd, &options, reign, None).await.unwrap();
        let to_etcd = copy_into(Faulty { target, fault }, &source, reign, None, &etcd).await;
        for (to, copied) in [(&directory, to_directory), (&etcd, to_etcd)] {
            let error = copied.unwrap_err().to_string();
            assert!(error.contains(to) && error.contains("what was read back has SHA-256"), "{error}");
        }
        assert!(!Path::new(&directory).exists());
        let error = members.open(&name).await.unwrap_err().to_string();
        assert!(error.contains("a migration into it has not finished"), "{error}");
    }
    source.close().await;
    // Nothing says that it was migrated: it can be.
    let copied = migrate(&from, &members.address("whole"), &options).await.unwrap();
    assert_eq!((copied.head, copied.entries), (Index(3), 3));
}

#[tokio::test]
async fn a_migration_that_refuses_leaves_the_source_to_its_servers() {
    let members = Members::start(1, &[]).await;
    let source = members.open("source").await.unwrap();
    write(&source).await;
    drop(source);
    let from = members.address("source");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let to = dir.path().display().to_string();
    // The program ends with the refusal, and nothing that is still to be done in the background.
    let refusal = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            // The reign of whoever wrote it is given back in the background.
            loop {
                match migrate(&from, &to, &EtcdOptions::default()).await.unwrap_err() {
                    Error::Unusable { reason, .. } if reason.contains(" reigns") => {}
                    refusal => return refusal.to_string(),
                }
            }
        })
    });
    let refusal = refusal.join().unwrap();
    assert!(refusal.contains("it is not empty"), "{refusal}");
    assert_eq!(members.open("source").await.unwrap().leader().await.unwrap(), None);
}
