//! What must hold, whatever happens. One file for each invariant of `docs/guarantee.md` that a simulation can check.

pub(crate) mod i21_wall_clocks_decide_nothing;
pub(crate) mod i22_disks_keep_their_word;
pub(crate) mod i23_decay_is_refused;
pub(crate) mod i26_same_bytes;

use lockstep_core::world::{Happened, Name, World};
use std::fmt;

/// What an invariant finds; an error says what has been broken.
pub type Verdict = Result<(), String>;

/// One promise, and what has to be remembered to see it broken.
pub trait Invariant {
    /// Its number in `docs/guarantee.md`, and what it promises.
    const NAME: &'static str;

    /// Something has happened; the world is as it is after that.
    fn happened(&mut self, _world: &World, _what: &Happened) -> Verdict {
        Ok(())
    }

    /// Looks at the world after each step.
    fn look(&mut self, _world: &World) -> Verdict {
        Ok(())
    }

    /// A host of which promises cannot be expected any more: its disk was set back, or its messages were disturbed
    /// as no connection does.
    fn excuse(&mut self, _name: &Name) {}

    /// A host whose agent runs twice at once, the second one from a copy of its disk. It is excused too.
    fn double(&mut self, _name: &Name) {}

    /// A host on which nothing is left that stops members when its lease ends.
    fn release(&mut self, _name: &Name) {}

    /// A host that no fault touches.
    fn spare(&mut self, _name: &Name) {}

    /// Looks at a world that was left alone, without faults, for as long as everything may take to resolve.
    fn end(&mut self, _world: &World) -> Verdict {
        Ok(())
    }
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: &'static str,
    /// How.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

macro_rules! invariants {
    ($($module:ident::$type:ident,)*) => {
        $(mod $module;)*

        /// All invariants together. Equal ones judge every future alike.
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
        pub struct Invariants {
            $($module: $module::$type,)*
        }

        impl Invariants {
            /// Looks at a world after a step and what happened in it.
            pub fn look(&mut self, world: &World, happened: &[Happened]) -> Result<(), Violation> {
                $(judge(&mut self.$module, |invariant| {
                    happened.iter().try_for_each(|what| invariant.happened(world, what))?;
                    invariant.look(world)
                })?;)*
                Ok(())
            }

            /// Expects no promises of a host any more.
            pub fn excuse(&mut self, name: &Name) {
                $(self.$module.excuse(name);)*
            }

            /// Expects nothing of a host that hangs on one agent any more.
            pub fn double(&mut self, name: &Name) {
                $(self.$module.double(name);)*
            }

            /// Expects nothing of a host that needs its lease any more.
            pub fn release(&mut self, name: &Name) {
                $(self.$module.release(name);)*
            }

            /// Expects all of a host: no fault touches it.
            pub fn spare(&mut self, name: &Name) {
                $(self.$module.spare(name);)*
            }

            /// Looks at a world in which everything should have resolved.
            pub fn end(&mut self, world: &World) -> Result<(), Violation> {
                $(judge(&mut self.$module, |invariant| invariant.end(world))?;)*
                Ok(())
            }
        }
    };
}

fn judge<I: Invariant>(invariant: &mut I, look: impl FnOnce(&mut I) -> Verdict) -> Result<(), Violation> {
    look(invariant).map_err(|what| Violation { invariant: I::NAME, what })
}

invariants! {
    i01_one_outcome::OneOutcome,
    i02_outcome_once::OutcomeOnce,
    i03_votes_bind::VotesBind,
    i04_decision_is_current::DecisionIsCurrent,
    i05_prepared_stays::PreparedStays,
    i06_reads_are_whole::ReadsAreWhole,
    i07_same_request_same_answer::SameRequestSameAnswer,
    i08_acknowledged_survives::AcknowledgedSurvives,
    i10_grace_is_given::GraceIsGiven,
    i10_leases_end::LeasesEnd,
    i10_tokens_fence::TokensFence,
    i11_reigns_grow::ReignsGrow,
    i12_max_holds::MaxHolds,
    i13_killed_is_not_done::KilledIsNotDone,
    i14_holds_end::HoldsEnd,
    i15_footprints_serialise::FootprintsSerialise,
    i16_notices_in_order::NoticesInOrder,
    i17_relations_follow::RelationsFollow,
    i18_missed_outcomes_first::MissedOutcomesFirst,
    i18_returns_are_judged::ReturnsAreJudged,
    i19_groups_are_repaired::GroupsAreRepaired,
    i19_heals::Heals,
    i19_one_server_reigns::OneServerReigns,
    i20_repairs_are_bounded::RepairsAreBounded,
    i20_spared_stay::SparedStay,
    calls_never_overlap::CallsNeverOverlap,
    evidence_is_true::EvidenceIsTrue,
    settings_as_decided::SettingsAsDecided,
}
