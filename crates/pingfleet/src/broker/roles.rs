//! What the logins of a fleet may do on the broker: the least that works. No I/O.
//!
//! Source: RabbitMQ's documentation of access control: to publish needs `write` on the exchange, to consume `read` on the
//! queue, and to declare or delete `configure`.

use pingfleet_broker::{QueueName, RabbitBroker};
use serde_json::json;

use super::management::{Permissions, Policy};

/// The most connections of one login: many times what its role opens, and few for a thief.
pub(super) const MAX_CONNECTIONS: u64 = 64;

/// The most bytes of results that wait for the writer. The broker refuses more, and the workers keep theirs until it takes
/// them.
const MAX_RESULT_BYTES: u64 = 8 << 30;

/// The most characters of a worker's name in its login.
const MAX_NAME: usize = 64;

/// What a login is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Producer,
    Writer,
    Worker,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Producer => "producer",
            Self::Writer => "writer",
            Self::Worker => "worker",
        }
    }

    /// The queues to whose exchanges it publishes, and those that it consumes.
    fn queues(self) -> (&'static [QueueName], &'static [QueueName]) {
        match self {
            Self::Producer => (&[QueueName::WORK], &[]),
            // It also publishes to learn whether the broker has an alarm.
            Self::Writer => (
                &[QueueName::RESULTS],
                &[QueueName::RESULTS, QueueName::DEAD, QueueName::HEARTBEATS],
            ),
            Self::Worker => (
                &[QueueName::RESULTS, QueueName::HEARTBEATS],
                &[QueueName::WORK],
            ),
        }
    }

    pub(super) fn permissions(self, broker: &RabbitBroker) -> Permissions {
        let (writes, reads) = self.queues();
        let write = writes.iter().map(|queue| broker.exchange_name(*queue));
        let read = reads.iter().map(|queue| broker.queue_name(*queue));
        Permissions {
            configure: "^$".to_owned(),
            write: any_of(write),
            read: any_of(read),
        }
    }
}

/// A regular expression for exactly these names.
fn any_of(names: impl Iterator<Item = String>) -> String {
    let names: Vec<_> = names.map(|name| escaped(&name)).collect();
    match names.as_slice() {
        [] => "^$".to_owned(),
        [name] => format!("^{name}$"),
        names => format!("^({})$", names.join("|")),
    }
}

/// A name of letters, digits, `-`, `_` and `.`, as a regular expression.
fn escaped(name: &str) -> String {
    name.replace('.', r"\.")
}

/// The logins of the producer and of the writer.
pub(super) fn master_login(prefix: &str, role: Role) -> String {
    format!("{prefix}-{}", role.name())
}

/// What the logins of all workers begin with.
pub(super) fn worker_logins(prefix: &str) -> String {
    format!("{prefix}-{}-", Role::Worker.name())
}

/// The login of a worker.
///
/// # Errors
/// A sentence with the rule for names.
pub(super) fn worker_login(prefix: &str, name: &str) -> Result<String, String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let starts_plain = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    if name.len() > MAX_NAME || !name.bytes().all(is_plain) || !starts_plain {
        return Err(format!(
            "a worker's login is named by up to {MAX_NAME} letters, digits, '-', '_' and '.', the first of them a letter or digit"
        ));
    }
    Ok(format!("{}{name}", worker_logins(prefix)))
}

/// The policies of the virtual host, with their names.
pub(super) fn policies(broker: &RabbitBroker, prefix: &str) -> [(String, Policy); 1] {
    let results = escaped(&broker.queue_name(QueueName::RESULTS));
    let policy = Policy {
        pattern: format!("^{results}$"),
        definition: json!({ "max-length-bytes": MAX_RESULT_BYTES, "overflow": "reject-publish" }),
        apply_to: "queues".to_owned(),
        priority: 0,
    };
    [(format!("{prefix}-results"), policy)]
}

#[cfg(test)]
mod tests {
    use pingfleet_broker::RabbitConfig;

    use super::*;

    #[test]
    fn each_role_may_do_only_its_own() {
        let broker = RabbitBroker::new(&RabbitConfig::new("amqp://h")).unwrap();
        let of = |role: Role| {
            let permissions = role.permissions(&broker);
            assert_eq!(permissions.configure, "^$");
            (permissions.write, permissions.read)
        };
        assert_eq!(
            of(Role::Producer),
            (r"^pingfleet\.x\.work$".to_owned(), "^$".to_owned())
        );
        assert_eq!(
            of(Role::Worker),
            (
                r"^(pingfleet\.x\.results|pingfleet\.x\.heartbeats)$".to_owned(),
                r"^pingfleet\.work$".to_owned()
            )
        );
        assert!(!of(Role::Writer).0.contains("work"));
    }

    #[test]
    fn a_workers_login_has_a_plain_name() {
        assert_eq!(
            worker_login("pingfleet", "berlin-1.example").unwrap(),
            "pingfleet-worker-berlin-1.example"
        );
        for name in ["", "-a", "a b", "a/b", "gr\u{fc}n", "..", &"a".repeat(65)] {
            assert!(worker_login("pingfleet", name).is_err(), "{name:?}");
        }
    }
}
