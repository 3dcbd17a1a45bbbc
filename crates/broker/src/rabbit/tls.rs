//! TLS on this program's side: which authorities it trusts, and the certificate that it shows.
//!
//! The files are read at each connect, so a renewed certificate is used without a restart. The server's name is always
//! checked, and there is no way to connect without that.
//!
//! Source: RFC 7468 (PEM); RFC 6125, section 6 (names).

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_rustls::TlsConnector;
use pingfleet_settings::read_bytes;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
};
use thiserror::Error;

/// The files of a TLS connection, all in PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The only authorities that may sign the broker's certificate. Without it those that the system trusts.
    pub ca: Option<PathBuf>,
    /// The certificate that this program shows, then those that signed it. It needs [`Self::key`].
    pub certificate: Option<PathBuf>,
    /// The private key of [`Self::certificate`]: PKCS#8, PKCS#1 or SEC1.
    pub key: Option<PathBuf>,
}

/// A file that cannot be used, or files that do not fit together. The text has the paths, and nothing of their contents.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub(crate) struct TlsFileError(String);

impl TlsFiles {
    /// Whether any file is named.
    pub(super) fn are_named(&self) -> bool {
        self != &Self::default()
    }

    /// Reads the files, and checks that they fit together.
    pub(super) fn connector(&self) -> Result<TlsConnector, TlsFileError> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsFileError(error.to_string()))?
            .with_root_certificates(self.authorities()?);
        let config = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => builder
                .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
                .map_err(|error| unfit(certificate, key, &error))?,
            (None, None) => builder.with_no_client_auth(),
            (Some(_), None) => {
                return Err(TlsFileError(
                    "broker.cert_file needs the file of its private key in broker.key_file"
                        .to_owned(),
                ));
            }
            (None, Some(_)) => {
                return Err(TlsFileError(
                    "broker.key_file needs the file of its certificate in broker.cert_file"
                        .to_owned(),
                ));
            }
        };
        Ok(Arc::new(config).into())
    }

    fn authorities(&self) -> Result<RootCertStore, TlsFileError> {
        let mut store = RootCertStore::empty();
        let Some(path) = &self.ca else {
            let native = rustls_native_certs::load_native_certs();
            // The system's collection may have old certificates that cannot be read.
            store.add_parsable_certificates(native.certs);
            if store.is_empty() {
                return Err(TlsFileError(
                    "this machine trusts no authority: name a file with the broker's in broker.ca_file".to_owned(),
                ));
            }
            return Ok(store);
        };
        for certificate in certificates(path)? {
            let added = store.add(certificate);
            added.map_err(|error| in_file(path, format_args!("not a certificate: {error}")))?;
        }
        Ok(store)
    }
}

/// All certificates of a file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let bytes = read_bytes(path).map_err(|error| in_file(path, error))?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let read = read.map_err(|error| in_file(path, not_pem(&error)))?;
    if read.is_empty() {
        return Err(in_file(path, "has no certificate in PEM"));
    }
    Ok(read)
}

/// The first certificate of a file, if it can be read: that which this program shows.
pub(super) fn first_certificate(path: &Path) -> Option<CertificateDer<'static>> {
    certificates(path).ok()?.into_iter().next()
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    let bytes = read_bytes(path).map_err(|error| in_file(path, error))?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| match error {
        // `openssl` asks for a passphrase unless it is given -nodes.
        pem::Error::NoItemsFound if holds(&bytes, b"ENCRYPTED PRIVATE KEY") => in_file(
            path,
            "the key is encrypted: write it without a passphrase (openssl pkey)",
        ),
        pem::Error::NoItemsFound => in_file(path, "has no private key in PEM"),
        other => in_file(path, not_pem(&other)),
    })
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Not the error's own text: it may quote a line of the file.
fn not_pem(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "is not PEM: a section has no end",
        pem::Error::IllegalSectionStart { .. } => "is not PEM: a section has no name",
        _ => "is not PEM",
    }
}

fn unfit(certificate: &Path, key: &Path, error: &rustls::Error) -> TlsFileError {
    let (certificate, key) = (certificate.display(), key.display());
    TlsFileError(match error {
        rustls::Error::InconsistentKeys(_) => {
            format!("{key} is not the private key of the certificate in {certificate}")
        }
        rustls::Error::InvalidCertificate(_) => {
            format!("{certificate}: the first certificate cannot be read")
        }
        other => format!("{key} cannot be used with {certificate}: {other}"),
    })
}

fn in_file(path: &Path, why: impl Display) -> TlsFileError {
    TlsFileError(format!("{}: {why}", path.display()))
}
