//! What stands in for the store in etcd where it is not built: nothing but the answer that it is not.

use super::{Appended, Candidate, Entry, Error, Fenced, Leader, Snapshot, Store};
use crate::cli::option::EtcdOptions;
use lockstep_core::id::{Index, Reign};
use std::time::Duration;
use tokio::sync::watch;

/// The store in etcd, of which this build has none.
#[derive(Debug, Clone)]
pub enum Etcd {}

impl Etcd {
    /// Whether this build has the store.
    pub const IS_BUILT: bool = false;

    /// Says that it is not there, and how to build what has it.
    pub async fn open(address: &str, options: &EtcdOptions) -> Result<Self, Error> {
        Self::at(address, options)
    }

    /// The same.
    pub fn at(address: &str, _: &EtcdOptions) -> Result<Self, Error> {
        Err(Error::Unusable {
            place: address.to_owned(),
            reason: "this program was built without etcd".to_owned(),
            help: "build it with `cargo xtask dist`, or keep the journal in --data",
        })
    }
}

impl Etcd {
    /// Where the journal is.
    #[must_use]
    pub fn place(&self) -> String {
        match *self {}
    }

    pub(in crate::store) async fn retire(&self, _: Reign, _: &str) -> Result<Fenced, Error> {
        match *self {}
    }
}

impl Store for Etcd {
    async fn campaign(&self, _: &Candidate, _: Duration) -> Result<Reign, Error> {
        match *self {}
    }
    async fn resign(&self, _: Reign) -> Result<Fenced, Error> {
        match *self {}
    }
    async fn ended(&self, _: Reign) {
        match *self {}
    }
    async fn leader(&self) -> Result<Option<Leader>, Error> {
        match *self {}
    }
    async fn append(&self, _: Reign, _: Index, _: Vec<Vec<u8>>) -> Result<Appended, Error> {
        match *self {}
    }
    async fn head(&self) -> Result<Index, Error> {
        match *self {}
    }
    async fn read(&self, _: Index) -> Result<Vec<Entry>, Error> {
        match *self {}
    }
    fn heads(&self) -> watch::Receiver<Index> {
        match *self {}
    }
    async fn save_snapshot(&self, _: Reign, _: Index, _: Vec<u8>) -> Result<Fenced, Error> {
        match *self {}
    }
    async fn load_snapshot(&self) -> Result<Option<Snapshot>, Error> {
        match *self {}
    }
    async fn compact(&self, _: Reign, _: Index) -> Result<Fenced, Error> {
        match *self {}
    }
    async fn confirm(&self, _: Reign) -> Result<Fenced, Error> {
        match *self {}
    }
}

/// What a migration would write.
#[derive(Debug)]
pub(in crate::store) enum Import {}

impl Import {
    pub(in crate::store) async fn begin(
        address: &str,
        options: &EtcdOptions,
        _: Reign,
        _: Option<&Snapshot>,
    ) -> Result<Self, Error> {
        match Etcd::open(address, options).await? {}
    }
    pub(in crate::store) fn store(&self) -> &Etcd {
        match *self {}
    }
    pub(in crate::store) async fn append(&mut self, _: Reign, _: Vec<Vec<u8>>) -> Result<(), Error> {
        match *self {}
    }
    pub(in crate::store) async fn finish(self) -> Result<(), Error> {
        match self {}
    }
}
