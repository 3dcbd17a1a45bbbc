//! Brings the broker to what a fleet needs, and says what was changed.

use std::{
    thread,
    time::{Duration, Instant},
};

use pingfleet_broker::{BrokerError, RabbitBroker, RabbitConfig};
use pingfleet_settings::{Exit, FILES_FOR_QUEUES, Failure, run_async};

use super::{
    credentials::{Credentials, new_password},
    found::{Found, Login},
    management::{Management, ManagementError, Permissions},
    roles::MAX_CONNECTIONS,
};

/// How long the connections of a removed user may take to end.
const CLOSING: Duration = Duration::from_secs(5);

/// What is needed to change a broker.
pub(super) struct Setup<'a> {
    pub(super) broker: &'a RabbitBroker,
    pub(super) config: &'a RabbitConfig,
    pub(super) management: &'a Management,
    pub(super) credentials: &'a Credentials,
    /// Whether logins that are there get new passwords.
    pub(super) renew: bool,
}

/// What was changed, a line each, and what the user has to know.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) done: Vec<String>,
    pub(super) notes: Vec<String>,
}

impl From<ManagementError> for Failure {
    fn from(error: ManagementError) -> Self {
        Self::new(Exit::System, format_args!("management API: {error}"))
    }
}

impl Setup<'_> {
    /// The virtual host, the queues with their exchanges and bindings, and the policies.
    pub(super) fn topology(&self, found: &Found, changes: &mut Changes) -> Result<(), Failure> {
        let management = self.management;
        if !found.has_vhost {
            management.make_vhost()?;
            changes
                .done
                .push(format!("made virtual host {}", management.vhost));
        }
        self.administrator(changes)?;
        // Also if nothing is missing: it names what has other arguments.
        run_async(FILES_FOR_QUEUES, async { Ok(self.broker.declare().await?) })?;
        let made = found.missing.iter();
        changes.done.extend(made.map(|what| format!("made {what}")));
        for binding in &found.alien {
            management.delete_binding(binding)?;
            changes.done.push(format!(
                "removed the binding of exchange {:?} to {} {:?} with routing key {:?}: no program of the fleet made it",
                binding.source, binding.destination_type, binding.destination, binding.routing_key
            ));
        }
        for (name, policy) in &found.policies {
            management.put_policy(name, policy)?;
            changes
                .done
                .push(format!("set policy {name}: {}", policy.definition));
        }
        Ok(())
    }

    /// Lets the administrator use the virtual host, who could do so anyway, to declare the queues.
    fn administrator(&self, changes: &mut Changes) -> Result<(), Failure> {
        let user = &self.management.user;
        if self.management.permissions(user)?.is_some() {
            return Ok(());
        }
        let all = || ".*".to_owned();
        let permissions = Permissions {
            configure: all(),
            write: all(),
            read: all(),
        };
        self.management.put_permissions(user, &permissions)?;
        changes.done.push(format!(
            "gave {user} all permissions in the virtual host, to declare the queues"
        ));
        Ok(())
    }

    /// A login with its permissions, and its file if `file` names one.
    pub(super) fn login(
        &self,
        login: &Login,
        file: Option<&str>,
        changes: &mut Changes,
    ) -> Result<(), Failure> {
        let (management, name) = (self.management, &login.name);
        match (&login.user, file) {
            (None, Some(file)) => self.new_user(name, file, changes)?,
            (None, None) => return Ok(()),
            (Some(user), _) if !user.is_without_tags() => {
                management.remove_tags(user)?;
                changes
                    .done
                    .push(format!("took the tags of the management API from {name}"));
            }
            (Some(_), _) => {}
        }
        let wanted = login.role.permissions(self.broker);
        if login.permissions.as_ref() != Some(&wanted) {
            management.put_permissions(name, &wanted)?;
            changes.done.push(format!(
                "gave {name} its permissions: write {:?}, read {:?}",
                wanted.write, wanted.read
            ));
        }
        if login.max_connections != Some(MAX_CONNECTIONS) {
            management.put_max_connections(name, MAX_CONNECTIONS)?;
            changes
                .done
                .push(format!("limited {name} to {MAX_CONNECTIONS} connections"));
        }
        // After the permissions: without them the login is refused, too.
        match (&login.user, file) {
            (Some(_), Some(file)) => self.known_user(name, file, changes),
            _ => Ok(()),
        }
    }

    /// Makes a user. A password in its file is used again: the broker may have been set up anew.
    fn new_user(&self, name: &str, file: &str, changes: &mut Changes) -> Result<(), Failure> {
        let kept = self.credentials.password(file).map_err(usage)?;
        let password = kept.clone().unwrap_or_else(new_password);
        // Before the user: a password that no file has is lost.
        let path = self
            .credentials
            .write(file, name, &password)
            .map_err(system)?;
        self.management.put_user(name, &password)?;
        let which = if kept.is_some() {
            "the password in"
        } else {
            "its password is in"
        };
        changes
            .done
            .push(format!("made user {name}; {which} {}", path.display()));
        Ok(())
    }

    /// Sees that the file of a user who is there has the right password.
    fn known_user(&self, name: &str, file: &str, changes: &mut Changes) -> Result<(), Failure> {
        let path = self.credentials.file(file);
        let password = if self.renew {
            let password = new_password();
            self.credentials
                .write(file, name, &password)
                .map_err(system)?;
            password
        } else {
            match self.credentials.password(file).map_err(usage)? {
                None => {
                    changes.notes.push(format!(
                        "{name} was there, and {} is not: give --renew for a new password, which the old one's owner \
                         needs then",
                        path.display()
                    ));
                    return Ok(());
                }
                Some(password) if self.is_accepted(name, &password)? => return Ok(()),
                Some(password) => password,
            }
        };
        self.management.put_user(name, &password)?;
        changes.done.push(format!(
            "set the password of {name} to that in {}",
            path.display()
        ));
        Ok(())
    }

    /// Whether the broker accepts a login.
    fn is_accepted(&self, name: &str, password: &str) -> Result<bool, Failure> {
        let mut url = url::Url::parse(&self.config.url)
            .map_err(|error| Failure::new(Exit::Usage, format_args!("broker URL: {error}")))?;
        // A URL that names a broker has a host.
        let set = url.set_username(name).and_then(|()| url.set_password(None));
        set.map_err(|()| Failure::new(Exit::Usage, "broker URL: it can have no user"))?;
        let config = RabbitConfig {
            url: url.into(),
            password: Some(password.to_owned()),
            ..self.config.clone()
        };
        let broker = RabbitBroker::new(&config)?;
        match run_async(FILES_FOR_QUEUES, async { Ok(broker.login().await) })? {
            Ok(()) => Ok(true),
            Err(BrokerError::Login { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Removes a user. Returns how many connections it had.
pub(super) fn remove(management: &Management, name: &str) -> Result<usize, Failure> {
    let before = management.connections(name)?.len();
    management.delete_user(name)?;
    // The broker closes them by itself. This makes sure, and waits for it.
    let began = Instant::now();
    let mut refusal = String::new();
    loop {
        let open = management.connections(name)?;
        if open.is_empty() {
            return Ok(before);
        }
        if began.elapsed() > CLOSING {
            let text = format!(
                "{name} is removed, and has {} connections still{refusal}",
                open.len()
            );
            return Err(Failure::new(Exit::System, text));
        }
        for connection in open {
            // It may be gone, or be about to close: then the next look shows it.
            if let Err(error) = management.close_connection(&connection.name) {
                refusal = format!(": {error}");
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn usage(why: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Usage, why)
}

fn system(why: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::System, format_args!("cannot write {why}"))
}
