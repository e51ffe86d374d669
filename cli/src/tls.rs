//! TLS as listeners here speak it: one certificate, looked at in each handshake, so that a new one takes effect without
//! a connection lost.

use std::sync::Arc;

use anyhow::Context;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// What is shown, the latest at any time; without one every handshake fails.
pub type Shown = watch::Receiver<Option<Arc<CertifiedKey>>>;

/// Takes connections of HTTP/1.1 over TLS.
///
/// # Errors
/// When the TLS library refuses its own defaults.
pub fn acceptor(shown: Shown) -> anyhow::Result<TlsAcceptor> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("TLS cannot be set up")?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Newest(shown)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Shows the newest certificate in every handshake.
#[derive(Debug)]
struct Newest(Shown);

impl ResolvesServerCert for Newest {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.borrow().clone()
    }
}

/// A certificate with what leads to it, and its key, both as PEM.
///
/// # Errors
/// When one of them is none, or they do not fit.
pub fn certified(chain: &[u8], key: &[u8]) -> anyhow::Result<CertifiedKey> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let key = PrivateKeyDer::from_pem_slice(key).context("the key is not PEM")?;
    CertifiedKey::from_der(chain.context("the certificate is not PEM")?, key, &ring::default_provider())
        .context("key and certificate do not fit")
}
