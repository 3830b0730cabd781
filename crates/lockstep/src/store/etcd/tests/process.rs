//! Real members of etcd, for the store's tests, in a directory that ends with them.

#[path = "../../../../tests/common/etcd.rs"]
mod member;

use crate::cli::option::EtcdOptions;
use crate::store::{Error, Etcd};
use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long anything may take that a test waits for.
const WAIT: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Looks until `condition` holds.
pub(in crate::store) async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(done) = condition().await {
            return done;
        }
        assert!(begun.elapsed() < WAIT, "waited in vain: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// An etcd of one or more members, and how the store reaches it.
pub(in crate::store) struct Members {
    members: member::Members,
    pub(in crate::store) options: EtcdOptions,
    /// Goes after them.
    dir: tempfile::TempDir,
}

impl Deref for Members {
    type Target = member::Members;

    fn deref(&self) -> &member::Members {
        &self.members
    }
}

impl DerefMut for Members {
    fn deref_mut(&mut self) -> &mut member::Members {
        &mut self.members
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() { copy(&entry.path(), &to) } else { _ = fs::copy(entry.path(), to).unwrap() }
    }
}

impl Members {
    /// Starts so many members, and waits until they serve. `more` are further arguments of each.
    pub(in crate::store) async fn start(count: usize, more: &[&str]) -> Self {
        Self::start_with(count, more, "http", EtcdOptions::default()).await
    }

    /// The same, with clients' certificates.
    pub(in crate::store) async fn start_with(
        count: usize,
        more: &[&str],
        scheme: &'static str,
        options: EtcdOptions,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let more = [&member::NEAR, more].concat();
        let mut members = member::Members::start_with(dir.path(), count, &more, scheme);
        until("etcd serves", async || members.serves().then_some(())).await;
        Self { members, options, dir }
    }

    /// Keeps a copy of what its only member has stored.
    pub(in crate::store) fn keep_copy(&mut self) {
        self.members.members[0].kill();
        copy(&self.dir.path().join("m0"), &self.dir.path().join("copy"));
        self.members.members[0].restart();
    }

    /// Sets it back to that copy.
    pub(in crate::store) fn set_back(&mut self) {
        self.members.members[0].kill();
        let data = self.dir.path().join("m0");
        fs::remove_dir_all(&data).unwrap();
        copy(&self.dir.path().join("copy"), &data);
        self.members.members[0].restart();
    }

    pub(in crate::store) async fn open(&self, prefix: &str) -> Result<Etcd, Error> {
        Etcd::open(&self.address(prefix), &self.options).await
    }
}
