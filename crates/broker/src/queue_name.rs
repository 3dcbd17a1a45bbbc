//! The names of queues and exchanges. No I/O.
//!
//! A direct exchange feeds the queues of each kind. No exchange has the name of a queue: RabbitMQ allows a user to bind a
//! queue if he may write to its name, so who may publish to an exchange of that name could also bind the queue.

use std::fmt;

use pingfleet_wire::{DEFAULT_GROUP, MAX_GROUP_BYTES, check_group};

/// How often a message of [`QueueKind::Work`] may return before it becomes a dead letter: it probably kills its workers.
/// Counts returns, not deliveries (RabbitMQ's `x-delivery-limit`).
pub const WORK_DELIVERY_LIMIT: u32 = 20;

/// The most messages of [`QueueKind::Foreign`]: one consumer can have all of them in hand, and so list them.
pub const MAX_FOREIGN_MESSAGES: u16 = 50_000;

/// A queue: its kind, and the worker group that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueName {
    /// What its messages are for.
    pub kind: QueueKind,
    /// The group of the workers. Only the work queues of different groups differ.
    pub group: Group,
}

impl QueueName {
    /// Chunks for the workers of the default group.
    pub const WORK: Self = Self::shared(QueueKind::Work);
    /// Outcomes for the writer; one consumer at a time.
    pub const RESULTS: Self = Self::shared(QueueKind::Results);
    /// Chunks that reached their delivery limit.
    pub const DEAD: Self = Self::shared(QueueKind::Dead);
    /// Heartbeats of the workers; old ones are dropped.
    pub const HEARTBEATS: Self = Self::shared(QueueKind::Heartbeats);
    /// Results and dead letters that a writer set aside, because they are for another database.
    pub const FOREIGN: Self = Self::shared(QueueKind::Foreign);
    /// All queues of a fleet with the default group only.
    pub const ALL: [Self; 5] = [
        Self::WORK,
        Self::RESULTS,
        Self::DEAD,
        Self::HEARTBEATS,
        Self::FOREIGN,
    ];

    const fn shared(kind: QueueKind) -> Self {
        Self {
            kind,
            group: Group::DEFAULT,
        }
    }

    /// Chunks for the workers of a group.
    #[must_use]
    pub const fn work(group: Group) -> Self {
        Self {
            kind: QueueKind::Work,
            group,
        }
    }
}

impl fmt::Display for QueueName {
    /// The name without the prefix: `work`, or `work.north` for the group `north`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        if self.kind == QueueKind::Work && self.group != Group::DEFAULT {
            write!(f, ".{}", self.group)?;
        }
        Ok(())
    }
}

/// What the messages of a queue are for. In the order of declaration: `work` sends its dead letters to `dead`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum QueueKind {
    /// Chunks that reached their delivery limit.
    Dead,
    /// Chunks for the workers.
    Work,
    /// Outcomes for the writer.
    Results,
    /// Heartbeats of the workers.
    Heartbeats,
    /// Results and dead letters that a writer set aside, because they are for another database.
    Foreign,
}

impl QueueKind {
    /// The part of a name that stands for the kind.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Work => "work",
            Self::Results => "results",
            Self::Dead => "dead",
            Self::Heartbeats => "heartbeats",
            Self::Foreign => "foreign",
        }
    }

    /// Whether its messages carry the login that published them: what workers publish, and what is set aside of it. Workers
    /// need not learn the producer's.
    #[must_use]
    pub const fn has_logins(self) -> bool {
        match self {
            Self::Results | Self::Heartbeats | Self::Foreign => true,
            Self::Work | Self::Dead => false,
        }
    }
}

/// A group of workers, such as those of one site.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group {
    bytes: [u8; MAX_GROUP_BYTES],
    length: usize,
}

impl Group {
    /// The group of workers without another one.
    pub const DEFAULT: Self = Self::from_ascii(DEFAULT_GROUP);

    /// A group by its name.
    ///
    /// # Errors
    /// A sentence with the rule for names.
    pub fn new(name: &str) -> Result<Self, String> {
        check_group(name)?;
        Ok(Self::from_ascii(name))
    }

    /// The name, which is short enough.
    const fn from_ascii(name: &str) -> Self {
        let mut bytes = [0; MAX_GROUP_BYTES];
        let mut at = 0;
        while at < name.len() {
            bytes[at] = name.as_bytes()[at];
            at += 1;
        }
        Self {
            bytes,
            length: name.len(),
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // The bytes are ASCII, because they come from a text that was checked.
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_work_queues_of_other_groups_have_the_group_in_their_name() {
        let north = Group::new("north").unwrap();
        for (queue, name) in [
            (QueueName::WORK, "work"),
            (QueueName::work(Group::DEFAULT), "work"),
            (QueueName::work(north), "work.north"),
            (QueueName::RESULTS, "results"),
            (QueueName::DEAD, "dead"),
            (QueueName::HEARTBEATS, "heartbeats"),
            (QueueName::FOREIGN, "foreign"),
        ] {
            assert_eq!(queue.to_string(), name);
        }
    }

    #[test]
    fn a_group_is_a_short_plain_name() {
        let longest = "g".repeat(MAX_GROUP_BYTES);
        assert_eq!(Group::new(&longest).unwrap().as_str(), longest);
        for name in [
            "",
            "a.b",
            "a b",
            "gr\u{fc}n",
            &"g".repeat(MAX_GROUP_BYTES + 1),
        ] {
            assert!(Group::new(name).is_err(), "{name:?}");
        }
    }
}
