//! Certificates and a client for the tests of secured listeners.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, ApiVersionsRequest, ApiVersionsResponse, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, Request, StrBytes};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

use crate::{Broker, Security, ServerTls, Settings};

/// The longest time that a test waits for bytes.
const PATIENCE: Duration = Duration::from_secs(10);

/// A certificate authority and the files of its certificates, removed at the end.
pub struct Authority {
    folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let name = format!("devbroker-{}", uuid::Uuid::new_v4());
        let folder = std::env::temp_dir().join(&name);
        std::fs::create_dir(&folder).expect("a folder");
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate().expect("a key"));
        let authority = Self { folder, issuer: issuer.expect("an authority") };
        std::fs::write(authority.file(), authority.issuer.pem()).expect("writable");
        authority
    }

    /// The authority's own certificate.
    pub fn file(&self) -> PathBuf {
        self.folder.join("authority.pem")
    }

    /// Issues a certificate for the loopback; returns the files of the certificate and its key.
    pub fn issue(&self, file: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new(["127.0.0.1".to_owned()]).expect("a name");
        let certificate = certificate.signed_by(&key, &self.issuer).expect("a certificate");
        let paths = (self.folder.join(format!("{file}.pem")), self.folder.join(format!("{file}.key")));
        std::fs::write(&paths.0, certificate.pem()).expect("writable");
        std::fs::write(&paths.1, key.serialize_pem()).expect("writable");
        paths
    }

    /// TLS for the broker, which asks clients for no certificate.
    pub fn server(&self) -> Security {
        let (certificate, key) = self.issue("server");
        Security { tls: Some(ServerTls { certificate, key, client_authorities: None }), sasl: None }
    }

    /// A client that trusts this authority and presents no certificate.
    pub fn client(&self) -> Arc<ClientConfig> {
        self.client_of(rustls::DEFAULT_VERSIONS, None)
    }

    /// A client that trusts this authority, with these versions of TLS and a certificate.
    pub fn client_of(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        identity: Option<(PathBuf, PathBuf)>,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("an authority");
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let config = config.with_protocol_versions(versions).expect("known").with_root_certificates(roots);
        Arc::new(match identity {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let certificate = CertificateDer::from_pem_file(certificate).expect("readable");
                let key = PrivateKeyDer::from_pem_file(key).expect("readable");
                config.with_client_auth_cert(vec![certificate], key).expect("they fit")
            }
        })
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Starts a broker of one node.
pub fn broker(security: Security) -> Broker {
    let mut settings = Settings::new(vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))]);
    settings.security = security;
    Broker::start(settings).expect("a broker")
}

/// Opens a socket whose reads end.
pub fn socket(broker: &Broker) -> TcpStream {
    let socket = TcpStream::connect(broker.address()).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    socket.set_nodelay(true).expect("an option");
    socket
}

/// A connection to a broker.
pub struct Client<S> {
    pub stream: S,
    sent: i32,
}

impl Client<TcpStream> {
    pub fn plain(broker: &Broker) -> Self {
        Self { stream: socket(broker), sent: 0 }
    }
}

impl Client<StreamOwned<ClientConnection, TcpStream>> {
    /// Opens a TLS connection; the handshake begins with the first read or write.
    pub fn tls(broker: &Broker, config: &Arc<ClientConfig>) -> Self {
        let name = ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let session = ClientConnection::new(Arc::clone(config), name).expect("a session");
        Self { stream: StreamOwned::new(session, socket(broker)), sent: 0 }
    }
}

impl<S: Read + Write> Client<S> {
    /// Sends a request and reads its response.
    pub fn call<R: Request>(&mut self, version: i16, request: &R) -> io::Result<R::Response> {
        self.send(version, request)?;
        self.receive::<R>(version)
    }

    pub fn send<R: Request>(&mut self, version: i16, request: &R) -> io::Result<()> {
        self.sent += 1;
        self.stream.write_all(&frame(self.sent, version, request))?;
        self.stream.flush()
    }

    /// Reads the response to the last request.
    pub fn receive<R: Request>(&mut self, version: i16) -> io::Result<R::Response> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).expect("it fits")];
        self.stream.read_exact(&mut body)?;
        let mut body = Bytes::from(body);
        let key = ApiKey::try_from(R::KEY).expect("known");
        let header = ResponseHeader::decode(&mut body, key.response_header_version(version)).expect("a header");
        assert_eq!(header.correlation_id, self.sent);
        let response = R::Response::decode(&mut body, version).expect("a response");
        assert!(!body.has_remaining(), "{} bytes too many", body.remaining());
        Ok(response)
    }

    pub fn api_versions(&mut self) -> io::Result<ApiVersionsResponse> {
        self.call(3, &api_versions())
    }

    /// Reads to the end; returns whether it is a goodbye of TLS. Without TLS it always is.
    pub fn is_clean_end(&mut self) -> bool {
        match self.stream.read_to_end(&mut Vec::new()) {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
            Err(error) => panic!("no end: {error}"),
        }
    }
}

pub fn api_versions() -> ApiVersionsRequest {
    let request = ApiVersionsRequest::default().with_client_software_name(StrBytes::from_static_str("test"));
    request.with_client_software_version(StrBytes::from_static_str("1"))
}

/// Encodes a request with its length.
pub fn frame<R: Request>(correlation: i32, version: i16, request: &R) -> Bytes {
    let key = ApiKey::try_from(R::KEY).expect("known");
    let header = RequestHeader::default().with_request_api_key(R::KEY).with_request_api_version(version);
    let header = header.with_correlation_id(correlation).with_client_id(Some(StrBytes::from_static_str("client")));
    let mut frame = BytesMut::from(&[0; 4][..]);
    header.encode(&mut frame, key.request_header_version(version)).expect("encodable");
    request.encode(&mut frame, version).expect("encodable");
    let length = u32::try_from(frame.len() - 4).expect("it fits");
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame.freeze()
}

/// The error of TLS inside an error of a stream.
pub fn tls_error(error: &io::Error) -> &rustls::Error {
    error.get_ref().and_then(|inner| inner.downcast_ref()).unwrap_or_else(|| panic!("no error of TLS: {error}"))
}
