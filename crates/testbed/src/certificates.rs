//! Certificate authorities for tests, and the certificates that they sign, as files in PEM.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use tempfile::TempDir;

/// A certificate and its private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// The private key (PKCS#8), readable to its owner only.
    pub key: PathBuf,
}

/// Whether a certificate is valid now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// From 2000 to 2100.
    Now,
    /// In the year 2000.
    Expired,
}

/// An authority that nobody trusts, with a folder for its files. The folder is removed on drop.
pub struct TestAuthority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
    ca_file: PathBuf,
}

impl TestAuthority {
    /// A new authority.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("pingfleet-ca-").tempdir()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name("authority of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let ca_file = folder.path().join("ca.pem");
        fs::write(&ca_file, issuer.pem())?;
        Ok(Self {
            issuer,
            folder,
            ca_file,
        })
    }

    /// The file of the authority's own certificate.
    #[must_use]
    pub fn ca_file(&self) -> &Path {
        &self.ca_file
    }

    /// A certificate of a server with these names or addresses.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn server(&self, names: &[&str], validity: Validity) -> anyhow::Result<CertificateFiles> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let first = names.first().context("a server has a name")?.clone();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = common_name(&first);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&first, params, validity)
    }

    /// A certificate of a client. Its common name is the user.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn client(&self, user: &str, validity: Validity) -> anyhow::Result<CertificateFiles> {
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(user);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(user, params, validity)
    }

    fn sign(
        &self,
        name: &str,
        mut params: CertificateParams,
        validity: Validity,
    ) -> anyhow::Result<CertificateFiles> {
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = match validity {
            Validity::Now => date_time_ymd(2100, 1, 1),
            Validity::Expired => date_time_ymd(2001, 1, 1),
        };
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        // Each has files of its own, also for the same name.
        let folder = tempfile::Builder::new()
            .prefix(name)
            .tempdir_in(&self.folder)?
            .keep();
        let files = CertificateFiles {
            certificate: folder.join("certificate.pem"),
            key: folder.join("key.pem"),
        };
        fs::write(&files.certificate, certificate.pem())?;
        fs::write(&files.key, key.serialize_pem())?;
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600))?;
        Ok(files)
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}
