//! What the broker has of a fleet, and what it lacks.

use pingfleet_broker::{QueueName, RabbitBroker};

use super::{
    management::{Binding, Management, ManagementError, Permissions, Policy, Queue, User},
    roles::{self, MAX_CONNECTIONS, Role},
};

/// What the broker has.
pub(super) struct Found {
    pub(super) version: String,
    pub(super) has_vhost: bool,
    /// The queues, in the order of [`QueueName::ALL`], with their names.
    pub(super) queues: Vec<(String, Option<Queue>)>,
    /// Exchanges and bindings that are missing.
    pub(super) missing: Vec<String>,
    /// Bindings that nobody of us made: they copy messages elsewhere, or let others in.
    pub(super) alien: Vec<Binding>,
    /// Policies that are missing or other than they should be.
    pub(super) policies: Vec<(String, Policy)>,
    /// The logins that should be there, and those of workers.
    pub(super) logins: Vec<Login>,
}

/// A login of a role.
pub(super) struct Login {
    pub(super) name: String,
    pub(super) role: Role,
    /// None if there is no such user.
    pub(super) user: Option<User>,
    pub(super) permissions: Option<Permissions>,
    pub(super) max_connections: Option<u64>,
    pub(super) connections: usize,
}

impl Login {
    /// What is not as it should be, in words.
    pub(super) fn problems(&self, broker: &RabbitBroker) -> Vec<String> {
        let Some(user) = &self.user else {
            return vec!["is missing".to_owned()];
        };
        let mut problems = Vec::new();
        if !user.is_without_tags() {
            problems.push("has tags of the management API".to_owned());
        }
        let wanted = self.role.permissions(broker);
        match &self.permissions {
            None => problems.push("has no permissions".to_owned()),
            Some(found) if *found != wanted => problems.push(format!(
                "has other permissions: configure {:?}, write {:?}, read {:?}",
                found.configure, found.write, found.read
            )),
            Some(_) => {}
        }
        if self.max_connections != Some(MAX_CONNECTIONS) {
            problems.push("has another limit of connections".to_owned());
        }
        problems
    }
}

/// Looks at all of it. `prefix` is that of the queues.
pub(super) fn find(
    management: &Management,
    broker: &RabbitBroker,
    prefix: &str,
) -> Result<Found, ManagementError> {
    let has_vhost = management.has_vhost()?;
    let mut found = Found {
        version: management.version()?,
        has_vhost,
        queues: Vec::new(),
        missing: Vec::new(),
        alien: Vec::new(),
        policies: Vec::new(),
        logins: Vec::new(),
    };
    let bindings = if has_vhost {
        management.bindings()?
    } else {
        Vec::new()
    };
    for queue in QueueName::ALL {
        let name = broker.queue_name(queue);
        let exchange = broker.exchange_name(queue);
        let known = if has_vhost {
            management.queue(&name)?
        } else {
            None
        };
        if known.is_none() {
            found.missing.push(format!("queue {name}"));
        }
        found.queues.push((name.clone(), known));
        if !has_vhost || !management.has_exchange(&exchange)? {
            found.missing.push(format!("exchange {exchange}"));
        }
        if !bindings
            .iter()
            .any(|binding| is_own(binding, &exchange, &name))
        {
            found
                .missing
                .push(format!("binding of {exchange} to {name}"));
        }
    }
    found.alien = alien(bindings, broker);
    for (name, policy) in roles::policies(broker, prefix) {
        let known = if has_vhost {
            management.policy(&name)?
        } else {
            None
        };
        if known.as_ref() != Some(&policy) {
            found.policies.push((name, policy));
        }
    }
    found.logins = logins(management, prefix, has_vhost)?;
    Ok(found)
}

/// Whether it is the binding of our exchange to its queue.
fn is_own(binding: &Binding, exchange: &str, queue: &str) -> bool {
    binding.source == exchange
        && binding.destination == queue
        && binding.destination_type == "queue"
        && binding.routing_key == queue
}

/// The bindings of our queues and exchanges that are none of ours. The broker itself binds each queue to its default
/// exchange, which no role may write to.
fn alien(bindings: Vec<Binding>, broker: &RabbitBroker) -> Vec<Binding> {
    let names = QueueName::ALL.map(|queue| (broker.exchange_name(queue), broker.queue_name(queue)));
    let concerns_us = |binding: &Binding| {
        names.iter().any(|(exchange, queue)| {
            binding.source == *exchange
                || match &*binding.destination_type {
                    "queue" => binding.destination == *queue && !binding.source.is_empty(),
                    _ => binding.destination == *exchange,
                }
        })
    };
    let is_ours = |binding: &Binding| {
        let mut names = names.iter();
        names.any(|(exchange, queue)| is_own(binding, exchange, queue))
    };
    let bindings = bindings.into_iter();
    let mut alien: Vec<_> = bindings
        .filter(|binding| concerns_us(binding) && !is_ours(binding))
        .collect();
    alien.sort_unstable();
    alien
}

fn logins(
    management: &Management,
    prefix: &str,
    has_vhost: bool,
) -> Result<Vec<Login>, ManagementError> {
    let of_workers = roles::worker_logins(prefix);
    let workers = management.users()?.into_iter();
    let workers = workers.map(|user| user.name);
    let mut workers: Vec<_> = workers
        .filter(|name| name.starts_with(&of_workers))
        .collect();
    workers.sort_unstable();
    let master = [Role::Producer, Role::Writer];
    let master = master.map(|role| (roles::master_login(prefix, role), role));
    let workers = workers.into_iter().map(|name| (name, Role::Worker));
    let all = master.into_iter().chain(workers);
    all.map(|(name, role)| login(management, name, role, has_vhost))
        .collect()
}

/// What there is of one login.
pub(super) fn login(
    management: &Management,
    name: String,
    role: Role,
    has_vhost: bool,
) -> Result<Login, ManagementError> {
    let user = management.user(&name)?;
    let is_there = user.is_some();
    let permissions = if is_there && has_vhost {
        management.permissions(&name)?
    } else {
        None
    };
    let max_connections = if is_there {
        management.max_connections(&name)?
    } else {
        None
    };
    let connections = if is_there {
        management.connections(&name)?.len()
    } else {
        0
    };
    Ok(Login {
        name,
        role,
        user,
        permissions,
        max_connections,
        connections,
    })
}
