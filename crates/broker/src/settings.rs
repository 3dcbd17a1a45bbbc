//! What a program needs around the broker: its settings, and the messages of its errors.

use std::{cell::Cell, path::Path};

use pingfleet_settings::{
    BrokerArgs, Failure, Layers, keys, read_secret, shell_word, warn_if_exposed,
};
use url::Url;

use crate::{BrokerError, RabbitBroker, RabbitConfig, TlsFiles};

impl RabbitConfig {
    /// Resolves the settings of the broker; problems are collected in `layers`. `program` names the connections.
    pub fn resolve(args: &BrokerArgs, layers: &mut Layers, program: &str) -> Self {
        layers.set_flags(args);
        let given = args.text(&keys::BROKER_URL);
        let given = given.and_then(|url| Url::parse(url).ok());
        if given.is_some_and(|url| url.password().is_some()) {
            tracing::warn!(
                "every user of this machine can read the password in --broker: give it in PINGFLEET_BROKER__PASSWORD, or \
                 name a file that has it in broker.password_file"
            );
        }
        let is_url = Cell::new(true);
        let url = layers.get_as(&keys::BROKER_URL, |url| {
            let checked = RabbitBroker::new(&Self::new(&url));
            is_url.set(checked.is_ok());
            match checked {
                Ok(_) => Ok(url),
                Err(BrokerError::Url(why)) => Err(format!("not a broker's URL: {why}")),
                Err(other) => Err(other.to_string()),
            }
        });
        let prefix = layers.get(&keys::BROKER_PREFIX);
        let password = layers.optional(&keys::BROKER_PASSWORD);
        let from_file =
            layers.optional_as(&keys::BROKER_PASSWORD_FILE, |path| read_password(&path));
        let tls = TlsFiles {
            ca: layers.optional(&keys::BROKER_CA_FILE),
            certificate: layers.optional(&keys::BROKER_CERT_FILE),
            key: layers.optional(&keys::BROKER_KEY_FILE),
        };
        let config = Self {
            url,
            prefix,
            password: from_file.or(password),
            auth: layers.get(&keys::BROKER_AUTH),
            tls,
            connection_name: program.to_owned(),
        };
        if is_url.get() {
            config
                .security_problems()
                .for_each(|why| layers.problem(why));
        }
        if let Some(key) = &config.tls.key {
            warn_if_exposed(key, "the private key of broker.cert_file");
        }
        config
    }
}

impl RabbitConfig {
    /// The flag that names the broker, behind a space, for a command that is printed: without the password. Empty if the
    /// flag was not given.
    #[must_use]
    pub fn as_flag(args: &BrokerArgs) -> String {
        let given = args.text(&keys::BROKER_URL);
        let without_password = given.and_then(|url| {
            let mut url = Url::parse(url).ok()?;
            url.set_password(None).ok()?;
            Some(url)
        });
        without_password.map_or_else(String::new, |url| {
            format!(" --broker {}", shell_word(url.as_str()))
        })
    }
}

/// The first line of a file.
fn read_password(path: &Path) -> Result<String, String> {
    let name = path.display();
    let password = read_secret(path, "the broker's password");
    let password = password.map_err(|error| format!("{name}: {error}"))?;
    if password.is_empty() {
        return Err(format!("{name} has no password on its first line"));
    }
    Ok(password)
}

/// The message says how to fix most of them.
impl From<BrokerError> for Failure {
    fn from(error: BrokerError) -> Self {
        let Self { exit, message } = Self::system(&error);
        match error.advice() {
            Some(advice) => Self::new(exit, format_args!("{message}: {advice}")),
            None => Self { exit, message },
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, Command, FromArgMatches as _};

    use super::*;

    fn flag(given: &[&str]) -> String {
        let command = BrokerArgs::augment_args(Command::new("test"));
        let matches = command.get_matches_from([&["test"], given].concat());
        RabbitConfig::as_flag(&BrokerArgs::from_arg_matches(&matches).unwrap())
    }

    #[test]
    fn a_printed_command_names_the_broker_without_its_password() {
        assert_eq!(flag(&[]), "");
        assert_eq!(
            flag(&["--broker", "amqp://bob:hunter2@h:7/a%20b?heartbeat=5"]),
            " --broker 'amqp://bob@h:7/a%20b?heartbeat=5'"
        );
    }
}
