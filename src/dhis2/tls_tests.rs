//! TLS: trusted authorities, and that a `close_notify` in the middle of a response is not its end.

use std::{io::Write as _, net::TcpListener, path::PathBuf, sync::Arc};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::{
    Client, ErrorKind,
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

/// A certificate for `localhost` and `127.0.0.1` that is its own authority, as `openssl req -x509` makes it.
const SELF_SIGNED: &str = "\
-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIUJTRG50ummLyWBEBnUF1dJ/0XKdAwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNDIxMDgwMloYDzIxMjYxMDMx
MjEwODAyWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASyWYSZXxR1CZzHWnY9bG1PP5kMC7+A4xs2b8SiS5/niTVUyqmqebs1
Z9j4BVdKdm4vBJHKzuwhArqT2/2+RStJo28wbTAdBgNVHQ4EFgQUqvBHuYd4Hcd7
PlV4DJGI3nuySHwwHwYDVR0jBBgwFoAUqvBHuYd4Hcd7PlV4DJGI3nuySHwwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSAAwRQIhAPabZ/X8xNZ7VPHjbjZlpAeisdDs/CeegF/snniT24hVAiBG
ijAfQcbN/cs1V6qxUOCgeOzfq++b5emIEcSg7/lkJA==
-----END CERTIFICATE-----
";

/// The same, of the year 2020.
const SELF_SIGNED_EXPIRED: &str = "\
-----BEGIN CERTIFICATE-----
MIIBZTCCAQugAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwHhcNMjAwMTAxMDAwMDAwWhcNMjEwMTAxMDAwMDAwWjAUMRIwEAYDVQQDDAls
b2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASyWYSZXxR1CZzHWnY9
bG1PP5kMC7+A4xs2b8SiS5/niTVUyqmqebs1Z9j4BVdKdm4vBJHKzuwhArqT2/2+
RStJo04wTDAPBgNVHRMBAf8EBTADAQH/MBoGA1UdEQQTMBGCCWxvY2FsaG9zdIcE
fwAAATAdBgNVHQ4EFgQUqvBHuYd4Hcd7PlV4DJGI3nuySHwwCgYIKoZIzj0EAwID
SAAwRQIhAK59opiFUpEXhLW8mlO1Uefvlw9ms06s3Pk81sVfqem4AiA3nZGQsSDP
ZdW0NXUxulpiQMpZtyuakyLORirDfOMHdQ==
-----END CERTIFICATE-----
";

/// The key of both: worth nothing outside these tests.
const SELF_SIGNED_KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgnwZyctg6a/CG0fGn
+qy1vQ8dxKUJdKNSTwcGFpwYjrGhRANCAASyWYSZXxR1CZzHWnY9bG1PP5kMC7+A
4xs2b8SiS5/niTVUyqmqebs1Z9j4BVdKdm4vBJHKzuwhArqT2/2+RStJ
-----END PRIVATE KEY-----
";

/// End of the connection after the response.
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
    serve_as(CERTIFICATE, KEY, answer, end)
}

/// The same with another certificate.
fn serve_as(certificate: &str, key: &str, answer: Vec<u8>, end: End) -> u16 {
    let certificates = CertificateDer::pem_slice_iter(certificate.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
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

fn trusting(url: String) -> Client {
    trusting_in(AUTHORITY, url)
}

/// A client with these certificates in its `ca_file`.
fn trusting_in(certificates: &str, url: String) -> Client {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(certificates.as_bytes()).unwrap();
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
            assert_eq!(read.await.unwrap_err().kind(), ErrorKind::Truncated);
        }
    }
}

#[actix_rt::test]
async fn an_unknown_authority_and_a_wrong_name_are_told_apart_in_words() {
    let port = serve(json("{}"), End::Stay);
    let stranger = Client::builder(format!("https://localhost:{port}")).retries(3).build();
    // Without any trusted authority the client fails before it starts.
    let error = match stranger {
        Ok(client) => client.get("x").json::<serde_json::Value>().await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.kind(), ErrorKind::Tls);
    assert!(error.to_string().contains("ca_file"), "{error}");
    let error = trusting(format!("https://127.0.0.2:{port}")).get("x").json::<serde_json::Value>().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tls);
    assert!(error.to_string().contains("is for another name"), "{error}");
}

#[actix_rt::test]
async fn a_self_signed_certificate_in_ca_file_is_trusted_as_itself_and_for_its_name_and_time_only() {
    let good = serve_as(SELF_SIGNED, SELF_SIGNED_KEY, json("[1,2]"), End::Stay);
    let expired = serve_as(SELF_SIGNED_EXPIRED, SELF_SIGNED_KEY, json("[1,2]"), End::Stay);
    let both = format!("{AUTHORITY}{SELF_SIGNED}");
    for (ca_file, host, port, said) in [
        (SELF_SIGNED, "localhost", good, None),
        (SELF_SIGNED, "127.0.0.1", good, None),
        (&both, "localhost", good, None),
        (SELF_SIGNED, "127.0.0.2", good, Some("is for another name")),
        // The same key and name in another certificate is another certificate.
        (SELF_SIGNED, "localhost", expired, Some("has expired")),
        (SELF_SIGNED_EXPIRED, "localhost", expired, Some("has expired")),
        (SELF_SIGNED_EXPIRED, "localhost", good, Some("ca_file")),
        (AUTHORITY, "localhost", good, Some("is signed by itself (set ca_file to it, if it is the right one)")),
    ] {
        let client = trusting_in(ca_file, format!("https://{host}:{port}"));
        let read = client.get("x").json::<Vec<u8>>().await;
        match said {
            None => assert_eq!(read.unwrap(), [1, 2]),
            Some(said) => {
                let error = read.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Tls, "{error}");
                assert!(error.to_string().contains(said), "{error}");
            }
        }
    }
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
    assert_eq!(error.kind(), ErrorKind::Tls);
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
}

#[test]
fn a_file_that_holds_no_certificate_is_refused_when_the_client_is_built() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    for path in [PathBuf::from("/nonexistent/x.pem"), empty.path().to_owned()] {
        let error = Client::builder("https://localhost").ca_file(&path).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
    // Without https it is not looked at.
    assert!(Client::builder("http://localhost").ca_file("/nonexistent/x.pem").build().is_ok());
}
