//! The permissions that each program needs: for the logins that `pingfleet broker` makes, and for the advice after a
//! refusal. docs/wire-format.md explains them. No I/O.
//!
//! Source: RabbitMQ's documentation of access control: to publish needs `write` on the exchange, to consume `read` on the
//! queue, and to declare or delete `configure`.

use pingfleet_settings::shell_word;

use super::endpoint::Endpoint;
use crate::QueueName;

/// What a login of the broker is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `producer`.
    Producer,
    /// `consumer-writer`.
    Writer,
    /// `ping-worker`.
    Worker,
}

impl Role {
    /// The role of a program by the name of its connections. `None` for one that an administrator runs.
    fn of_program(program: &str) -> Option<Self> {
        match program {
            "producer" => Some(Self::Producer),
            "consumer-writer" => Some(Self::Writer),
            "ping-worker" => Some(Self::Worker),
            _ => None,
        }
    }

    /// The name of the role.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Producer => "producer",
            Self::Writer => "writer",
            Self::Worker => "worker",
        }
    }

    /// The queues to whose exchanges it publishes.
    #[must_use]
    pub fn writes(self) -> &'static [QueueName] {
        match self {
            Self::Producer => &[QueueName::WORK],
            // What is for other databases is set aside, and returned by `broker foreign`. The live page learns from the
            // exchange of results whether the broker has an alarm.
            Self::Writer => &[QueueName::RESULTS, QueueName::DEAD, QueueName::FOREIGN],
            Self::Worker => &[QueueName::RESULTS, QueueName::HEARTBEATS],
        }
    }

    /// The queues that it consumes.
    #[must_use]
    pub fn reads(self) -> &'static [QueueName] {
        match self {
            Self::Producer => &[],
            Self::Writer => &[
                QueueName::RESULTS,
                QueueName::DEAD,
                QueueName::HEARTBEATS,
                QueueName::FOREIGN,
            ],
            Self::Worker => &[QueueName::WORK],
        }
    }
}

impl Endpoint {
    /// How an administrator gives this user the permissions that the program needs.
    pub(super) fn permission_advice(&self) -> String {
        let (vhost, user) = (shell_word(&self.uri.vhost), shell_word(self.user()));
        let Some(role) = Role::of_program(&self.connection_name) else {
            return format!(
                "permit it with: rabbitmqctl set_permissions -p {vhost} {user} CONFIGURE WRITE READ"
            );
        };
        let (writes, reads) = (role.writes().iter(), role.reads().iter());
        let write = exactly(writes.map(|queue| self.exchange(*queue).to_string()));
        let read = exactly(reads.map(|queue| self.queue(*queue).to_string()));
        format!(
            "a {} needs these permissions, and other programs that log in as this user need theirs as well: \
             rabbitmqctl set_permissions -p {vhost} {user} '^$' {} {}",
            self.connection_name,
            shell_word(&write),
            shell_word(&read)
        )
    }
}

/// A regular expression for exactly these names of queues or exchanges.
#[must_use]
pub fn exactly(names: impl Iterator<Item = String>) -> String {
    // A prefix has no other letter with a meaning. Shells need fewer quotes without a backslash.
    let names: Vec<_> = names.map(|name| name.replace('.', "[.]")).collect();
    match names.as_slice() {
        [] => "^$".to_owned(),
        [name] => format!("^{name}$"),
        names => format!("^({})$", names.join("|")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RabbitConfig;

    #[test]
    fn each_program_is_given_what_it_needs_and_nothing_else() {
        for (program, expected) in [
            ("producer", r"-p 'a b' tom '^$' '^north[.]x[.]work$' '^$'"),
            (
                "ping-worker",
                r"-p 'a b' tom '^$' '^(north[.]x[.]results|north[.]x[.]heartbeats)$' '^north[.]work$'",
            ),
            (
                "consumer-writer",
                r"-p 'a b' tom '^$' '^(north[.]x[.]results|north[.]x[.]dead|north[.]x[.]foreign)$' '^(north[.]results|north[.]dead|north[.]heartbeats|north[.]foreign)$'",
            ),
            ("pingfleet", "-p 'a b' tom CONFIGURE WRITE READ"),
        ] {
            let mut config = RabbitConfig::new("amqp://tom@h/a%20b");
            "north".clone_into(&mut config.prefix);
            program.clone_into(&mut config.connection_name);
            let advice = Endpoint::new(&config).unwrap().permission_advice();
            let command = format!("rabbitmqctl set_permissions {expected}");
            assert!(advice.ends_with(&command), "{advice}");
        }
    }
}
