//! Deliberate faults, one at a time, that show whether the checks of the simulator can fail.
//!
//! They exist only in builds with `--cfg lockstep_mutants`, which the `lockstep` crate refuses to be compiled with: no
//! release can carry one. In every other build `is` is `false` for the compiler to see.

use std::fmt;
use std::str::FromStr;

macro_rules! mutants {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A deliberate fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Mutant {
            $($(#[$doc])* $variant,)*
        }

        impl Mutant {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name on the command line.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

mutants! {
    /// An agent that loses its server forgets what it has promised.
    GivesUpAfterYes = "gives-up-after-yes",
    /// Outputs do not wait for the records that they depend on.
    SentBeforeAppend = "sent-before-append",
    /// An agent takes orders under any token.
    TokenUnchecked = "token-unchecked",
    /// A yes counts although its agent has been started again since.
    OlderRunCounts = "older-run-counts",
    /// A yes counts although its host has been lost since.
    LostHostCounts = "lost-host-counts",
    /// Members that may be anywhere count as where they were last seen.
    DoubtUncounted = "doubt-uncounted",
    /// A step is taken back while its forward handler is at work.
    UndoWaitsForNobody = "undo-waits-for-nobody",
    /// A holder does not let go by itself.
    HoldWithoutEnd = "hold-without-end",
    /// A decision is taken although a hold is about to run out.
    LateHoldDecided = "late-hold-decided",
    /// Readers see what is not durable yet.
    UnacknowledgedShown = "unacknowledged-shown",
    /// A write that a crash cut short counts as whole.
    TornTailAccepted = "torn-tail-accepted",
    /// A failed sync counts as done.
    FailedSyncAccepted = "failed-sync-accepted",
    /// What has changed since the plan was made is not looked at.
    StalePlanDecided = "stale-plan-decided",
    /// Transitions do not wait for each other's groups.
    FootprintsIgnored = "footprints-ignored",
    /// Holders are not released when a transition turns back.
    UndoForgetsHolder = "undo-forgets-holder",
    /// A server that starts again goes on in the reign before.
    ReignReused = "reign-reused",
    /// A server that starts again commits what was begun.
    BegunIsCommitted = "begun-is-committed",
    /// A request that comes again is a new one.
    RequestForgotten = "request-forgotten",
    /// An agent that starts again takes a step that was started for one that is done.
    StartedIsDone = "started-is-done",
    /// A host that was away does not get the notices that it missed.
    NoticeSkipped = "notice-skipped",
    /// A host that comes back gets new orders before what it missed.
    OrdersBeforeOutcomes = "orders-before-outcomes",
    /// All deadlines are reckoned by the wall clock.
    WallClockLease = "wall-clock-lease",
    /// An outcome is written twice.
    OutcomeTwice = "outcome-twice",
    /// Agents are not told how a transition has ended.
    OutcomeUntold = "outcome-untold",
    /// Orders go out in an order that is another one each time.
    Unordered = "unordered",
    /// A group begins to serve while one that it excludes does.
    ExcludesIgnored = "excludes-ignored",
    /// A capability that is no longer provided still relates its groups.
    RelationLeftOver = "relation-left-over",
    /// Settings stay in force when their transition is undone.
    UndoKeepsSettings = "undo-keeps-settings",
    /// The end of a lease is taken for evidence of members that nothing stops.
    GuardPresumed = "guard-presumed",
    /// A guard that is lost is not replaced before the next renewal.
    GuardNotReplaced = "guard-not-replaced",
    /// An agent that comes back does not say that its guard has done its work.
    GuardStillCounted = "guard-still-counted",
    /// The place of a host that is forgotten goes with it.
    PlaceForgotten = "place-forgotten",
    /// A member's next call does not wait for the one that is at work.
    CallsOverlap = "calls-overlap",
    /// An agent whose lease has ended goes on.
    LeaseUnheeded = "lease-unheeded",
    /// Whoever comes back keeps what it has, whatever its goal is by now.
    ReturnUnjudged = "return-unjudged",
    /// A lost host's places are given away at once.
    LossIsEvidence = "loss-is-evidence",
    /// A fence handler that has failed counts as evidence.
    FencePresumed = "fence-presumed",
    /// A server answers renewals without asking whether it is still the active one.
    RenewalUnconfirmed = "renewal-unconfirmed",
    /// A server answers what writes nothing without asking whether it is still the active one.
    AnswerUnconfirmed = "answer-unconfirmed",
    /// A repair takes others down from where they should be.
    RepairDisplaces = "repair-displaces",
    /// A repair that has failed is tried again at once.
    RepairUnpaused = "repair-unpaused",
    /// A host that comes and goes gets members as any other.
    FlappingUndamped = "flapping-undamped",
    /// Nothing is repaired, and nobody says why.
    Unrepaired = "unrepaired",
    /// A member whose step had no known end is taken to have the settings that were decided.
    DoubtTakesSettings = "doubt-takes-settings",
    /// Planned transitions move what is frozen.
    FreezeIgnored = "freeze-ignored",
    /// A write that was not answered counts as durable.
    UnknownIsDone = "unknown-is-done",
    /// A write that was not answered is tried again behind whatever has been written since.
    UnknownMovesOn = "unknown-moves-on",
    /// A shared store takes writes of servers whose reign is over.
    AppendUnfenced = "append-unfenced",
    /// A shared store confirms reigns that are over.
    ConfirmUnfenced = "confirm-unfenced",
    /// A shared store gives the next server the reign of the one before.
    GrantReused = "grant-reused",
    /// A shared store lets no other server reign when the one that does is gone.
    LeaseUnending = "lease-unending",
    /// A server that stands by shows what is still on its way to the store.
    StandbyShowsUnwritten = "standby-shows-unwritten",
    /// A server that stands by begins anew when the store does not answer it.
    StandbyGoesBack = "standby-goes-back",
    /// A server that takes over gives hosts no time to come to it.
    GraceForgotten = "grace-forgotten",
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Mutant {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.iter().copied().find(|mutant| mutant.as_str() == text);
        known.ok_or_else(|| format!("no mutant {text:?}"))
    }
}

/// Whether this fault is in force.
#[cfg(not(lockstep_mutants))]
pub(crate) const fn is(_: Mutant) -> bool {
    false
}

#[cfg(lockstep_mutants)]
pub use forced::{force, is};

#[cfg(lockstep_mutants)]
mod forced {
    use super::Mutant;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Its place in [`Mutant::ALL`] and one; none when 0.
    static FORCED: AtomicUsize = AtomicUsize::new(0);

    /// Puts one fault in force, or none, for the whole process.
    pub fn force(mutant: Option<Mutant>) {
        FORCED.store(mutant.map_or(0, |mutant| mutant as usize + 1), Ordering::Relaxed);
    }

    /// Whether this fault is in force.
    pub fn is(mutant: Mutant) -> bool {
        FORCED.load(Ordering::Relaxed) == mutant as usize + 1
    }
}
