//! What TLS adds: whom we trust, and that a polite goodbye in the middle of an answer is no end of it.

use std::{io::Write as _, net::TcpListener, path::PathBuf, sync::Arc};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::{
    Client, Kind,
    testing::{chunk, gzip, head, json},
};

/// An authority made for these tests; its key is gone. Valid for a hundred years.
const AUTHORITY: &str = "\
-----BEGIN CERTIFICATE-----
MIIBozCCAUmgAwIBAgIUCBz7DyJ+SBri6k20xhzGyepf++8wCgYIKoZIzj0EAwIw
JjEkMCIGA1UEAwwbZGhpczIgY2xpZW50IHRlc3QgYXV0aG9yaXR5MCAXDTI2MTEy
NDAzMzMxOVoYDzIxMjYxMDMxMDMzMzE5WjAmMSQwIgYDVQQDDBtkaGlzMiBjbGll
bnQgdGVzdCBhdXRob3JpdHkwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASMsqBd
6XhVrhHYWSwJdWwbIQiNTOUebxhyJ8m49aXqKagrratLHENO20UW4DmwzeTHBwxV
6XMFGDYtkclEIKbAo1MwUTAdBgNVHQ4EFgQURRoBiZluN/Yj4IG/bInsdvhe7Ikw
HwYDVR0jBBgwFoAURRoBiZluN/Yj4IG/bInsdvhe7IkwDwYDVR0TAQH/BAUwAwEB
/zAKBggqhkjOPQQDAgNIADBFAiEAsTT68EJ41R5tOB5xMKwxdJTTPYE8vFZ5PLEY
79yL/2YCIDIgTwgskg/ZYwL0Xjsn6l4BFH1Zh7sPjo5KGdieXlJN
-----END CERTIFICATE-----
";

/// A certificate of that authority for `localhost` and `127.0.0.1`.
const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBqDCCAU2gAwIBAgIUK05QhQzce2zhRUiqAjP6Gi8AaGkwCgYIKoZIzj0EAwIw
JjEkMCIGA1UEAwwbZGhpczIgY2xpZW50IHRlc3QgYXV0aG9yaXR5MCAXDTI2MTEy
NDAzMzMxOVoYDzIxMjYxMDMxMDMzMzE5WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3Qw
WTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQJLezwdSfTFzehidV+6+L/ZGLviwSQ
UQNl9a/1ik+KszLu3xAHbpot+T0k1609HAQBHlP3r1GHVroN2p3RtzLdo2kwZzAa
BgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCQYDVR0TBAIwADAdBgNVHQ4EFgQU
ElnfuJl3rQWEF9QINvajLmnNlPIwHwYDVR0jBBgwFoAURRoBiZluN/Yj4IG/bIns
dvhe7IkwCgYIKoZIzj0EAwIDSQAwRgIhANUhjBM4lZ64ifj22Ega1KFeTnh6H75z
M443qSrw9tUwAiEA4y2ZKl33pbcinY3oBgAd392ZWrQxqw1xavVWGpezFqU=
-----END CERTIFICATE-----
";

/// Its key: worth nothing outside these tests.
const KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg3zGxG8+uNmNuPaCM
+cCQQTv95PkAOw0QAXQiw5V1JWahRANCAAQJLezwdSfTFzehidV+6+L/ZGLviwSQ
UQNl9a/1ik+KszLu3xAHbpot+T0k1609HAQBHlP3r1GHVroN2p3RtzLd
-----END PRIVATE KEY-----
";

/// How the server ends after its answer.
#[derive(Clone, Copy)]
enum End {
    /// As TLS wants it: `close_notify`, then the end of the connection.
    Polite,
    /// The connection ends without a word.
    Rude,
    /// It stays open.
    Stay,
}

/// A server that says `answer` to every request; returns its port.
fn serve(answer: Vec<u8>, end: End) -> u16 {
    let certificates = CertificateDer::pem_slice_iter(CERTIFICATE.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for tcp in listener.incoming() {
            let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), tcp.unwrap());
            let answer = answer.clone();
            std::thread::spawn(move || {
                loop {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        match std::io::Read::read(&mut tls, &mut byte) {
                            Ok(1) => request.push(byte[0]),
                            _ => return,
                        }
                    }
                    tls.write_all(&answer).unwrap();
                    tls.flush().unwrap();
                    match end {
                        End::Stay => continue,
                        End::Rude => return,
                        End::Polite => {
                            tls.conn.send_close_notify();
                            tls.flush().unwrap();
                            return;
                        }
                    }
                }
            });
        }
    });
    port
}

/// The authority in a file, for `ca_file`.
fn authority() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(AUTHORITY.as_bytes()).unwrap();
    file
}

fn trusting(url: String) -> Client {
    let file = authority();
    Client::builder(url).ca_file(file.path()).retries(0).build().unwrap()
}

#[actix_rt::test]
async fn a_server_of_a_trusted_authority_is_read_and_its_connection_kept() {
    let port = serve(json("[1,2]"), End::Stay);
    for host in ["localhost", "127.0.0.1"] {
        let client = trusting(format!("https://{host}:{port}"));
        for _ in 0..3 {
            assert_eq!(client.get("x").json::<Vec<u8>>().await.unwrap(), [1, 2]);
        }
    }
}

#[actix_rt::test]
async fn a_goodbye_in_the_middle_of_an_answer_is_a_cut_whether_polite_or_rude() {
    let packed = gzip(&b"1".repeat(1000));
    for answer in [
        head(&["Content-Length: 100"], "12345"),
        head(&["Transfer-Encoding: chunked"], chunk("[1]")),
        head(&["Transfer-Encoding: chunked", "Content-Encoding: gzip"], chunk(&packed)),
        b"HTTP/1.1 200".to_vec(),
    ] {
        for end in [End::Polite, End::Rude] {
            let client = trusting(format!("https://localhost:{}", serve(answer.clone(), end)));
            let read = async { client.get("x").send().await?.bytes(10_000).await };
            assert_eq!(read.await.unwrap_err().kind(), Kind::Cut);
        }
    }
}

#[actix_rt::test]
async fn an_unknown_authority_and_a_wrong_name_are_told_apart_in_words() {
    let port = serve(json("{}"), End::Stay);
    let stranger = Client::builder(format!("https://localhost:{port}")).retries(3).build();
    // Where the machine trusts nobody at all, the client says so before it starts.
    let error = match stranger {
        Ok(client) => client.get("x").json::<serde_json::Value>().await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.kind(), Kind::Tls);
    assert!(error.to_string().contains("ca_file"), "{error}");
    let error = trusting(format!("https://127.0.0.2:{port}")).get("x").json::<serde_json::Value>().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Tls);
    assert!(error.to_string().contains("is for another name"), "{error}");
}

#[actix_rt::test]
async fn a_server_without_tls_is_told_in_words() {
    // It answers the handshake as a web server does.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut tcp, _) = listener.accept().unwrap();
        tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        let _ = std::io::Read::read_to_end(&mut tcp, &mut Vec::new());
    });
    let error = trusting(format!("https://127.0.0.1:{port}")).get("x").json::<serde_json::Value>().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Tls);
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
}

#[test]
fn a_file_that_holds_no_certificate_is_refused_when_the_client_is_built() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    for path in [PathBuf::from("/nonexistent/x.pem"), empty.path().to_owned()] {
        let error = Client::builder("https://localhost").ca_file(&path).build().unwrap_err();
        assert_eq!(error.kind(), Kind::Settings);
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
    // Without https it is not looked at.
    assert!(Client::builder("http://localhost").ca_file("/nonexistent/x.pem").build().is_ok());
}
