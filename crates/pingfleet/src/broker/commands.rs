//! The commands of `rabbitmqctl` that make logins, for brokers without the management plugin. No I/O.

use pingfleet_broker::RabbitBroker;
use pingfleet_settings::shell_word;

use super::roles::{self, MAX_CONNECTIONS, Role};

/// The commands that make the logins of producer, writer and one worker, a line each.
pub(super) fn of_roles(broker: &RabbitBroker, vhost: &str, prefix: &str) -> String {
    let vhost = shell_word(vhost);
    let mut lines = Vec::new();
    let workers = format!("{}NAME", roles::worker_logins(prefix));
    for (login, role) in [
        (roles::master_login(prefix, Role::Producer), Role::Producer),
        (roles::master_login(prefix, Role::Writer), Role::Writer),
        (workers, Role::Worker),
    ] {
        let permissions = role.permissions(broker);
        let limit = format!("{{\"max-connections\":{MAX_CONNECTIONS}}}");
        lines.push(format!("  rabbitmqctl add_user {login}"));
        lines.push(format!(
            "  rabbitmqctl set_permissions -p {vhost} {login} '{}' '{}' '{}'",
            permissions.configure, permissions.write, permissions.read
        ));
        lines.push(format!("  rabbitmqctl set_user_limits {login} '{limit}'"));
    }
    for (name, policy) in roles::policies(broker, prefix) {
        lines.push(format!(
            "  rabbitmqctl set_policy -p {vhost} --apply-to {} {name} '{}' '{}'",
            policy.apply_to, policy.pattern, policy.definition
        ));
    }
    lines.join("\n")
}
