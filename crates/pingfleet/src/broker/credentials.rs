//! The files with the logins of the roles: settings files that only their owner can read.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use pingfleet_broker::BrokerAddress;
use pingfleet_settings::{Secret, read_text};
use tempfile::NamedTempFile;
use url::Url;
use uuid::Uuid;

/// Where the credentials of a fleet are.
pub(super) struct Credentials {
    folder: PathBuf,
    broker: BrokerAddress,
    prefix: Option<String>,
    /// The file with the authorities that may sign the broker's certificate, if it is not the system that has them.
    ca_file: Option<String>,
    /// Whether the user gave the address that belongs in the files.
    is_address_given: bool,
}

/// What a file has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) password: Secret,
    /// The URL that it shall have: with the address that the user gave, or else the one that it has for its owner.
    url: Url,
    /// What in it is another one than the user gave.
    pub(super) outdated: Option<&'static str>,
}

impl Credentials {
    /// `address` is where the broker is for those who get the files: a host, or a host and a port.
    ///
    /// # Errors
    /// Why the address or the path of the authorities cannot be used.
    pub(super) fn new(
        folder: &Path,
        mut broker: BrokerAddress,
        prefix: Option<String>,
        address: Option<&str>,
        ca_file: Option<&Path>,
    ) -> Result<Self, String> {
        if let Some(address) = address {
            set_address(&mut broker, address).map_err(|why| format!("--address: {why}"))?;
        } else if broker.host.contains(':') {
            broker.host = format!("[{}]", broker.host);
        }
        Ok(Self {
            folder: folder.to_owned(),
            broker,
            prefix,
            ca_file: ca_file.map(everywhere).transpose()?,
            is_address_given: address.is_some(),
        })
    }

