//! The commands of `rabbitmqctl` that make logins, for brokers without the management plugin. No I/O.

use pingfleet_broker::{RabbitBroker, Role};
use pingfleet_settings::shell_word;

use super::roles::{self, MAX_CONNECTIONS};

/// The commands that make a virtual host, and let its administrator use it.
pub(super) fn of_virtual_host(vhost: &str, administrator: &str) -> String {
    let (vhost, administrator) = (shell_word(vhost), shell_word(administrator));
    format!(
        "  rabbitmqctl add_vhost {vhost}\n  rabbitmqctl set_permissions -p {vhost} {administrator} '.*' '.*' '.*'\n"
    )
}

/// The commands that make the logins of producer and writer, and the policies.
pub(super) fn of_master(broker: &RabbitBroker, vhost: &str, prefix: &str) -> String {
    let logins = [Role::Producer, Role::Writer];
    let logins =
        logins.map(|role| of_login(broker, vhost, &roles::master_login(prefix, role), role));
    let vhost = shell_word(vhost);
    let policies = roles::policies(broker, prefix).map(|(name, policy)| {
        format!(
            "  rabbitmqctl set_policy -p {vhost} --apply-to {} {name} '{}' '{}'\n",
            policy.apply_to, policy.pattern, policy.definition
        )
    });
    logins.concat() + &policies.concat()
}

/// The commands that make the login of the worker `NAME`.
pub(super) fn of_worker(broker: &RabbitBroker, vhost: &str, prefix: &str) -> String {
    let login = format!("{}NAME", roles::worker_logins(prefix));
    of_login(broker, vhost, &login, Role::Worker)
}

fn of_login(broker: &RabbitBroker, vhost: &str, login: &str, role: Role) -> String {
    let permissions = roles::permissions(role, broker);
    let vhost = shell_word(vhost);
    format!(
        "  rabbitmqctl add_user {login}\n  rabbitmqctl set_permissions -p {vhost} {login} '{}' '{}' '{}'\n  \
         rabbitmqctl set_user_limits {login} '{{\"max-connections\":{MAX_CONNECTIONS}}}'\n",
        permissions.configure, permissions.write, permissions.read
    )
}
