//! Certificates, passwords and tokens of a test's own, as files in a folder of this run.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair, date_time_ymd,
};

use super::janitor;

/// An authority, and the folder with what it has issued. The janitor removes the folder.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Authority {
    /// Writes its certificate to `ca.pem` in a new folder.
    pub fn new() -> Authority {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("certificates-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = janitor::folder().join(&name);
        std::fs::create_dir(&folder).expect("a new folder");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate");
        let authority = Authority { issuer, folder };
        authority.write("ca.pem", &authority.issuer.pem());
        authority
    }

    /// Issues a certificate until `year`: `NAME.pem` has it, `NAME.key` the key, and `NAME.store` both, as Kafka wants
    /// them.
    pub fn issue(&self, name: &str, hosts: &[&str], year: i32) {
        let mut params =
            CertificateParams::new(hosts.iter().map(ToString::to_string).collect::<Vec<_>>()).expect("names");
        params.not_before = date_time_ymd(1975, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        let key = key.serialize_pem();
        self.write(&format!("{name}.pem"), &certificate);
        self.write(&format!("{name}.key"), &key);
        self.write(&format!("{name}.store"), &(key + &certificate));
    }

    /// Writes a file of the folder anew, by a rename as a rotation does it; returns its path.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let (path, new) = (self.path(name), self.path("new"));
        std::fs::write(&new, text).expect("written");
        std::fs::rename(&new, &path).expect("renamed");
        path
    }

    /// The path of a file of the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    fn folder(&self) -> &Path {
        &self.folder
    }
}