    /// The file of a role or a worker.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.toml"))
    }

    /// Whether the files name a host that is another machine for everybody else.
    pub(super) fn names_this_machine(&self) -> bool {
        let host = self.broker.host.as_str();
        !self.is_address_given
            && (host == "localhost" || host == "[::1]" || host.starts_with("127."))
    }

    /// What is in the file of a login, if it is there.
    ///
    /// # Errors
    /// When the file cannot be read or has no password, when others may have written it, or when it is of another fleet.
    pub(super) fn stored(&self, name: &str, login: &str) -> Result<Option<Stored>, String> {
        let file = self.file(name);
        let in_file = |why: &str| format!("{}: {why}", file.display());
        match check_private(&file) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(in_file(&error.to_string())),
        }
        check_private(&self.folder)
            .map_err(|error| format!("{}: {error}", self.folder.display()))?;
        let text = read_text(&file).map_err(|error| in_file(&error.to_string()))?;
        let no_login = "it has no login: remove it, and give --renew for a new password";
        let parsed: toml::Table = text.parse().map_err(|_| in_file(no_login))?;
        let value = |key: &str| parsed.get("broker")?.get(key)?.as_str();
        let (Some(url), Some(password)) = (value("url"), value("password")) else {
            return Err(in_file(no_login));
        };
        let url = Url::parse(url).map_err(|_| in_file(no_login))?;
        let mut wanted =
            Url::parse(&self.url(login)).map_err(|error| in_file(&error.to_string()))?;
        let is_ours = url.username() == wanted.username()
            && url.path() == wanted.path()
            && value("prefix") == self.prefix.as_deref();
        if !is_ours {
            return Err(in_file(
                "it is the login of another fleet: give another folder with --credentials",
            ));
        }
        if !self.is_address_given {
            // Its owner may reach the broker by another address than we do.
            let is_same_scheme = url.scheme() == wanted.scheme();
            let port = url.port().filter(|_| is_same_scheme).or(wanted.port());
            let kept = wanted.set_host(url.host_str());
            kept.map_err(|error| in_file(&error.to_string()))?;
            wanted.set_port(port).map_err(|()| in_file(no_login))?;
        }
        let outdated = if url != wanted {
            Some("the broker's address")
        } else if self.ca_file.is_some() && value("ca_file") != self.ca_file() {
            Some("ca_file")
        } else {
            None
        };
        Ok(Some(Stored {
            url: wanted,
            password: password.into(),
            outdated,
        }))
    }

    /// Writes a file. One that is there is replaced, also a link; `stored` is what it has.
    ///
    /// # Errors
    /// What writing returns, with the path.
    pub(super) fn write(
        &self,
        name: &str,
        login: &str,
        password: &str,
        stored: Option<&Stored>,
    ) -> Result<PathBuf, String> {
        let file = self.file(name);
        let url = stored.map_or_else(|| self.url(login), |stored| stored.url.to_string());
        let written = self.try_write(&file, &url, password);
        written.map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(file)
    }

    fn try_write(&self, file: &Path, url: &str, password: &str) -> io::Result<()> {
        make_folder(&self.folder)?;
        check_private(&self.folder)?;
        // Its mode is 0600.
        let mut new = NamedTempFile::new_in(&self.folder)?;
        new.write_all(self.text(url, password).as_bytes())?;
        new.as_file().sync_all()?;
        new.persist(file)?;
        Ok(())
    }

    /// The file with the authorities that the files name.
    pub(super) fn ca_file(&self) -> Option<&str> {
        self.ca_file.as_deref()
    }

    fn text(&self, url: &str, password: &str) -> String {
        let values = [
            ("url", Some(url)),
            ("prefix", self.prefix.as_deref()),
            ("ca_file", self.ca_file()),
            ("password", Some(password)),
        ];
        let mut text = "# A login of the broker: who has this file can use it. For --config, or as pingfleet.toml.\n[broker]\n"
            .to_owned();
        for (key, value) in values {
            if let Some(value) = value {
                // Quoted as TOML wants it.
                text.extend([key, " = ", &toml::Value::from(value).to_string(), "\n"]);
            }
        }
        text
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

/// Sets the broker's address to a host, or a host and a port.
fn set_address(broker: &mut BrokerAddress, address: &str) -> Result<(), String> {
    let url = Url::parse(&format!("amqp://{address}")).map_err(|error| error.to_string())?;
    let is_plain = url.username().is_empty()
        && url.password().is_none()
        && url.path().is_empty()
        && url.query().is_none();
    let host = url.host_str().filter(|host| is_plain && !host.is_empty());
    let host = host.ok_or("give a host, or a host and a port: 10.0.0.5:5672")?;
    host.clone_into(&mut broker.host);
    broker.port = url.port().unwrap_or(broker.port);
    Ok(())
}

/// The path of the authorities for programs that run in other folders.
fn everywhere(ca_file: &Path) -> Result<String, String> {
    let path = std::path::absolute(ca_file);
    let path = path.map_err(|error| format!("broker.ca_file: {error}"))?;
    let text = path.into_os_string().into_string();
    text.map_err(|path| format!("broker.ca_file: {} is not UTF-8", path.display()))
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

/// Checks that nobody else may change a file or folder, nor read a file, and that it is no link.
#[cfg(target_os = "linux")]
fn check_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = fs::symlink_metadata(path)?;
    let own = rustix::process::geteuid().as_raw();
    let others = if metadata.is_dir() { 0o022 } else { 0o077 };
    let why = if metadata.is_symlink() {
        "it is a link: name the file or folder itself"
    } else if metadata.uid() != own {
        "another user owns it: give another folder with --credentials"
    } else if metadata.mode() & others != 0 {
        "other users may read or change it: make it private (chmod go= PATH)"
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

/// Elsewhere only whether it is there.
#[cfg(not(target_os = "linux"))]
fn check_private(path: &Path) -> io::Result<()> {
    fs::symlink_metadata(path).map(drop)
}

#[cfg(test)]
mod tests {
    use pingfleet_broker::{RabbitBroker, RabbitConfig};

    use super::*;

    fn credentials(folder: &Path, url: &str, address: Option<&str>) -> Result<Credentials, String> {
        let broker = RabbitBroker::new(&RabbitConfig::new(url)).unwrap();
        Credentials::new(folder, broker.address(), None, address, None)
    }

    #[test]
    fn a_file_is_a_settings_file_with_the_login_that_its_owner_alone_can_read() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("new");
        let found = credentials(&inner, "amqps://admin:hunter2@h/a b%2f+", None).unwrap();
        let login = "pingfleet-writer";
        assert_eq!(found.stored("writer", login), Ok(None));
        let file = found
            .write("writer", "pingfleet-writer", "secret", None)
            .unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert!(
            text.contains(
                "url = \"amqps://pingfleet-writer@h:5671/a%20b%2F%2B\"\npassword = \"secret\"\n"
            ),
            "{text}"
        );
        assert!(!text.contains("hunter2"), "{text}");
        let stored = |credentials: &Credentials| {
            let stored = credentials.stored("writer", login).unwrap().unwrap();
            assert_eq!(stored.password.expose(), "secret");
            stored
        };
        assert_eq!(stored(&found).outdated, None);
        let moved = credentials(&inner, "amqps://h/a b%2f+", Some("10.0.0.5")).unwrap();
        let other = stored(&moved);
        assert_eq!(other.outdated, Some("the broker's address"));
        (moved.write("writer", login, "secret", Some(&other))).unwrap();
        assert_eq!(stored(&moved).outdated, None);
        // The address that its owner reaches stays, and the scheme changes.
        assert_eq!(stored(&found).outdated, None);
        let plain = credentials(&inner, "amqp://127.0.0.1/a b%2f+", None).unwrap();
        let other = stored(&plain);
        assert_eq!(other.outdated, Some("the broker's address"));
        let url = "amqp://pingfleet-writer@10.0.0.5:5672/a%20b%2F%2B";
        assert_eq!(other.url.as_str(), url);
        let authorities = folder.path().join("a \"b\".pem");
        let broker = RabbitBroker::new(&RabbitConfig::new("amqps://h/a b%2f+")).unwrap();
        let with_authorities =
            Credentials::new(&inner, broker.address(), None, None, Some(&authorities)).unwrap();
        let other = stored(&with_authorities);
        assert_eq!(other.outdated, Some("ca_file"));
        (with_authorities.write("writer", login, "secret", Some(&other))).unwrap();
        assert_eq!(stored(&with_authorities).outdated, None);
        let written: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
        assert_eq!(
            written["broker"]["ca_file"].as_str().map(Path::new),
            Some(&*authorities)
        );
        for (url, login) in [
            ("amqps://h/other", login),
            ("amqps://h/a b%2f+", "x-writer"),
        ] {
            let other = credentials(&inner, url, None).unwrap();
            let refused = other.stored("writer", login).unwrap_err();
            assert!(refused.contains("another fleet"), "{refused}");
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&file), mode(&inner)), (0o600, 0o700));
        }
        fs::write(&file, "[broker]\n").unwrap();
        assert!(found.stored("writer", login).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_others_may_have_written_is_not_used() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let folder = tempfile::tempdir().unwrap();
        let found = credentials(folder.path(), "amqp://h", None).unwrap();
        let file = found.write("writer", "w", "secret", None).unwrap();
        // The control.
        assert!(found.stored("writer", "w").is_ok());
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let refused = || found.stored("writer", "w").unwrap_err();
        mode(&file, 0o644);
        assert!(refused().contains("other users may read"), "{}", refused());
        mode(&file, 0o600);
        mode(folder.path(), 0o777);
        assert!(refused().contains("other users may read"), "{}", refused());
        assert!(found.write("writer", "w", "secret", None).is_err());
        mode(folder.path(), 0o700);
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(&file, &elsewhere).unwrap();
        symlink(&elsewhere, &file).unwrap();
        assert!(refused().contains("it is a link"), "{}", refused());
        // Writing replaces the link.
        found.write("writer", "w", "new", None).unwrap();
        assert!(
            fs::read_to_string(&elsewhere)
                .unwrap()
                .contains("\"secret\"")
        );
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
