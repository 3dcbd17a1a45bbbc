//! The logins of a fleet, and the policies of its queues. No I/O.

use std::iter;

use pingfleet_broker::{QueueName, RabbitBroker, Role, exactly};
use serde_json::json;

use super::management::{Permissions, Policy};

/// The most connections of one login: many times what its role opens, and few for a thief.
pub(super) const MAX_CONNECTIONS: u64 = 64;

/// The most bytes of results that wait for the writer. The broker refuses more, and the workers keep theirs until it takes
/// them.
const MAX_RESULT_BYTES: u64 = 8 << 30;

/// The most characters of a worker's name in its login.
const MAX_NAME: usize = 64;

/// What the login of a role may do.
pub(super) fn permissions(role: Role, broker: &RabbitBroker) -> Permissions {
    let (writes, reads) = (role.writes().iter(), role.reads().iter());
    Permissions {
        configure: "^$".to_owned(),
        write: exactly(writes.map(|queue| broker.exchange_name(*queue))),
        read: exactly(reads.map(|queue| broker.queue_name(*queue))),
    }
}

/// The logins of the producer and of the writer.
pub(super) fn master_login(prefix: &str, role: Role) -> String {
    format!("{prefix}-{}", role.name())
}

/// Checks that no login of this prefix looks like a worker of another one.
///
/// # Errors
/// A sentence with the rule.
pub(super) fn check_prefix(prefix: &str) -> Result<(), String> {
    if prefix.ends_with("-worker") {
        return Err(format!(
            "with the prefix {prefix:?} its logins would look like workers of another fleet: choose another broker.prefix"
        ));
    }
    Ok(())
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
    let policy = Policy {
        pattern: exactly(iter::once(broker.queue_name(QueueName::RESULTS))),
        definition: json!({ "max-length-bytes": MAX_RESULT_BYTES, "overflow": "reject-publish" }),
        apply_to: "queues".to_owned(),
        priority: 0,
    };
    [(format!("{prefix}-results"), policy)]
}

#[cfg(test)]
mod tests {
    use super::*;

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
