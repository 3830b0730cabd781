//! Parts of a world that its copies share until one of them changes: who tries every order of events keeps many.

use crate::record::Record;
use std::hash::{Hash, Hasher};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// A value that is copied when it is written to, if others have it too.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Shared<T>(Arc<T>);

impl<T> Shared<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Arc::new(value))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

/// Durable records. Two journals may say the same in another order, and everything goes on alike after them: their
/// hashes are equal, so that who looks for states that are new can look at the cluster that they tell of instead.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Journal(pub(super) Vec<Record>);

impl Hash for Journal {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.len().hash(state);
    }
}

impl Deref for Journal {
    type Target = Vec<Record>;
    fn deref(&self) -> &Vec<Record> {
        &self.0
    }
}

impl DerefMut for Journal {
    fn deref_mut(&mut self) -> &mut Vec<Record> {
        &mut self.0
    }
}
