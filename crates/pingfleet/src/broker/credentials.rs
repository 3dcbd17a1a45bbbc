//! The files with the logins of the roles: settings files that only their owner can read.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use pingfleet_broker::BrokerAddress;
use pingfleet_settings::read_text;
use tempfile::NamedTempFile;
use url::Url;
use uuid::Uuid;

/// Where the credentials of a fleet are.
pub(super) struct Credentials {
    folder: PathBuf,
    broker: BrokerAddress,
    prefix: Option<String>,
}

impl Credentials {
    /// `address` is where the broker is for those who get the files: a host, or a host and a port.
    ///
    /// # Errors
    /// Why the address cannot be used.
    pub(super) fn new(
        folder: &Path,
        mut broker: BrokerAddress,
        prefix: Option<String>,
        address: Option<&str>,
    ) -> Result<Self, String> {
        if let Some(address) = address {
            let url =
                Url::parse(&format!("amqp://{address}")).map_err(|error| error.to_string())?;
            let is_plain = url.username().is_empty()
                && url.password().is_none()
                && url.path().is_empty()
                && url.query().is_none();
            let host = url.host_str().filter(|host| is_plain && !host.is_empty());
            let host = host.ok_or("give a host, or a host and a port: 10.0.0.5:5672")?;
            host.clone_into(&mut broker.host);
            broker.port = url.port().unwrap_or(broker.port);
        } else if broker.host.contains(':') {
            broker.host = format!("[{}]", broker.host);
        }
        Ok(Self {
            folder: folder.to_owned(),
            broker,
            prefix,
        })
    }

    /// The file of a role or a worker.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.toml"))
    }

    /// Whether the files name a host that is another machine for everybody else.
    pub(super) fn names_this_machine(&self) -> bool {
        let host = self.broker.host.as_str();
        host == "localhost" || host == "[::1]" || host.starts_with("127.")
    }

    /// The password in a file, if it is there.
    ///
    /// # Errors
    /// When the file cannot be read, or has no password.
    pub(super) fn password(&self, name: &str) -> Result<Option<String>, String> {
        let file = self.file(name);
        let text = match read_text(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("{}: {error}", file.display())),
        };
        let parsed: Option<toml::Table> = text.parse().ok();
        let password = parsed
            .as_ref()
            .and_then(|table| table.get("broker")?.get("password")?.as_str());
        match password {
            Some(password) if !password.is_empty() => Ok(Some(password.to_owned())),
            _ => Err(format!(
                "{} has no broker.password: remove the file, and give --renew for a new password",
                file.display()
            )),
        }
    }

    /// Writes a file. One that is there is replaced, also a link.
    ///
    /// # Errors
    /// What writing returns, with the path.
    pub(super) fn write(&self, name: &str, login: &str, password: &str) -> Result<PathBuf, String> {
        let file = self.file(name);
        let written = self.try_write(&file, login, password);
        written.map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(file)
    }

    fn try_write(&self, file: &Path, login: &str, password: &str) -> io::Result<()> {
        make_folder(&self.folder)?;
        // Its mode is 0600.
        let mut new = NamedTempFile::new_in(&self.folder)?;
        new.write_all(self.text(login, password).as_bytes())?;
        new.as_file().sync_all()?;
        new.persist(file)?;
        Ok(())
    }

    fn text(&self, login: &str, password: &str) -> String {
        let url = self.url(login);
        let prefix = self.prefix.as_ref();
        let prefix = prefix.map_or_else(String::new, |prefix| format!("prefix = \"{prefix}\"\n"));
        format!(
            "# A login of the broker: who has this file can use it. For --config, or as pingfleet.toml.\n[broker]\n\
             url = \"{url}\"\n{prefix}password = \"{password}\"\n"
        )
    }

    /// The broker's URL with a login. Its parts are percent-encoded, so it needs no quoting.
    fn url(&self, login: &str) -> String {
        let BrokerAddress {
            is_tls,
            host,
            port,
            vhost,
            ..
        } = &self.broker;
        let scheme = if *is_tls { "amqps" } else { "amqp" };
        let mut url = format!("{scheme}://{login}@{host}:{port}/");
        url.extend(url::form_urlencoded::byte_serialize(vhost.as_bytes()));
        // A space is `+` in a form, and nowhere else.
        url.replace('+', "%20")
    }
}

/// A new password: 244 random bits.
pub(super) fn new_password() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

/// Makes a folder that only its owner can enter. One that is there stays as it is.
fn make_folder(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

#[cfg(test)]
mod tests {
    use pingfleet_broker::{RabbitBroker, RabbitConfig};

    use super::*;

    fn credentials(folder: &Path, url: &str, address: Option<&str>) -> Result<Credentials, String> {
        let broker = RabbitBroker::new(&RabbitConfig::new(url)).unwrap();
        Credentials::new(folder, broker.address(), None, address)
    }

    #[test]
    fn a_file_is_a_settings_file_with_the_login_that_its_owner_alone_can_read() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("new");
        let found = credentials(&inner, "amqps://admin:hunter2@h/a b%2f+", None).unwrap();
        assert_eq!(found.password("writer"), Ok(None));
        let file = found.write("writer", "pingfleet-writer", "secret").unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert!(
            text.contains(
                "url = \"amqps://pingfleet-writer@h:5671/a%20b%2F%2B\"\npassword = \"secret\"\n"
            ),
            "{text}"
        );
        assert!(!text.contains("hunter2"), "{text}");
        assert_eq!(found.password("writer"), Ok(Some("secret".to_owned())));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&file), mode(&inner)), (0o600, 0o700));
        }
        fs::write(&file, "[broker]\n").unwrap();
        assert!(found.password("writer").is_err());
    }

    #[test]
    fn the_address_in_the_files_may_be_another_one() {
        let folder = Path::new("unused");
        for (address, url) in [
            (None, "amqp://w@127.0.0.1:7/%2F"),
            (Some("10.0.0.5"), "amqp://w@10.0.0.5:7/%2F"),
            (Some("10.0.0.5:8"), "amqp://w@10.0.0.5:8/%2F"),
            (Some("[fd00::5]:8"), "amqp://w@[fd00::5]:8/%2F"),
        ] {
            let found = credentials(folder, "amqp://127.0.0.1:7", address).unwrap();
            assert_eq!(found.url("w"), url);
            assert_eq!(found.names_this_machine(), address.is_none());
        }
        for address in ["", "a/b", "user@host", "h:x", "h?x"] {
            assert!(
                credentials(folder, "amqp://h", Some(address)).is_err(),
                "{address}"
            );
        }
    }
}
