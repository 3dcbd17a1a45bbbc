//! What a program needs around the broker: its settings, and the messages of its errors.

use std::path::Path;

use pingfleet_settings::{BrokerArgs, Failure, Layers, keys, read_text};

use crate::{BrokerError, RabbitBroker, RabbitConfig};

impl RabbitConfig {
    /// Resolves the settings of the broker; problems are collected in `layers`. `program` names the connections.
    pub fn resolve(args: &BrokerArgs, layers: &mut Layers, program: &str) -> Self {
        layers.set_flags(args);
        let url = layers.get_as(&keys::BROKER_URL, |url| {
            match RabbitBroker::new(&Self::new(&url)) {
                Ok(_) => Ok(url),
                Err(BrokerError::Url(why)) => Err(format!("not a broker's URL: {why}")),
                Err(other) => Err(other.to_string()),
            }
        });
        let prefix = layers.get(&keys::BROKER_PREFIX);
        let password = layers.optional(&keys::BROKER_PASSWORD);
        let from_file =
            layers.optional_as(&keys::BROKER_PASSWORD_FILE, |path| read_password(&path));
        Self {
            url,
            prefix,
            password: from_file.or(password),
            connection_name: program.to_owned(),
        }
    }
}

/// The first line of a file.
fn read_password(path: &Path) -> Result<String, String> {
    let name = path.display();
    let text = read_text(path).map_err(|error| format!("{name}: {error}"))?;
    match text.lines().next() {
        Some(password) if !password.is_empty() => Ok(password.to_owned()),
        _ => Err(format!("{name} has no password on its first line")),
    }
}

/// The message says how to fix most of them.
impl From<BrokerError> for Failure {
    fn from(error: BrokerError) -> Self {
        let advice = match &error {
            BrokerError::Unreachable { .. } => {
                "start one with `docker-compose up -d`, or name yours with --broker"
            }
            BrokerError::Login { .. } => {
                "give its password in PINGFLEET_BROKER__PASSWORD, or name a file that has it in broker.password_file"
            }
            BrokerError::NoTopology { .. } => {
                "declare it with `pingfleet broker init`, as a user with the configure permission"
            }
            BrokerError::OtherTopology { .. } => {
                "choose another broker.prefix, the same for all programs"
            }
            BrokerError::Forbidden { .. } | BrokerError::Url(_) | BrokerError::Lost(_) => {
                return Self::system(&error);
            }
        };
        let Self { exit, message } = Self::system(&error);
        Self::new(exit, format_args!("{message}: {advice}"))
    }
}
