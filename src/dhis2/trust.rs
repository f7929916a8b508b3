//! Whom we trust: the system's authorities, those in `ca_file`, and a server whose own certificate stands in `ca_file`.
//!
//! A self-signed certificate as `openssl req -x509` makes it calls itself an authority, and rustls takes no authority for a
//! server. An operator who names exactly that certificate means that server, and curl understands it so. Its name and
//! its time are checked all the same.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    server::ParsedCertificate,
};

use crate::error::{Error, ErrorKind};

/// The usual checks, and one exception.
#[derive(Debug)]
struct Verifier {
    by_authority: Arc<WebPkiServerVerifier>,
    /// Certificates of `ca_file`.
    named: Vec<CertificateDer<'static>>,
}

/// Whether a certificate was refused for being an authority only. rustls finds that out after it has looked at the time, and
/// says it in no other way (rustls 0.23).
pub(crate) fn is_its_own_authority(why: &CertificateError) -> bool {
    matches!(why, CertificateError::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity"))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let usual = self.by_authority.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match &usual {
            Err(rustls::Error::InvalidCertificate(why))
                if is_its_own_authority(why) && self.named.iter().any(|named| named == end_entity) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            _ => usual,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_authority.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_authority.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_authority.supported_verify_schemes()
    }
}

/// The TLS settings: the system's roots and, beside them, those in `ca_file`; HTTP/1.1 only.
///
/// # Errors
/// `InvalidConfig`: the file cannot be read or holds no certificate. `Tls`: there is no trusted root at all.
pub(crate) fn tls_config(ca_file: Option<&std::path::Path>) -> Result<Arc<ClientConfig>, Error> {
    let mut roots = RootCertStore::empty();
    let mut named = Vec::new();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!(%error, "cannot read some of the system's certificates");
    }
    roots.add_parsable_certificates(system.certs);
    if let Some(path) = ca_file {
        let unreadable = |error: rustls::pki_types::pem::Error| {
            Error::new(ErrorKind::InvalidConfig, format!("cannot read certificates from `{}`", path.display()))
                .with_source(error)
        };
        for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
            let certificate = certificate.map_err(unreadable)?;
            roots.add(certificate.clone()).map_err(|error| {
                Error::new(
                    ErrorKind::InvalidConfig,
                    format!("`{}` holds a certificate that cannot be trusted", path.display()),
                )
                .with_source(error)
            })?;
            named.push(certificate);
        }
        if named.is_empty() {
            return Err(Error::new(ErrorKind::InvalidConfig, format!("`{}` holds no certificate", path.display())));
        }
    }
    if roots.is_empty() {
        return Err(Error::new(ErrorKind::Tls, "this system has no trusted certificates, and no ca_file is set"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let by_authority = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| Error::new(ErrorKind::Tls, "the trusted certificates cannot be used").with_source(error))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(ErrorKind::Tls, "this build has no version of TLS").with_source(error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { by_authority, named }))
        .with_no_client_auth();
    // Never HTTP/2: one request per connection at a time, and awc's h2 is never reached.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
