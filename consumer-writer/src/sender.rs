//! Who sent a message: the login that the broker checked. No I/O.
//!
//! A message in the queues of results and heartbeats carries the login of its worker's connection. The broker refuses to take
//! one with another login, so the writer need not believe what a message says of itself. A result that was set aside for
//! another writer comes back under the login of whoever returned it, with that of its worker in a header. The header counts
//! only if the message was published under the writer's own login: a worker has another one, under which it can write any
//! header and is not believed.

use pingfleet_broker::Delivery;

/// Why a message without a login is refused: it is from a version before logins were sent.
pub(crate) const NO_LOGIN: &str = "without the login of its worker (property user_id)";

/// What is to be done about it.
pub(crate) const UPGRADE: &str = "upgrade the worker; the chunk is published again";

/// The login of the worker that sent a delivery, for a writer with this login. None within one process, where there are no
/// logins, and for a message that lacks one.
pub(crate) fn sender(delivery: &Delivery, own_login: Option<&str>) -> Option<String> {
    let own_login = own_login?;
    let published_by = delivery.login.as_deref()?;
    let original = delivery.original_login.as_deref();
    let believed = original.filter(|_| published_by == own_login);
    Some(believed.unwrap_or(published_by).to_owned())
}

#[cfg(test)]
mod tests {
    use pingfleet_broker::DeliveryTag;

    use super::*;

    fn delivery(login: Option<&str>, original: Option<&str>) -> Delivery {
        Delivery {
            tag: DeliveryTag(1),
            body: Vec::new(),
            redelivered: false,
            dead_letter_reason: None,
            login: login.map(str::to_owned),
            original_login: original.map(str::to_owned),
        }
    }

    #[test]
    fn a_header_counts_only_under_the_login_of_the_writer() {
        for (login, original, expected) in [
            (Some("rack-7"), None, Some("rack-7")),
            (Some("rack-7"), Some("rack-9"), Some("rack-7")),
            (Some("writer"), Some("rack-9"), Some("rack-9")),
            (Some("writer"), None, Some("writer")),
            (None, Some("rack-9"), None),
            (None, None, None),
        ] {
            let delivery = delivery(login, original);
            let found = sender(&delivery, Some("writer"));
            assert_eq!(found.as_deref(), expected, "{login:?} {original:?}");
            assert_eq!(sender(&delivery, None), None, "in one process");
        }
    }
}
