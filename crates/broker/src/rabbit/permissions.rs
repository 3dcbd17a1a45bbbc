//! The permissions that each program needs, for the advice after a refusal. docs/wire-format.md explains them. No I/O.

use lapin::types::ShortString;
use pingfleet_settings::shell_word;

use super::endpoint::Endpoint;
use crate::QueueName;

/// The exchanges to which a program writes, and the queues that it reads, by the name of its connections. `None` for a
/// program that an administrator runs.
fn needs(program: &str) -> Option<(&'static [QueueName], &'static [QueueName])> {
    match program {
        "producer" => Some((&[QueueName::WORK], &[])),
        "ping-worker" => Some((
            &[QueueName::RESULTS, QueueName::HEARTBEATS],
            &[QueueName::WORK],
        )),
        "consumer-writer" => Some((
            &[QueueName::FOREIGN],
            &[QueueName::RESULTS, QueueName::DEAD, QueueName::HEARTBEATS],
        )),
        _ => None,
    }
}

impl Endpoint {
    /// How an administrator gives this user the permissions that the program needs.
    pub(super) fn permission_advice(&self) -> String {
        let (vhost, user) = (shell_word(&self.uri.vhost), shell_word(self.user()));
        let Some((writes, reads)) = needs(&self.connection_name) else {
            return format!(
                "permit it with: rabbitmqctl set_permissions -p {vhost} {user} CONFIGURE WRITE READ"
            );
        };
        let write = pattern(writes.iter().map(|queue| self.exchange(*queue)));
        let read = pattern(reads.iter().map(|queue| self.queue(*queue)));
        format!(
            "a {} needs these permissions, and other programs that log in as this user need theirs as well: \
             rabbitmqctl set_permissions -p {vhost} {user} '^$' {} {}",
            self.connection_name,
            shell_word(&write),
            shell_word(&read)
        )
    }
}

/// A regular expression for exactly these names.
fn pattern(names: impl Iterator<Item = ShortString>) -> String {
    // A prefix has no other letter with a meaning. Shells need fewer quotes without a backslash.
    let names: Vec<_> = names
        .map(|name| name.as_str().replace('.', "[.]"))
        .collect();
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
                r"-p 'a b' tom '^$' '^north[.]x[.]foreign$' '^(north[.]results|north[.]dead|north[.]heartbeats)$'",
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
