//! When requests leave and when a target is settled. Pure rules, used by every prober.

pub mod pacing;
pub mod target_state;
pub mod window;
