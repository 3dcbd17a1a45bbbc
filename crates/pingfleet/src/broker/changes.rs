//! Brings the broker to what a fleet needs, and says what was changed.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use pingfleet_broker::{BrokerError, RabbitBroker, RabbitConfig};
use pingfleet_report::words::counted;
use pingfleet_settings::{Exit, FILES_FOR_QUEUES, Failure, run_async};

use super::{
    credentials::{Credentials, new_password},
    found::{self, Found, Login},
    management::{Management, ManagementError, Permissions},
    roles::{self, MAX_CONNECTIONS},
};

/// How long the connections of a removed user may take to end.
const CLOSING: Duration = Duration::from_secs(5);

/// How often the queues are declared, and the pause between.
const DECLARE_TRIES: u32 = 3;
const DECLARE_PAUSE: Duration = Duration::from_secs(1);

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
    /// What could not be done, while the rest was.
    pub(super) failures: Vec<String>,
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
        run_async(FILES_FOR_QUEUES, async { Ok(declare(self.broker).await?) })?;
        let made = found.missing.iter();
        changes.done.extend(made.map(|what| format!("made {what}")));
        self.remove_alien_bindings(found, changes)?;
        for (name, policy) in &found.policies {
            management.put_policy(name, policy)?;
            changes
                .done
                .push(format!("set policy {name}: {}", policy.definition));
        }
        Ok(())
    }

    /// Removes bindings that nobody of the fleet made. One that cannot be removed holds up nothing else.
    fn remove_alien_bindings(&self, found: &Found, changes: &mut Changes) -> Result<(), Failure> {
        if found.alien.is_empty() {
            return Ok(());
        }
        let mut refusals = Vec::new();
        for binding in &found.alien {
            if let Err(error) = self.management.delete_binding(binding) {
                refusals.push(error.to_string());
            }
        }
        let left = found::alien(&self.management.bindings()?, self.broker);
        for binding in &found.alien {
            if left.contains(binding) {
                changes.failures.push(format!(
                    "{binding} cannot be removed: {}; an exclusive queue goes with the connection of its owner \
                     (rabbitmqctl list_queues name owner_pid)",
                    refusals.join("; ")
                ));
            } else {
                changes.done.push(format!(
                    "removed {binding}: no program of the fleet made it"
                ));
            }
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

    /// A login with its permissions, and its file if `file` names one. Of one that could do more than it may now, and of one
    /// with a new password, the connections are closed: they would go on with what they had.
    pub(super) fn login(
        &self,
        login: &Login,
        file: Option<&str>,
        changes: &mut Changes,
    ) -> Result<(), Failure> {
        let (management, name) = (self.management, &login.name);
        if login.is_of_another_fleet() {
            changes.failures.push(format!(
                "the user {name} belongs to the fleet in virtual host {}: choose another broker.prefix for this one",
                login.elsewhere.join(", ")
            ));
            return Ok(());
        }
        let mut is_stale = false;
        match (&login.user, file) {
            (None, Some(file)) => self.new_user(name, file, changes)?,
            (None, None) => return Ok(()),
            (Some(user), _) if !user.is_without_tags() => {
                management.remove_tags(user)?;
                is_stale = true;
                changes
                    .done
                    .push(format!("took the tags of the management API from {name}"));
            }
            (Some(_), _) => {}
        }
        let wanted = roles::permissions(login.role, self.broker);
        if login.permissions.as_ref() != Some(&wanted) {
            management.put_permissions(name, &wanted)?;
            is_stale |= login.permissions.is_some();
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
        if let (Some(_), Some(file)) = (&login.user, file) {
            is_stale |= self.known_user(name, file, changes)?;
        }
        if is_stale {
            let closed = close_connections(management, name)?;
            if closed > 0 {
                let connections = counted(closed as i64, "connection");
                changes.done.push(format!("closed {connections} of {name}"));
            }
        }
        Ok(())
    }

    /// Makes a user with a new password. That in a file is not used again: the user may have been removed because of it.
    fn new_user(&self, name: &str, file: &str, changes: &mut Changes) -> Result<(), Failure> {
        // A file of another fleet is not replaced.
        self.credentials.stored(file, name).map_err(usage)?;
        let password = new_password();
        // Before the user: a password that no file has is lost.
        let path = self.credentials.write(file, name, &password, None);
        let path = path.map_err(system)?;
        self.management.put_user(name, &password)?;
        changes.done.push(format!(
            "made user {name}; its password is in {}",
            path.display()
        ));
        Ok(())
    }

    /// Sees that the file of a user who is there has the right password and address. Returns whether the password is another
    /// one now.
    fn known_user(&self, name: &str, file: &str, changes: &mut Changes) -> Result<bool, Failure> {
        let path = self.credentials.file(file);
        let stored = self.credentials.stored(file, name).map_err(usage)?;
        let write = |password: &str| {
            let written = (self.credentials).write(file, name, password, stored.as_ref());
            written.map_err(system)
        };
        if self.renew {
            let password = new_password();
            write(&password)?;
            self.management.put_user(name, &password)?;
            changes.done.push(format!(
                "gave {name} a new password; it is in {}",
                path.display()
            ));
            return Ok(true);
        }
        let Some(stored) = &stored else {
            changes.notes.push(format!(
                "{name} was there, and {} is not: give --renew for a new password, which its owner needs then",
                path.display()
            ));
            return Ok(false);
        };
        if let Some(what) = stored.outdated {
            write(stored.password.expose())?;
            changes
                .done
                .push(format!("changed {what} in {}", path.display()));
        }
        match self.is_accepted(name, stored.password.expose()) {
            Ok(true) => Ok(false),
            Ok(false) => {
                self.management.put_user(name, stored.password.expose())?;
                changes.done.push(format!(
                    "set the password of {name} to that in {}",
                    path.display()
                ));
                Ok(true)
            }
            Err(failure) => {
                changes.notes.push(format!(
                    "whether the password in {} is right is not known: {}",
                    path.display(),
                    failure.message
                ));
                Ok(false)
            }
        }
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
            password: Some(password.into()),
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

/// Declares the queues. A busy broker may break off the declaration of a quorum queue (541, internal error): then again.
pub(super) async fn declare(broker: &RabbitBroker) -> Result<(), BrokerError> {
    for _ in 1..DECLARE_TRIES {
        match broker.declare().await {
            Err(BrokerError::Lost(_)) => tokio::time::sleep(DECLARE_PAUSE).await,
            declared => return declared,
        }
    }
    broker.declare().await
}

/// Closes the connections of a user, and waits until they are gone. Returns how many there were.
pub(super) fn close_connections(management: &Management, name: &str) -> Result<usize, Failure> {
    let began = Instant::now();
    let mut closed = BTreeSet::new();
    let mut refusal = String::new();
    loop {
        let open = management.connections(name)?;
        let known: Vec<_> = open
            .iter()
            .filter(|connection| closed.contains(&connection.name))
            .collect();
        // A program may have connected again, with what it may do now.
        if open.is_empty() || !closed.is_empty() && known.is_empty() {
            return Ok(closed.len());
        }
        if began.elapsed() > CLOSING {
            let text = format!("{name} has {} connections still{refusal}", open.len());
            return Err(Failure::new(Exit::System, text));
        }
        for connection in open {
            // It may be gone, or be about to close: then the next look shows it.
            if let Err(error) = management.close_connection(&connection.name) {
                refusal = format!(": {error}");
            }
            closed.insert(connection.name);
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
